//go:build !purego

package serialize

import "github.com/klauspost/cpuid/v2"

// hasFold: carry-less products of 512 bits, four times what SSE4.2's CRC32
// instruction does in the same time.
var hasFold = cpuid.CPU.Supports(cpuid.AVX512F, cpuid.AVX512VL, cpuid.AVX512DQ, cpuid.VPCLMULQDQ, cpuid.SSE42)

//go:noescape
func crcFold(crc uint32, p *byte, n int) uint32

// foldBytes is the least that is worth the kernel's end.
const foldBytes = 512

func updateCRC(crc uint32, p []byte) uint32 {
	if hasFold && len(p) >= foldBytes {
		n := len(p) &^ 63
		crc = ^crcFold(^crc, &p[0], n)
		p = p[n:]
	}
	return updateCRCGeneric(crc, p)
}

func packLengths(dst []byte, values []uint32, base uint32, width int) {
	packLengthsGeneric(dst, values, base, width)
}

func addBlocks(sums []uint64, col []byte, width int) { addBlocksGeneric(sums, col, width) }

func prefixColumn(ends []uint32, col []byte, width int, base, from uint32) {
	prefixColumnGeneric(ends, col, width, base, from)
}
