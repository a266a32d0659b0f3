package dpdk

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/intel-go/nff-go/types"

	"github.com/millrace/millrace/rdma/roce"
)

const (
	headerBytes4 = types.EtherLen + types.IPv4MinLen + types.UDPLen
	headerBytes6 = types.EtherLen + types.IPv6Len + types.UDPLen
	vlanBytes    = types.VLANLen // between the MAC addresses and the EtherType (IEEE 802.1Q)
	maxVLAN      = 4094

	etherTypeAt = 2 * types.EtherAddrLen

	// offsets within the IPv4 header (RFC 791)
	ip4Len      = 2
	ip4ID       = 4
	ip4Frag     = 6
	ip4Proto    = 9
	ip4Checksum = 10
	ip4Src      = 12
	ip4Dst      = 16
	// offsets within the IPv6 header (RFC 8200)
	ip6Len  = 4
	ip6Next = 6
	ip6Hops = 7
	ip6Src  = 8
	ip6Dst  = 24

	dontFragment  = 0x4000
	fragmentField = 0x3fff // more-fragments flag and offset
	timeToLive    = 64
)

// header is the Ethernet, IP and UDP header towards one peer, written in front of
// each packet with its lengths filled in.
type header struct {
	b   [headerBytes6 + vlanBytes]byte
	n   int        // bytes of b in use
	ip  int        // where in b the IP header starts
	v4  bool       // else IPv6
	sum uint32     // IPv4: one's complement sum of the header with zero length and checksum
	hop *neighbour // whose MAC address goes in front; nil: that in b
}

func newHeader(srcMAC, dstMAC types.MACAddress, vlan uint16, src, dst netip.AddrPort) header {
	h := header{v4: src.Addr().Is4()}
	b := appendEther(h.b[:0], dstMAC, srcMAC, vlan, etherType(h.v4))
	h.ip = len(b)
	if h.v4 {
		b = append(b, types.IPv4VersionIhl, 0, 0, 0) // TOS, length
		b = append(b, 0, 0)                          // identification: 0, never fragmented (RFC 6864 §4)
		b = binary.BigEndian.AppendUint16(b, dontFragment)
		b = append(b, timeToLive, types.UDPNumber, 0, 0)
	} else {
		b = append(b, types.IPv6VtcFlow, 0, 0, 0, 0, 0, types.UDPNumber, timeToLive)
	}
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	if h.v4 {
		h.sum = onesSum(b[h.ip:])
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = append(b, 0, 0, 0, 0) // length, checksum 0 (IBTA annex A17.3.1)
	h.n = len(b)
	return h
}

func etherType(v4 bool) uint16 {
	if v4 {
		return types.IPV4Number
	}
	return types.IPV6Number
}

// appendEther appends an Ethernet header, tagged where vlan is not 0.
func appendEther(b []byte, dst, src types.MACAddress, vlan, etherType uint16) []byte {
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	if vlan != 0 {
		b = binary.BigEndian.AppendUint16(b, types.VLANNumber)
		b = binary.BigEndian.AppendUint16(b, vlan)
	}
	return binary.BigEndian.AppendUint16(b, etherType)
}

// put writes the header for a packet of n bytes after UDP. frame is at least h.n
// bytes long. The neighbour, if any, is known.
func (h *header) put(frame []byte, n int) {
	if h.n == headerBytes4 {
		h.putUntagged4((*[headerBytes4]byte)(frame), n)
	} else {
		h.putAny(frame, n)
	}
	if h.hop != nil {
		h.hop.putMAC(frame)
	}
}

// putUntagged4 is putAny of IPv4 without a tag, in six words: copying and then changing
// the fields takes a call, and whoever reads their words next waits for the parts.
func (h *header) putUntagged4(f *[headerBytes4]byte, n int) {
	udp := uint16(n + types.UDPLen)
	total := uint32(n + types.UDPLen + types.IPv4MinLen)
	le, b := binary.LittleEndian, &h.b
	le.PutUint64(f[0:8], le.Uint64(b[0:8]))
	le.PutUint64(f[8:16], le.Uint64(b[8:16]))
	le.PutUint64(f[16:24], le.Uint64(b[16:24])|uint64(bits.ReverseBytes16(uint16(total))))
	le.PutUint64(f[24:32], le.Uint64(b[24:32])|uint64(bits.ReverseBytes16(^fold(h.sum+total))))
	le.PutUint64(f[32:40], le.Uint64(b[32:40])|uint64(bits.ReverseBytes16(udp))<<48)
	le.PutUint16(f[40:42], 0) // no UDP checksum
}

// putAny is put of any header, but for the neighbour.
func (h *header) putAny(frame []byte, n int) {
	f := frame[:h.n]
	copy(f, h.b[:h.n])
	ip := f[h.ip:]
	if h.v4 {
		total := uint32(n + types.UDPLen + types.IPv4MinLen)
		binary.BigEndian.PutUint16(ip[ip4Len:], uint16(total))
		binary.BigEndian.PutUint16(ip[ip4Checksum:], ^fold(h.sum+total))
	} else {
		binary.BigEndian.PutUint16(ip[ip6Len:], uint16(n+types.UDPLen))
	}
	binary.BigEndian.PutUint16(f[h.n-types.UDPLen+4:], uint16(n+types.UDPLen))
}

// onesSum adds 16-bit words; b is at most 64 KiB. An odd byte at the end counts as
// the high half of a word (RFC 1071).
func onesSum(b []byte) (s uint32) {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s&0xffff)
}

