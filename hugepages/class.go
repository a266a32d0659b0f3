package hugepages

import "math/bits"

// Size classes. A class is named by its payload: 256 B, 512 B, 1 KiB … 64 KiB in
// powers of two, then two to a doubling (96 KiB, 128 KiB, 192 KiB …) up to
// 64 MiB, because a large slot half empty wastes more than a class costs:
//
//	class          0    1    2   …   8     9    10    11    12   …  28
//	payload bytes  256  512  1Ki …  64Ki  96Ki 128Ki 192Ki 256Ki … 64Mi
//
// A slot is HeadroomBytes + payload, a multiple of 64 (slotAlign) for each class:
// 384 B, 640 B, 1152 B … 65,664 B. Slots of one class lie back to back, and since
// a chunk starts at a multiple of 64 too, so does every slot and every default
// window. The 128 B above a power of two also keep equal offsets of neighbouring
// slots out of the same cache set.
//
// A chunk is what a class takes from the arena at once:
//
//	target = arena/512, but at least 64 KiB and at most 1 MiB
//	slots  = target / slot bytes, but at least 1
//	chunk  = slots × slot bytes
//
// So a 64 MiB arena gives the 256 B class 341 slots (130,944 B) at a time, 4 KiB
// 31 slots, and from 64 KiB on one. Where no stretch of free arena is as long, a
// chunk takes the slots that fit. 1 MiB / 384 B = 2730 slots at most, which fits
// slotBits.
const (
	slotAlign      = 64
	minClassBytes  = 256
	pow2Classes    = 9 // 256 B … 64 KiB
	numClasses     = 29
	minChunkTarget = 64 << 10
	maxChunkTarget = 1 << 20
	// slotBits of a slot's index number it within its chunk, the rest number the
	// chunk: 2^20 chunks.
	slotBits  = 12
	maxChunks = 1 << (32 - slotBits)
)

// classPayload is the payload of class c in bytes.
func classPayload(c int) int {
	if c < pow2Classes {
		return minClassBytes << c
	}
	k := c - pow2Classes // 0: 96 KiB, 1: 128 KiB, 2: 192 KiB …
	if k&1 == 0 {
		return 96 << 10 << (k / 2)
	}
	return 128 << 10 << (k / 2)
}

// slotBytes is the size of a slot of class c, headroom included.
func slotBytes(c int) int { return HeadroomBytes + classPayload(c) }

// classOf is the smallest class whose payload is at least n; n is at most the
// largest payload.
func classOf(n int) int {
	if n <= minClassBytes {
		return 0
	}
	b := bits.Len(uint(n - 1)) // 2^(b-1) < n <= 2^b
	if b <= 16 {
		return b - 8
	}
	c := pow2Classes + 2*(b-17) + 1 // the class of 2^b
	if n <= 3<<(b-2) {
		c-- // 1.5 × 2^(b-1) does
	}
	return c
}

// chunkTarget is the size a chunk aims at in an arena of n bytes.
func chunkTarget(n int) int { return min(max(n/512, minChunkTarget), maxChunkTarget) }
