//go:build !purego

package serialize

import "github.com/klauspost/cpuid/v2"

var (
	hasAVX2 = cpuid.CPU.Supports(cpuid.AVX2)
	// hasWide: carry-less products of 512 bits, more than twice as fast as SSE4.2's
	// CRC32 instruction, and loads of up to 64 bytes that do not touch what is behind
	// them.
	hasWide = cpuid.CPU.Supports(cpuid.AVX512F, cpuid.AVX512VL, cpuid.AVX512DQ, cpuid.AVX512BW, cpuid.VPCLMULQDQ, cpuid.SSE42, cpuid.BMI2)
)

// The functions in assembly; kernels_amd64.s and records_amd64.s say what they do. They read and
// write exactly what their wrappers below have checked.

//go:noescape
func crcFold(crc uint32, p *byte, n int) uint32

//go:noescape
func prefix8(ends *[32]uint32, col *byte, base, from uint32)

//go:noescape
func prefix16(ends *[32]uint32, col *byte, base, from uint32)

//go:noescape
func addBlocks8(sums *uint64, n int, col *byte)

//go:noescape
func addBlocks16(sums *uint64, n int, col *byte)

//go:noescape
func gatherPlain(records *Record, n int, lens *uint32, times *int64, ends *uint32, most int) (rich uintptr)

//go:noescape
func extents(x *extent, lens *uint32, times *int64, n int)

//go:noescape
func copyFold(dst *byte, records *Record, n int) (bytes int, crc uint32)

// foldBytes is the least that is worth the kernel's end.
const foldBytes = 512

func updateCRC(crc uint32, p []byte) uint32 {
	if hasWide && len(p) >= foldBytes {
		n := len(p) &^ 63
		crc = ^crcFold(^crc, &p[0], n)
		p = p[n:]
	}
	return updateCRCGeneric(crc, p)
}

func packLengths(dst []byte, values []uint32, base uint32, width int) {
	packLengthsGeneric(dst, values, base, width)
}

func addBlocks(sums []uint64, col []byte, width int) {
	n := len(sums)
	switch {
	case !hasAVX2 || n == 0 || width != 8 && width != 16:
		addBlocksGeneric(sums, col, width)
	case width == 8:
		addBlocks8(&sums[0], n, &col[:32*n][0])
	default:
		addBlocks16(&sums[0], n, &col[:64*n][0])
	}
}

func prefixColumn(ends []uint32, col []byte, width int, base, from uint32) {
	switch {
	case !hasAVX2 || len(ends) != blockRecords || width != 8 && width != 16:
		prefixColumnGeneric(ends, col, width, base, from)
	case width == 8:
		prefix8((*[32]uint32)(ends), &col[:32][0], base, from)
	default:
		prefix16((*[32]uint32)(ends), &col[:64][0], base, from)
	}
}

func gather(records []Record, lens []uint32, times []int64, ends []uint32) (rich bool) {
	n := len(records)
	if !hasWide || n == 0 {
		return gatherGeneric(records, lens, times, ends)
	}
	return gatherPlain(&records[0], n, &lens[:n][0], &times[:n][0], &ends[:blocks(n)][0], MaxBatchBytes) != 0
}

// manyRecords is what makes extents worth its end.
const manyRecords = 8

func addMany(l *layout, lens []uint32, times []int64) {
	n := len(lens)
	if !hasWide || n < manyRecords {
		addManyGeneric(l, lens, times)
		return
	}
	var x extent
	extents(&x, &lens[0], &times[:n][0], n)
	l.take(&x, n, times[n-1])
}

func copyValues(dst []byte, records []Record) (bytes int, crc uint32) {
	if !hasWide || len(records) == 0 || len(dst) == 0 {
		return copyValuesGeneric(dst, records)
	}
	bytes, crc = copyFold(&dst[0], &records[0], len(records))
	return bytes, updateCRC(crc, dst[bytes&^63:bytes])
}
