//go:build purego || !(amd64 || arm64)

package serialize

func updateCRC(crc uint32, p []byte) uint32 { return updateCRCGeneric(crc, p) }

func packLengths(dst []byte, values []uint32, base uint32, width int) {
	packLengthsGeneric(dst, values, base, width)
}

func addBlocks(sums []uint64, col []byte, width int) { addBlocksGeneric(sums, col, width) }

func prefixColumn(ends []uint32, col []byte, width int, base, from uint32) {
	prefixColumnGeneric(ends, col, width, base, from)
}

const copySlack = 0

func copyValues(dst []byte, records []Record) int { return copyValuesGeneric(dst, records) }
