package roce

import (
	"math/bits"
	"sync"
)

// MaxSegments is how many packets one segmentation offload makes of one send at
// most: UDP_MAX_SEGMENTS of include/linux/udp.h before Linux 6.9.
const MaxSegments = 64

// MaxPacket is the length of the longest packet, bytes from the BTH to the ICRC; a
// multiple of four, like all.
const MaxPacket = 4096 + 12 + 28 + 4

const (
	identBits   = 16
	ip4IdentOff = lrhLen + 4
)

// identBasis[n/4][k] is what bit k of the IPv4 identification adds to the ICRC of
// a packet of n bytes. A CRC is linear: all else follows by xor.
var identBasis = sync.OnceValue(func() *[MaxPacket/4 + 1][identBits]uint32 {
	var t [MaxPacket/4 + 1][identBits]uint32
	for k := range identBits {
		off := ip4IdentOff + 1 - k/8 // the low byte comes second
		s := zeros(tab[0][1<<(k%8)], pseudo4Len-off-1+MinPacket-ICRCLen)
		for i := MinPacket / 4; i < len(t); i++ {
			t[i][k] = s
			s = zeros(s, 4)
		}
	}
	return &t
})

// IdentDelta is what to xor to the ICRC of an IPv4 packet, computed with
// identification 0, when it leaves with identification id. n is the length with the
// ICRC, MinPacket to that of the largest path MTU.
func IdentDelta(id uint16, n int) (delta uint32) {
	row := &identBasis()[n/4]
	for ; id != 0; id &= id - 1 {
		delta ^= row[bits.TrailingZeros16(id)]
	}
	return delta
}

// Ident is the identification whose IdentDelta for a packet of n bytes is delta, the
// difference between the ICRC computed with identification 0 and the one that the
// packet carries. There is one at most; of random differences one in 2^16 has one.
func Ident(delta uint32, n int) (id uint16, ok bool) {
	if n < MinPacket || n > MaxPacket || n%4 != 0 {
		return 0, false
	}
	// Elimination: reduced[b] is the sum of basis vectors that has b as its highest
	// bit, and from[b] tells which.
	var reduced [32]uint32
	var from [32]uint16
	for k, v := range &identBasis()[n/4] {
		w := uint16(1) << k
		for v != 0 {
			b := bits.Len32(v) - 1
			if reduced[b] == 0 {
				reduced[b], from[b] = v, w
				break
			}
			v ^= reduced[b]
			w ^= from[b]
		}
	}
	for delta != 0 {
		b := bits.Len32(delta) - 1
		if reduced[b] == 0 {
			return 0, false
		}
		delta ^= reduced[b]
		id ^= from[b]
	}
	return id, true
}
