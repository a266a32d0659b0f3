package softroce

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma/roce"
)

// Lengths of the headers in front of the BTH, bytes. A virtio_net_hdr
// (linux/virtio_net.h, include/uapi) precedes each frame where trains are in use.
const (
	vnetLen  = 10
	etherLen = 14
	ip4Len   = 20
	ip6Len   = 40
	udpLen   = 8

	// headroom holds the longest of them and keeps frames on cache lines:
	// 10 + 14 + 40 + 8 = 72 → 128.
	headroom = 128

	// virtio_net_hdr
	vnetNeedsChecksum = 1
	vnetUDP           = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
	vnetType          = 1
	vnetHdrLen        = 2
	vnetSize          = 4
	vnetCsumStart     = 6
	vnetCsumOffset    = 8

	protocolUDP  = 17
	dontFragment = 0x4000
	fragmentMask = 0x3fff // more fragments, and the offset
)

// packetHeader is what precedes each packet to one peer: virtio_net_hdr, Ethernet,
// IP and UDP, with zero in the fields that depend on the length. It ends where the
// packet begins.
type packetHeader struct {
	b      [headroom]byte
	n      int    // bytes used, at the end of b
	ip     int    // of them, of the IP header
	ipSum  uint32 // IPv4: one's complement sum of the header
	udpSum uint32 // of the pseudo header of the UDP checksum
}

// newPacketHeader lays out the header; the MAC addresses come with setMAC.
func newPacketHeader(vnet bool, src, dst netip.AddrPort) packetHeader {
	h := packetHeader{ip: ip6Len}
	ip := []byte{0x60, 0, 0, 0, 0, 0, protocolUDP, 64}
	etherType := uint16(unix.ETH_P_IPV6)
	if src.Addr().Is4() {
		h.ip = ip4Len
		ip = []byte{0x45, 0, 0, 0, 0, 0, dontFragment >> 8, 0, 64, protocolUDP, 0, 0} // identification 0
		etherType = unix.ETH_P_IP
	}
	h.n = etherLen + h.ip + udpLen
	at := headroom - h.n
	if vnet {
		h.n += vnetLen
	}
	b := append(h.b[:at], make([]byte, etherLen-2)...)
	b = binary.BigEndian.AppendUint16(b, etherType)
	b = append(b, ip...)
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	_ = append(b, 0, 0, 0, 0) // length; no checksum, as annex A17.3.1 of the IBTA asks for
	h.ipSum = onesSum(h.b[at+etherLen : at+etherLen+h.ip])
	h.udpSum = onesSum(src.Addr().AsSlice()) + onesSum(dst.Addr().AsSlice()) + protocolUDP
	return h
}

func (h *packetHeader) setMAC(dst, src [6]byte) {
	eth := h.b[headroom-etherLen-h.ip-udpLen:]
	copy(eth, dst[:])
	copy(eth[6:], src[:])
}

// put writes the header at the end of room, which is headroom bytes, for bytes of
// packets. They are a train of packets of size bytes each if size is not 0.
func (h *packetHeader) put(room []byte, bytes, size int) {
	at := headroom - h.n
	copy(room[at:headroom], h.b[at:])
	udp := room[headroom-udpLen : headroom]
	ip := room[headroom-udpLen-h.ip : headroom-udpLen]
	n := uint32(udpLen + bytes)
	binary.BigEndian.PutUint16(udp[4:], uint16(n))
	if h.ip == ip4Len {
		binary.BigEndian.PutUint16(ip[2:], uint16(ip4Len+n))
		binary.BigEndian.PutUint16(ip[10:], ^fold(h.ipSum+ip4Len+n))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(n))
	}
	if size == 0 {
		return
	}
	// The kernel completes the checksum of each packet that it makes of the train.
	binary.BigEndian.PutUint16(udp[6:], fold(h.udpSum+n))
	v := room[at:]
	v[0], v[vnetType] = vnetNeedsChecksum, vnetUDP
	binary.NativeEndian.PutUint16(v[vnetHdrLen:], uint16(etherLen+h.ip+udpLen))
	binary.NativeEndian.PutUint16(v[vnetSize:], uint16(size))
	binary.NativeEndian.PutUint16(v[vnetCsumStart:], uint16(etherLen+h.ip))
	binary.NativeEndian.PutUint16(v[vnetCsumOffset:], 6)
}

func onesSum(b []byte) (s uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s&0xffff)
}

// received is what a packet link keeps of a frame.
type received struct {
	head    []byte // IP and UDP header
	payload []byte // one packet, or a train
	src     netip.AddrPort
	v4      bool
	ident   uint16 // IPv4
	plain   bool   // IPv4: not to be fragmented, as AppendPseudo has it
}

// parseFrame checks the headers of a frame; every byte of it may be hostile. What
// the ICRC covers need not be checked twice: header checksums are not looked at.
func parseFrame(frame []byte, local netip.AddrPort, r *received) bool {
	if len(frame) < etherLen+ip4Len+udpLen {
		return false
	}
	ip := frame[etherLen:]
	r.v4 = local.Addr().Is4()
	var n int
	if r.v4 {
		total := int(binary.BigEndian.Uint16(ip[2:]))
		frag := binary.BigEndian.Uint16(ip[6:])
		if ip[0] != 0x45 || ip[9] != protocolUDP || frag&fragmentMask != 0 || total > len(ip) || total < ip4Len+udpLen ||
			[4]byte(ip[16:20]) != local.Addr().As4() {
			return false
		}
		r.ident, r.plain = binary.BigEndian.Uint16(ip[4:]), frag == dontFragment
		r.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(ip[ip4Len:]))
		n, ip = ip4Len, ip[:total]
	} else {
		if len(ip) < ip6Len+udpLen {
			return false
		}
		total := ip6Len + int(binary.BigEndian.Uint16(ip[4:]))
		if ip[0]>>4 != 6 || ip[6] != protocolUDP || total > len(ip) || total < ip6Len+udpLen || [16]byte(ip[24:40]) != local.Addr().As16() {
			return false
		}
		r.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[8:24])), binary.BigEndian.Uint16(ip[ip6Len:]))
		n, ip = ip6Len, ip[:total]
	}
	udp := ip[n:]
	if binary.BigEndian.Uint16(udp[2:]) != local.Port() || int(binary.BigEndian.Uint16(udp[4:])) != len(udp) {
		return false
	}
	r.head, r.payload = ip[:n+udpLen], udp[udpLen:]
	return true
}

// pseudo appends the ICRC's pseudo header of a packet of n bytes with that
// identification: the headers as they arrived, masked (IBTA annex A17.3.3).
func (r *received) pseudo(b []byte, n int, ident uint16) []byte {
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	at := len(b)
	b = append(b, r.head...)
	h := b[at:]
	if r.v4 {
		h[1], h[8], h[10], h[11] = 0xff, 0xff, 0xff, 0xff // TOS, TTL, checksum
		binary.BigEndian.PutUint16(h[4:], ident)
	} else {
		h[0] |= 0x0f
		h[1], h[2], h[3], h[7] = 0xff, 0xff, 0xff, 0xff // traffic class, flow label, hop limit
	}
	h[len(h)-2], h[len(h)-1] = 0xff, 0xff // UDP checksum
	roce.PutPseudoLen(b[at-8:], n)
	return b
}
