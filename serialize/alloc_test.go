//go:build !race

// With the race detector, sync.Pool forgets some of what it is given: the tables of a
// zstd decoder are allocated anew then.

package serialize

import "testing"

// Compressing and decompressing batches of one size allocates nothing after the
// first.
func TestCompressionAllocatesNothing(t *testing.T) {
	enc := encode(t, 1<<20, lines(1000)...)
	for _, how := range []Compression{S2, Zstd} {
		c, err := NewCompressor(how)
		if err != nil {
			t.Fatal(err)
		}
		d, room := newDecoder(t, 1<<20), make([]byte, len(enc))
		round := func() {
			copy(room, enc)
			small, err := c.Compress(room)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Open(small); err != nil {
				t.Fatal(err)
			}
		}
		round()
		if n := testing.AllocsPerRun(20, round); n != 0 {
			t.Errorf("%s: %v allocations", how, n)
		}
	}
}
