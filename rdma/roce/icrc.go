package roce

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// The ICRC (IBTA annex A17.3.3) is the CRC-32 of Ethernet over eight bytes of
// ones, which stand for the absent local route header, the IP and UDP headers, and
// the packet up to the ICRC, where the fields that routers may change (TOS, TTL
// and header checksum; traffic class, flow label and hop limit; UDP checksum;
// the BTH's fifth byte) count as ones. It is sent least significant byte first.

const (
	ipv4Len = 20
	ipv6Len = 40
	udpLen  = 8
	lrhLen  = 8

	pseudo4Len = lrhLen + ipv4Len + udpLen
	pseudo6Len = lrhLen + ipv6Len + udpLen

	// offsets of the length fields within the pseudo headers
	ip4LenOff  = lrhLen + 2
	udp4LenOff = lrhLen + ipv4Len + 4
	ip6LenOff  = lrhLen + 4
	udp6LenOff = lrhLen + ipv6Len + 4
)

// AppendPseudo appends the headers that the ICRC covers before the BTH, with the
// variable fields set to ones and zero in the length fields: 36 bytes for IPv4
// (identification 0, don't fragment), 56 for IPv6. src and dst must be of one
// family; an IPv4-mapped address counts as IPv4.
func AppendPseudo(b []byte, src, dst netip.AddrPort) []byte {
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	sa, da := src.Addr().Unmap(), dst.Addr().Unmap()
	if sa.Is4() {
		b = append(b, 0x45, 0xff, 0, 0, 0, 0, 0x40, 0, 0xff, 17, 0xff, 0xff)
	} else {
		b = append(b, 0x6f, 0xff, 0xff, 0xff, 0, 0, 17, 0xff)
	}
	b = append(b, sa.AsSlice()...)
	b = append(b, da.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	return append(b, 0, 0, 0xff, 0xff)
}

// PutPseudoLen sets the length fields of a pseudo header for a packet of n
// bytes, ICRC included.
func PutPseudoLen(pseudo []byte, n int) {
	if len(pseudo) == pseudo4Len {
		binary.BigEndian.PutUint16(pseudo[ip4LenOff:], uint16(n+udpLen+ipv4Len))
		binary.BigEndian.PutUint16(pseudo[udp4LenOff:], uint16(n+udpLen))
	} else if len(pseudo) == pseudo6Len {
		binary.BigEndian.PutUint16(pseudo[ip6LenOff:], uint16(n+udpLen))
		binary.BigEndian.PutUint16(pseudo[udp6LenOff:], uint16(n+udpLen))
	}
}

// ICRC is the CRC's state after one pseudo header: what is constant for a pair of
// addresses and ports. The zero value is not usable.
//
// A CRC is linear, so the length fields need no second pass: each of their bytes
// adds a value from a table to the state that zero lengths gave.
type ICRC struct {
	state uint32
	v6    bool
}

// NewICRC prepares sums for a pseudo header as AppendPseudo makes it, with zero
// length fields.
func NewICRC(pseudo []byte) ICRC {
	return ICRC{state: ^crc32.ChecksumIEEE(pseudo), v6: len(pseudo) == pseudo6Len}
}

// Sum is the ICRC of a packet without its ICRC: BTH, extension headers, payload
// and pad; at least BTHLen bytes.
func (c *ICRC) Sum(packet []byte) uint32 { return sum(c.start(len(packet)), packet) }

// SumCopy is the ICRC of a packet in pieces: its headers, at least BTHLen bytes, its
// payload, and its pad. In the same pass it copies the payload to dst, which is as
// long and does not overlap it.
func (c *ICRC) SumCopy(headers, dst, payload, pad []byte) uint32 {
	s, rest := sumStart(c.start(len(headers)+len(payload)+len(pad)), headers)
	s = copySum(sumBytes(s, rest), dst, payload)
	return ^sumBytes(s, pad)
}

// start is the state before a packet of n bytes without its ICRC.
func (c *ICRC) start(n int) uint32 {
	u := uint(n + ICRCLen + udpLen)
	if c.v6 {
		return c.state ^ len6Hi[u>>8&0xff] ^ len6Lo[u&0xff]
	}
	ip := u + ipv4Len
	return c.state ^ ip4Hi[ip>>8&0xff] ^ ip4Lo[ip&0xff] ^ udp4Hi[u>>8&0xff] ^ udp4Lo[u&0xff]
}

// Sum is the ICRC of a packet without its ICRC, at least BTHLen bytes, after a
// pseudo header whose length fields are set.
func Sum(pseudo, packet []byte) uint32 {
	return sum(^crc32.ChecksumIEEE(pseudo), packet)
}

// sumGeneric continues state (not inverted) over a packet with the BTH's fifth byte as
// ones.
func sumGeneric(s uint32, packet []byte) uint32 {
	s, packet = sumStart(s, packet)
	return ^sumPlain(s, packet)
}

// sumStart continues state over the first eight bytes of a packet, for which it may
// not be changed, and gives the rest.
func sumStart(s uint32, packet []byte) (uint32, []byte) {
	h := (*BTH)(packet)
	return slice8(s^binary.LittleEndian.Uint32(h[0:]), binary.LittleEndian.Uint32(h[4:])|0xff), packet[8:]
}

// copySumGeneric continues state over src, and copies it to dst.
func copySumGeneric(s uint32, dst, src []byte) uint32 {
	copy(dst, src)
	return sumPlain(s, src)
}

// sumPlain continues state over p: what hash/crc32's vector code would leave to its
// loop over bytes is done here.
func sumPlain(s uint32, p []byte) uint32 {
	if n := len(p) &^ 15; n >= vectorMin {
		s = ^crc32.Update(^s, crc32.IEEETable, p[:n])
		p = p[n:]
	}
	return sumBytes(s, p)
}

// sumBytes continues state over a few bytes.
func sumBytes(s uint32, p []byte) uint32 {
	for len(p) >= 8 {
		s = slice8(s^binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:]))
		p = p[8:]
	}
	if len(p) >= 4 { // headers and padded payload: always a multiple of four
		s ^= binary.LittleEndian.Uint32(p)
		s = tab[3][s&0xff] ^ tab[2][s>>8&0xff] ^ tab[1][s>>16&0xff] ^ tab[0][s>>24]
		p = p[4:]
	}
	for _, b := range p {
		s = tab[0][byte(s)^b] ^ s>>8
	}
	return s
}

