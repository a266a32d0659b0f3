package serialize

import (
	"hash/crc32"
	"testing"
)

// crcByTable is CRC32C in plain Go, one table look-up a byte: what a machine
// without instructions for it does.
func crcByTable(crc uint32, p []byte) uint32 {
	crc = ^crc
	for _, v := range p {
		crc = castagnoli[byte(crc)^v] ^ crc>>8
	}
	return ^crc
}

// Each kernel beside its reference, on what 1,024 log lines are: 128 KiB of
// payload and lengths of one byte.
func BenchmarkKernel(b *testing.B) {
	const n = 1024
	values := make([]uint32, n)
	records := make([]Record, n)
	payload := make([]byte, 128<<10)
	for i := range values {
		values[i] = uint32(60 + i*37%200)
		records[i].Value = payload[i*60 : i*60+int(values[i])]
	}
	col8, col16 := make([]byte, n), make([]byte, 2*n)
	packLengthsGeneric(col8, values, 60, 8)
	packLengthsGeneric(col16, values, 60, 16)
	sums := make([]uint64, n/blockRecords)
	var ends [blockRecords]uint32
	dst := make([]byte, 1<<20)
	run := func(name string, kernel, reference func()) {
		for _, k := range []struct {
			name string
			f    func()
		}{{"kernel", kernel}, {"generic", reference}} {
			b.Run(name+"/"+k.name, func(b *testing.B) {
				for b.Loop() {
					k.f()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/record")
			})
		}
	}
	prefix := func(f func([]uint32, []byte, int, uint32, uint32), col []byte, width int) func() {
		return func() {
			for i := 0; i < n; i += blockRecords {
				f(ends[:], col[i*width/8:], width, 60, 7)
			}
		}
	}
	run("pack8", func() { packLengths(col8, values, 60, 8) }, func() { packLengthsGeneric(col8, values, 60, 8) })
	run("pack16", func() { packLengths(col16, values, 60, 16) }, func() { packLengthsGeneric(col16, values, 60, 16) })
	run("sum8", func() { addBlocks(sums, col8, 8) }, func() { addBlocksGeneric(sums, col8, 8) })
	run("sum16", func() { addBlocks(sums, col16, 16) }, func() { addBlocksGeneric(sums, col16, 16) })
	run("prefix8", prefix(prefixColumn, col8, 8), prefix(prefixColumnGeneric, col8, 8))
	run("prefix16", prefix(prefixColumn, col16, 16), prefix(prefixColumnGeneric, col16, 16))
	run("copy", func() { copyValues(dst, records) }, func() { copyValuesGeneric(dst, records) })
	run("crc", func() { updateCRC(0, payload) }, func() { crcByTable(0, payload) })
	run("crc-go", func() { updateCRC(0, payload) }, func() { crc32.Update(0, castagnoli, payload) })
}
