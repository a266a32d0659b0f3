package serialize

import (
	"errors"
	"testing"
)

// Check tells what a batch is without decompressing it, and finds what Open and a
// Decoder find but for the body of a compressed one.
func TestCheck(t *testing.T) {
	plain := encode(t, 1<<20, lines(500)...)
	for _, how := range []Compression{None, S2, Zstd} {
		b := compress(t, how, plain)
		got, err := Check(append(b[:len(b):len(b)], "behind"...))
		if want := (Info{500, len(b), len(plain), how}); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", how, got, err, want)
		}
		if n := testing.AllocsPerRun(10, func() { _, _ = Check(b) }); n != 0 {
			t.Errorf("%s: %v allocations", how, n)
		}
		for at, want := range map[int]error{0: ErrNotBatch, offVersion: ErrVersion, offCompression: ErrFeatures, len(b) - 1: ErrChecksum} {
			bad := append([]byte(nil), b...)
			bad[at] ^= 0x80
			if _, err := Check(bad); !errors.Is(err, want) {
				t.Errorf("%s, byte %d bent: %v, want %v", how, at, err, want)
			}
		}
		if _, err := Check(b[:len(b)-1]); !errors.Is(err, ErrTruncated) {
			t.Errorf("%s, cut: %v", how, err)
		}
		bad := append([]byte(nil), b...)
		clear(bad[offRecords : offRecords+4])
		seal(bad)
		if _, err := Check(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s without records: %v", how, err)
		}
	}
}
