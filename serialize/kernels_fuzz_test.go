//go:build linux

package serialize

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guarded returns n bytes with a page behind them that nobody may touch, and one
// in front of the page that they begin in.
func guarded(t testing.TB, n int) []byte {
	t.Helper()
	page := unix.Getpagesize()
	size := (n + page - 1) / page * page
	mem, err := unix.Mmap(-1, 0, size+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	for _, guard := range [][]byte{mem[:page], mem[page+size:]} {
		if err := unix.Mprotect(guard, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem[page+size-n : page+size : page+size]
}

// words is n numbers in guarded memory.
func words(t testing.TB, n int) []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(guarded(t, 4*n)))), n)
}

// longs is n numbers in guarded memory.
func longs[T int64 | uint64](t testing.TB, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(guarded(t, 8*n)))), n)
}

// Every kernel does what its reference does, and touches nothing else.
func FuzzKernels(f *testing.F) {
	f.Add([]byte("some bytes that a column could consist of"), uint16(70), uint32(3), uint32(1<<31), byte(3))
	f.Add(bytes.Repeat([]byte{0xff}, 300), uint16(1), uint32(0), uint32(0), byte(0))
	for shape := range byte(32) { // records of many lengths; a key, a deletion or headers in the third
		f.Add(bytes.Repeat([]byte{70, 3, 200, 0, 1, 64, 63, 130}, 400), uint16(3), uint32(60), uint32(0), shape)
	}
	f.Fuzz(checkKernels)
}

// The same with numbers of all kinds, where nobody fuzzes: an emulator runs it too.
func TestKernels(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	for round := range 300 {
		data := make([]byte, 1+rng.IntN(1<<(4+round%10)))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		// Every width in turn, most often in columns of whole blocks.
		count, shape := uint16(rng.Uint32()), byte(round)
		if round%3 > 0 {
			count = uint16(blockRecords*(1+rng.IntN(30)) - rng.IntN(2))
		}
		base, from := rng.Uint32()>>rng.IntN(32), rng.Uint32()>>rng.IntN(32)
		if !t.Run("", func(t *testing.T) { checkKernels(t, data, count, base, from, shape) }) {
			t.Fatalf("round %d: %d bytes, count %d, base %d, from %d, shape %d", round, len(data), count, base, from, shape)
		}
	}
}

// checkKernels makes records and columns of its arguments and gives them to each
// kernel and its reference.
func checkKernels(t *testing.T, data []byte, count uint16, base, from uint32, shape byte) {
	if len(data) > 1<<16 || len(data) == 0 {
		return
	}
	in := guarded(t, len(data))
	copy(in, data)
	if got, want := updateCRC(from, in), updateCRCGeneric(from, in); got != want {
		t.Fatalf("CRC of %d bytes: %08x, want %08x", len(in), got, want)
	}

	width := []int{0, 1, 2, 4, 8, 16, 32}[shape%7]
	n := int(count)%1000 + 1
	values := words(t, n)
	for i := range values {
		values[i] = base + uint32(data[i%len(data)])*uint32(i+1)
	}
	col, want := guarded(t, columnBytes(n, width)), make([]byte, columnBytes(n, width))
	packLengths(col, values, base, width)
	packLengthsGeneric(want, values, base, width)
	if !bytes.Equal(col, want) {
		t.Fatalf("%d numbers of width %d packed as %x, want %x", n, width, col, want)
	}

	sums, wantSums := longs[uint64](t, n/blockRecords), make([]uint64, n/blockRecords)
	addBlocks(sums, col, width)
	addBlocksGeneric(wantSums, col, width)
	for i := range sums {
		if sums[i] != wantSums[i] {
			t.Fatalf("block %d of width %d adds up to %d, want %d", i, width, sums[i], wantSums[i])
		}
	}
	part := min(n, blockRecords)
	ends, wantEnds := words(t, part), make([]uint32, part)
	block := guarded(t, columnBytes(part, width))
	copy(block, col)
	prefixColumn(ends, block, width, base, from)
	prefixColumnGeneric(wantEnds, block, width, base, from)
	for i := range ends {
		if ends[i] != wantEnds[i] {
			t.Fatalf("end %d of width %d is %d, want %d", i, width, ends[i], wantEnds[i])
		}
	}

	var records []Record
	total := 0
	for rest := in; len(rest) > 0 && len(records) < 5*blockRecords; {
		cut := min(len(rest), int(rest[0])*(1+int(shape>>4)))
		records = append(records, Record{Value: rest[len(rest)-cut : len(rest) : len(rest)]})
		total += cut
		rest = rest[:len(rest)-max(cut, 1)]
	}
	// Once it ends at the guard page, and once somewhere else in a cache line, where
	// it must leave its neighbours alone.
	dst, wantDst := guarded(t, total), make([]byte, total)
	off := int(count) % 128
	inside := bytes.Repeat([]byte{0xa5}, off+total+128)
	wantInside := bytes.Clone(inside)
	n1, crc1 := copyValues(inside[off:off+total], records)
	n2, crc2 := copyValuesGeneric(wantInside[off:off+total], records)
	if !bytes.Equal(inside, wantInside) || n1 != n2 || crc1 != crc2 {
		t.Fatalf("%d values of %d bytes copied wrongly to %d: %d bytes, CRC %08x, want %d, %08x", len(records), total, off, n1, crc1, n2, crc2)
	}
	n1, crc1 = copyValues(dst, records)
	n2, crc2 = copyValuesGeneric(wantDst, records)
	if !bytes.Equal(dst, wantDst) || n1 != n2 || crc1 != crc2 {
		t.Fatalf("%d values of %d bytes copied wrongly: %d bytes, CRC %08x, want %d, %08x", len(records), total, n1, crc1, n2, crc2)
	}

	// Measuring: lengths as they come, timestamps of all kinds.
	for i := range records {
		r := &records[i]
		r.Timestamp = int64(binary.LittleEndian.Uint64(append(data[i%len(data):len(data):len(data)], make([]byte, 8)...))) >> (shape >> 2)
		if i == int(count)-1 {
			switch shape >> 3 & 3 {
			case 1:
				r.Key = []byte{}
			case 2:
				r.Value = nil
			case 3:
				r.Headers = []byte{1}
			}
		}
	}
	var got, expected struct {
		lens, ends []uint32
		times      []int64
		rich       bool
		l          layout
	}
	m := len(records)
	got.lens, got.times, got.ends = words(t, m), longs[int64](t, m), words(t, blocks(m))
	expected.lens, expected.times, expected.ends = make([]uint32, m), make([]int64, m), make([]uint32, blocks(m))
	got.rich = gather(records, got.lens, got.times, got.ends)
	expected.rich = gatherGeneric(records, expected.lens, expected.times, expected.ends)
	addMany(&got.l, got.lens, got.times)
	addManyGeneric(&expected.l, expected.lens, expected.times)
	if !reflect.DeepEqual(got, expected) {
		t.Fatalf("measured %+v, want %+v", got, expected)
	}
}
