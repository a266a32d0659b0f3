package serialize

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// The kernels against loops that do one number at a time.
func TestKernels(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, width := range []int{0, 1, 2, 4} {
		for n := range 300 {
			limit := uint64(1)<<(8*width) - 1
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
			col := make([]byte, n*width)
			packColumn(col, values, base, width)
			c := column{data: col, width: width, min: base}

			var sum uint64
			ends, lens := make([]uint32, n), make([]uint32, n)
			from := rng.Uint32N(100)
			prefixColumn(ends, col, width, base, from)
			addColumn(lens, col, width)
			at := from
			for i, v := range values {
				if got := base + c.at(i); got != v {
					t.Fatalf("width %d: number %d of %d is %d, want %d", width, i, n, got, v)
				}
				sum += uint64(v - base)
				at += v
				if ends[i] != at || lens[i] != v-base {
					t.Fatalf("width %d: end %d of %d is %d, want %d; length %d, want %d", width, i, n, ends[i], at, lens[i], v-base)
				}
			}
			if got := sumColumn(col, width); got != sum {
				t.Fatalf("width %d: sum of %d is %d, want %d", width, n, got, sum)
			}
		}
	}
	// No lane may overflow where all numbers are as large as they get.
	for _, n := range []int{4096, 1 << 20} {
		col := make([]byte, n)
		for i := range col {
			col[i] = 0xff
		}
		if got := sumColumn(col, 1); got != uint64(n)*0xff {
			t.Errorf("sum of %d bytes is %d", n, got)
		}
		if got := sumColumn(col, 2); got != uint64(n/2)*0xffff {
			t.Errorf("sum of %d halves is %d", n/2, got)
		}
	}
	times := []int64{-1 << 63, 0, 1<<63 - 1}
	col := make([]byte, 24)
	packColumn(col, times, times[0], 8)
	for i, ts := range times {
		if got := times[0] + int64(binary.LittleEndian.Uint64(col[8*i:])); got != ts {
			t.Errorf("timestamp %d came back as %d", ts, got)
		}
	}
}