// vectorMin is where hash/crc32 on amd64 begins to use carry-less multiplication.
const vectorMin = 64

// slice8 advances the CRC over eight bytes, a of which is already combined with
// the state.
func slice8(a, b uint32) uint32 {
	return tab[7][a&0xff] ^ tab[6][a>>8&0xff] ^ tab[5][a>>16&0xff] ^ tab[4][a>>24] ^
		tab[3][b&0xff] ^ tab[2][b>>8&0xff] ^ tab[1][b>>16&0xff] ^ tab[0][b>>24]
}

// tab[k][b] is the effect on the CRC of byte b followed by k zero bytes.
var tab = func() (t [8][256]uint32) {
	t[0] = *crc32.IEEETable
	for k := 1; k < 8; k++ {
		for b := range t[k] {
			t[k][b] = t[0][byte(t[k-1][b])] ^ t[k-1][b]>>8
		}
	}
	return t
}()

var (
	ip4Hi, ip4Lo   = lenTables(pseudo4Len, ip4LenOff)
	udp4Hi, udp4Lo = lenTables(pseudo4Len, udp4LenOff)
	len6Hi, len6Lo = func() (hi, lo [256]uint32) { // IP and UDP length are equal
		ipHi, ipLo := lenTables(pseudo6Len, ip6LenOff)
		udpHi, udpLo := lenTables(pseudo6Len, udp6LenOff)
		for i := range hi {
			hi[i], lo[i] = ipHi[i]^udpHi[i], ipLo[i]^udpLo[i]
		}
		return hi, lo
	}()
)

// lenTables gives the effect on the state after a pseudo header of total bytes of
// the two bytes of a field at off.
func lenTables(total, off int) (hi, lo [256]uint32) {
	for i := range hi {
		hi[i], lo[i] = zeros(tab[0][i], total-off-1), zeros(tab[0][i], total-off-2)
	}
	return hi, lo
}

func zeros(s uint32, n int) uint32 {
	for range n {
		s = tab[0][byte(s)] ^ s>>8
	}
	return s
}

// PutICRC writes an ICRC in wire order at the start of b.
func PutICRC(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }

// GetICRC reads an ICRC in wire order from the start of b.
func GetICRC(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
