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

func gather(records []Record, lens []uint32, times []int64, ends []uint32) (rich bool) {
	return gatherGeneric(records, lens, times, ends)
}

func addMany(l *layout, lens []uint32, times []int64) { addManyGeneric(l, lens, times) }

func copyValues(dst []byte, records []Record) (bytes int, crc uint32) {
	return copyValuesGeneric(dst, records)
}
