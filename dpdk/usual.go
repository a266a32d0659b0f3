package dpdk

import (
	"encoding/binary"
	"net/netip"

	"github.com/intel-go/nff-go/types"

	"github.com/millrace/millrace/rdma/roce"
)

// usualHeader is the untagged IPv4 header of a frame that the parser accepted. The
// frames that follow it mostly have the same but for lengths and checksum, which
// takes five comparisons to see. Its reference is the parser: what payload takes, the
// parser would.
type usualHeader struct {
	b   [headerBytes4]byte // lengths and IP checksum are zero; all zero before learn
	sum uint32             // one's complement sum of its IP header
	src netip.AddrPort
}

// Offsets of the fields that vary, and what covers them in the 8 bytes, read as
// little-endian, in which they lie.
const (
	usualLenAt      = types.EtherLen + ip4Len                   // 16
	usualChecksumAt = types.EtherLen + ip4Checksum              // 24
	usualUDPLenAt   = types.EtherLen + types.IPv4MinLen + 4     // 38
	usualFirstTwo   = uint64(0xffff)                            // of 8: both fields of the IP header
	usualLastTwo    = uint64(0xffff) << 48                      // of 8: the UDP length
	usualShortest   = types.UDPLen + roce.BTHLen + roce.ICRCLen // UDP length
)

// learn keeps the header of a frame that is canonical and whose sender is known.
func (u *usualHeader) learn(frame []byte, src netip.AddrPort) {
	u.b = [headerBytes4]byte(frame)
	for _, at := range []int{usualLenAt, usualChecksumAt, usualUDPLenAt} {
		u.b[at], u.b[at+1] = 0, 0
	}
	u.sum = onesSum(u.b[types.EtherLen : types.EtherLen+types.IPv4MinLen])
	u.src = src
}

// payload is what follows the UDP header, nil if frame does not have the usual
// header; the parser says then what it is.
func (u *usualHeader) payload(frame []byte) []byte {
	if len(frame) < headerBytes4 {
		return nil
	}
	f, b := (*[headerBytes4]byte)(frame), &u.b
	word := func(b *[headerBytes4]byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at : at+8]) }
	if word(f, 0) != word(b, 0) || word(f, 8) != word(b, 8) || word(f, 16)&^usualFirstTwo != word(b, 16) ||
		word(f, 24)&^usualFirstTwo != word(b, 24) || word(f, 32)&^usualLastTwo != word(b, 32) {
		return nil
	}
	total := int(binary.BigEndian.Uint16(f[usualLenAt:]))
	udp := int(binary.BigEndian.Uint16(f[usualUDPLenAt:]))
	if udp < usualShortest || total != udp+types.IPv4MinLen || total > len(frame)-types.EtherLen ||
		binary.BigEndian.Uint16(f[usualChecksumAt:]) != ^fold(u.sum+uint32(total)) {
		return nil
	}
	return frame[headerBytes4 : types.EtherLen+total]
}