// Drop is why a Link dropped a received frame.
type Drop uint8

const (
	DropShort     Drop = iota // too short for its headers, or a length field disagrees
	DropMAC                   // for another station
	DropVLAN                  // of another VLAN, or tagged where the link is not, or the other way round
	DropEtherType             // not the link's IP version
	DropIPHeader              // IP version, options or header checksum
	DropFragment              // a fragment
	DropProtocol              // not UDP
	DropAddress               // for another IP address
	DropPort                  // for another UDP port
	numDrops
)

var dropNames = [numDrops]string{
	"short or inconsistent length", "other MAC address", "other VLAN", "other EtherType", "bad IP header",
	"IP fragment", "not UDP", "other IP address", "other UDP port",
}

func (d Drop) String() string {
	if d < numDrops {
		return dropNames[d]
	}
	return fmt.Sprintf("Drop(%d)", uint8(d))
}

// parsed is what a link keeps of a received frame.
type parsed struct {
	payload []byte
	port    uint16 // UDP destination
	src     netip.AddrPort
	// canonical: the header is as newHeader writes it, so the ICRC's pseudo header
	// follows from addresses and ports alone
	canonical bool
}

const accepted = numDrops

// parser knows what a link's frames must look like.
type parser struct {
	mac    types.MACAddress
	anyMAC bool
	vlan   uint16 // 0: frames without a tag
	ip     int    // where the IP header starts
	local  netip.AddrPort
	v4     types.IPv4Address // local address, IPv4 links
	v6     types.IPv6Address // local address, IPv6 links
}

func newParser(mac types.MACAddress, vlan uint16, local netip.AddrPort) parser {
	p := parser{mac: mac, vlan: vlan, ip: types.EtherLen, local: local}
	if vlan != 0 {
		p.ip += vlanBytes
	}
	if local.Addr().Is4() {
		p.v4 = types.ArrayToIPv4(local.Addr().As4())
	} else {
		p.v6 = local.Addr().As16()
	}
	return p
}

