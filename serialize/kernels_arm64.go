//go:build !purego

package serialize

import "github.com/klauspost/cpuid/v2"

// hasCRC: CRC32 instructions and carry-less products. NEON itself every arm64
// has.
var hasCRC = cpuid.CPU.Supports(cpuid.CRC32, cpuid.PMULL)

// The functions in assembly; kernels_arm64.s says what they do. They read and
// write exactly what their wrappers below have checked.

//go:noescape
func crc3(crc uint32, p *byte, blocks int) uint32

//go:noescape
func prefix8(ends *[32]uint32, col *byte, base, from uint32)

//go:noescape
func prefix16(ends *[32]uint32, col *byte, base, from uint32)

//go:noescape
func addBlocks8(sums *uint64, n int, col *byte)

//go:noescape
func addBlocks16(sums *uint64, n int, col *byte)

//go:noescape
func pack8(dst *byte, values *uint32, n int, base uint32)

//go:noescape
func pack16(dst *byte, values *uint32, n int, base uint32)

// crcBlock is what crc3 takes at a time.
const crcBlock = 3 * 512

func updateCRC(crc uint32, p []byte) uint32 {
	if hasCRC && len(p) >= crcBlock {
		n := len(p) / crcBlock
		crc = ^crc3(^crc, &p[0], n)
		p = p[n*crcBlock:]
	}
	return updateCRCGeneric(crc, p)
}

func packLengths(dst []byte, values []uint32, base uint32, width int) {
	if n := len(values) &^ 15; n > 0 && (width == 8 || width == 16) {
		front := dst[:n*width/8]
		if width == 8 {
			pack8(&front[0], &values[0], n, base)
		} else {
			pack16(&front[0], &values[0], n, base)
		}
		dst, values = dst[len(front):], values[n:]
	}
	packLengthsGeneric(dst, values, base, width)
}

func addBlocks(sums []uint64, col []byte, width int) {
	n := len(sums)
	switch {
	case n == 0 || width != 8 && width != 16:
		addBlocksGeneric(sums, col, width)
	case width == 8:
		addBlocks8(&sums[0], n, &col[:32*n][0])
	default:
		addBlocks16(&sums[0], n, &col[:64*n][0])
	}
}

func prefixColumn(ends []uint32, col []byte, width int, base, from uint32) {
	switch {
	case len(ends) != blockRecords || width != 8 && width != 16:
		prefixColumnGeneric(ends, col, width, base, from)
	case width == 8:
		prefix8((*[32]uint32)(ends), &col[:32][0], base, from)
	default:
		prefix16((*[32]uint32)(ends), &col[:64][0], base, from)
	}
}

func gather(records []Record, lens []uint32, times []int64, ends []uint32) (rich bool) {
	return gatherGeneric(records, lens, times, ends)
}

func addMany(l *layout, lens []uint32, times []int64) { addManyGeneric(l, lens, times) }

// Go's copy on arm64 already is what NEON can do.
func copyValues(dst []byte, records []Record) (bytes int, crc uint32) {
	return copyValuesGeneric(dst, records)
}
