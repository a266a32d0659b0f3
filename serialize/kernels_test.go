package serialize

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// Columns of every width and length read back as they were written.
func TestColumns(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, width := range []int{0, 1, 2, 4, 8, 16, 32} {
		for n := range 300 {
			limit := uint64(1)<<width - 1
			base := rng.Uint32N(1000)
			values := make([]uint32, n)
			for i := range values {
				values[i] = base + uint32(rng.Uint64N(limit+1))
				if rng.IntN(4) == 0 {
					values[i] = base + uint32(limit)
				}
				if values[i] < base { // wrapped
					values[i] = base
				}
			}
			col := make([]byte, columnBytes(n, width))
			packLengths(col, values, base, width)
			b, c := Batch{bytes: col}, column{width: int8(width), min: base}

			var sum uint64
			ends, lens := make([]uint32, n), make([]uint32, n)
			from := rng.Uint32N(100)
			prefixColumn(ends, col, width, base, from)
			addColumn(lens, col, width)
			at := from
			for i, v := range values {
				if got := base + b.at(&c, i); got != v {
					t.Fatalf("width %d: number %d of %d is %d, want %d", width, i, n, got, v)
				}
				sum += uint64(v - base)
				at += v
				if ends[i] != at || lens[i] != v-base {
					t.Fatalf("width %d: end %d of %d is %d, want %d; length %d, want %d", width, i, n, ends[i], at, lens[i], v-base)
				}
			}
			if got := sumColumn(col, n, width); got != sum {
				t.Fatalf("width %d: sum of %d is %d, want %d", width, n, got, sum)
			}
			if full := n / blockRecords; full > 0 && width > 0 {
				sums := make([]uint64, full)
				addBlocks(sums, col, width)
				for i, got := range sums {
					if want := sumColumn(col[i*4*width:], blockRecords, width); got != want {
						t.Fatalf("width %d: block %d of %d sums up to %d, want %d", width, i, full, got, want)
					}
				}
			}
		}
	}
	// No lane may overflow where all numbers are as large as they get.
	for _, n := range []int{4096, 1 << 20} {
		col := make([]byte, n)
		for i := range col {
			col[i] = 0xff
		}
		for _, width := range []int{1, 2, 4, 8, 16, 32} {
			count := n * 8 / width
			if got := sumColumn(col, count, width); got != uint64(count)*(1<<width-1) {
				t.Errorf("sum of %d numbers of width %d is %d", count, width, got)
			}
			sums := make([]uint64, count/blockRecords)
			addBlocks(sums, col, width)
			for _, got := range sums {
				if got != blockRecords*(1<<width-1) {
					t.Fatalf("block of width %d sums up to %d", width, got)
				}
			}
		}
	}
	times := []int64{-1 << 63, 0, 1<<63 - 1}
	col := make([]byte, 24)
	packColumn(col, times, times[0], 64)
	for i, ts := range times {
		if got := times[0] + int64(binary.LittleEndian.Uint64(col[8*i:])); got != ts {
			t.Errorf("timestamp %d came back as %d", ts, got)
		}
	}
}

func TestCRCOfPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	data := make([]byte, 200_000)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	for range 300 {
		whole := data[rng.IntN(1000) : 1000+rng.IntN(len(data)-1000)]
		cut := rng.IntN(len(whole) + 1)
		a, b := updateCRC(0, whole[:cut]), updateCRC(0, whole[cut:])
		want := updateCRCGeneric(0, whole)
		if got := shiftCRC(a, len(whole)-cut) ^ b; got != want {
			t.Fatalf("%d + %d bytes: %08x, want %08x", cut, len(whole)-cut, got, want)
		}
		if got := updateCRC(a, whole[cut:]); got != want {
			t.Fatalf("%d then %d bytes: %08x, want %08x", cut, len(whole)-cut, got, want)
		}
	}
}

// The sums change their way at certain lengths: each side of these, with a page
// behind them that must not be read.
func TestCRCAtLengths(t *testing.T) {
	const many = 11_520 // what crcFold on amd64 takes in one round of its mix; crc3 on arm64 takes 1,536
	longest := guarded(t, 5*many)
	rng := rand.New(rand.NewPCG(17, 18))
	for i := range longest {
		longest[i] = byte(rng.Uint32())
	}
	for _, around := range []int{0, 256, 512, 1536, 3072, many, many + 256, 2*many + 256, 4*many + 256} {
		for n := max(0, around-70); n <= around+70; n++ {
			in := longest[len(longest)-n:]
			if got, want := updateCRC(uint32(n), in), updateCRCGeneric(uint32(n), in); got != want {
				t.Fatalf("%d bytes: %08x, want %08x", n, got, want)
			}
		}
	}
}

// Every number of a packed column is read back, whatever its width and however many
// share the last byte.
func TestPackColumn(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	for _, width := range []int{1, 2, 4, 8, 16, 32} {
		for n := 1; n <= 70; n++ {
			values := make([]uint32, n)
			for i := range values {
				values[i] = 7 + rng.Uint32()>>(32-width)%(1<<31)
			}
			col := make([]byte, columnBytes(n, width))
			for i := range col {
				col[i] = 0xa5
			}
			packColumn(col, values, 7, width)
			for i, v := range values {
				if got := number(col, i, width); got != v-7 {
					t.Fatalf("number %d of %d, %d bits: %d, want %d", i, n, width, got, v-7)
				}
			}
			if width < 8 && n*width%8 > 0 && col[len(col)-1]>>(n*width%8) != 0 {
				t.Fatalf("%d numbers of %d bits: bits behind the last are set", n, width)
			}
		}
	}
}