var broadcast = types.MACAddress{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// parse checks a frame. Every byte of it may be hostile. The result is accepted
// or the reason to drop the frame. out.port is set as well for DropPort.
func (p *parser) parse(frame []byte, out *parsed) Drop {
	if len(frame) < p.ip+types.IPv4MinLen+types.UDPLen+roce.BTHLen+roce.ICRCLen {
		return DropShort
	}
	if dst := types.MACAddress(frame[:types.EtherAddrLen]); dst != p.mac && dst != broadcast && !p.anyMAC {
		return DropMAC
	}
	kind, why := p.etherType(frame)
	if why != accepted {
		return why
	}
	if kind != etherType(p.local.Addr().Is4()) {
		return DropEtherType
	}
	if kind == types.IPV4Number {
		return p.parse4(frame[p.ip:], out)
	}
	return p.parse6(frame[p.ip:], out)
}

// etherType reads the EtherType of a frame of at least p.ip bytes behind the tag
// that it must have or not have.
func (p *parser) etherType(frame []byte) (uint16, Drop) {
	kind := binary.BigEndian.Uint16(frame[etherTypeAt:])
	if p.vlan == 0 {
		if kind == types.VLANNumber {
			return 0, DropVLAN
		}
		return kind, accepted
	}
	if kind != types.VLANNumber || binary.BigEndian.Uint16(frame[etherTypeAt+2:])&0xfff != p.vlan {
		return 0, DropVLAN
	}
	return binary.BigEndian.Uint16(frame[etherTypeAt+4:]), accepted
}

func (p *parser) parse4(ip []byte, out *parsed) Drop {
	h := ip[:types.IPv4MinLen]
	if h[0] != types.IPv4VersionIhl || fold(onesSum(h)) != 0xffff {
		return DropIPHeader
	}
	total := int(binary.BigEndian.Uint16(h[ip4Len:]))
	if total > len(ip) || total < types.IPv4MinLen+types.UDPLen {
		return DropShort
	}
	frag := binary.BigEndian.Uint16(h[ip4Frag:])
	if frag&fragmentField != 0 {
		return DropFragment
	}
	if h[ip4Proto] != types.UDPNumber {
		return DropProtocol
	}
	if types.SliceToIPv4(h[ip4Dst:]) != p.v4 {
		return DropAddress
	}
	out.canonical = frag == dontFragment && binary.BigEndian.Uint16(h[ip4ID:]) == 0
	src := netip.AddrFrom4([4]byte(h[ip4Src:ip4Dst]))
	return p.parseUDP(ip[types.IPv4MinLen:total], src, out)
}

func (p *parser) parse6(ip []byte, out *parsed) Drop {
	if len(ip) < types.IPv6Len+types.UDPLen {
		return DropShort
	}
	h := ip[:types.IPv6Len]
	if h[0]>>4 != types.IPv6VtcFlow>>4 {
		return DropIPHeader
	}
	n := int(binary.BigEndian.Uint16(h[ip6Len:]))
	if n > len(ip)-types.IPv6Len || n < types.UDPLen {
		return DropShort
	}
	if h[ip6Next] != types.UDPNumber {
		return DropProtocol
	}
	if types.IPv6Address(h[ip6Dst:types.IPv6Len]) != p.v6 {
		return DropAddress
	}
	out.canonical = true // traffic class, flow label and hop limit count as ones
	src := netip.AddrFrom16([16]byte(h[ip6Src:ip6Dst]))
	return p.parseUDP(ip[types.IPv6Len:types.IPv6Len+n], src, out)
}

func (p *parser) parseUDP(udp []byte, src netip.Addr, out *parsed) Drop {
	if out.port = binary.BigEndian.Uint16(udp[2:]); out.port != p.local.Port() {
		return DropPort
	}
	// RoCEv2 forbids padding between UDP and IP length.
	if int(binary.BigEndian.Uint16(udp[4:])) != len(udp) || len(udp) < types.UDPLen+roce.BTHLen+roce.ICRCLen {
		return DropShort
	}
	out.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(udp))
	out.payload = udp[types.UDPLen:]
	return accepted
}

// appendPseudo appends the ICRC's pseudo header of a packet that parse accepted; ip
// starts with its IP header.
func appendPseudo(b, ip []byte, v4 bool) []byte {
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	at := len(b)
	n := types.IPv6Len + types.UDPLen
	if v4 {
		n = types.IPv4MinLen + types.UDPLen
	}
	b = append(b, ip[:n]...)
	h := b[at:]
	if v4 {
		h[1], h[8], h[ip4Checksum], h[ip4Checksum+1] = 0xff, 0xff, 0xff, 0xff // TOS, TTL, checksum
	} else {
		h[0] |= 0x0f
		h[1], h[2], h[3], h[ip6Hops] = 0xff, 0xff, 0xff, 0xff // class, flow label, hop limit
	}
	h[len(h)-2], h[len(h)-1] = 0xff, 0xff // UDP checksum
	return b
}
