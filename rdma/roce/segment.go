package roce

import "sync"

// MaxSegments is how many packets one segmentation offload makes of one send at
// most: UDP_MAX_SEGMENTS of include/linux/udp.h before Linux 6.9.
const MaxSegments = 64

const (
	segmentBits  = 6                  // of an identification below MaxSegments
	maxSegmented = 4096 + 12 + 28 + 4 // bytes of the longest packet, a multiple of four like all

	ip4IdentLowOff = lrhLen + 5
)

// segmentBasis[n/4][k] is what bit k of the IPv4 identification adds to the ICRC of
// a packet of n bytes. A CRC is linear: all else follows by xor.
var segmentBasis = sync.OnceValue(func() *[maxSegmented/4 + 1][segmentBits]uint32 {
	var t [maxSegmented/4 + 1][segmentBits]uint32
	for k := range segmentBits {
		s := zeros(tab[0][1<<k], pseudo4Len-ip4IdentLowOff-1+MinPacket-ICRCLen)
		for i := MinPacket / 4; i < len(t); i++ {
			t[i][k] = s
			s = zeros(s, 4)
		}
	}
	return &t
})

// SegmentDelta is what to xor to the ICRC of an IPv4 packet, computed with
// identification 0, when it leaves as segment id, 0 to MaxSegments-1, of a
// segmentation offload: the kernel counts the identification up. n is the length
// with the ICRC, MinPacket to that of the largest path MTU.
func SegmentDelta(id, n int) (delta uint32) {
	row := &segmentBasis()[n/4]
	for k := 0; id>>k != 0; k++ {
		delta ^= row[k] & -uint32(id>>k&1)
	}
	return delta
}

// IsSegment tells whether delta, between the ICRC of a packet of n bytes computed
// with identification 0 and the one it carries, is that of some segment.
func IsSegment(delta uint32, n int) bool {
	if n < MinPacket || n > maxSegmented || n%4 != 0 {
		return false
	}
	row := &segmentBasis()[n/4]
	d := uint32(0)
	for i := 1; i < MaxSegments; i++ { // in the order of a Gray code: one bit changes
		k := 0
		for i>>k&1 == 0 {
			k++
		}
		if d ^= row[k]; d == delta {
			return true
		}
	}
	return delta == 0
}
