package serialize

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// lines are records that compress well, with keys, headers and deletions.
func lines(n int) []Record {
	rs := make([]Record, n)
	for i := range rs {
		rs[i] = Record{
			Value: fmt.Appendf(nil, "2026-01-02T03:04:05Z INFO request %d of tenant %d took %d ms", i, i%7, i*i%97), Timestamp: int64(i * 3),
		}
		if i%5 == 0 {
			rs[i].Key = fmt.Append(nil, "tenant-", i%7)
			rs[i].Headers = AppendHeader(nil, "trace", fmt.Append(nil, i))
		}
		if i%50 == 5 {
			rs[i].Value = nil
		}
	}
	return rs
}

func compress(t testing.TB, how Compression, batch []byte) []byte {
	t.Helper()
	c, err := NewCompressor(how)
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.Compress(bytes.Clone(batch))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func newDecoder(t testing.TB, limit int) *Decoder {
	t.Helper()
	d, err := NewDecoder(limit)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCompressedRoundTrip(t *testing.T) {
	d := newDecoder(t, 1<<20)
	for _, how := range []Compression{S2, Zstd} {
		for _, n := range []int{10, 33, 1000} {
			rs := lines(n)
			enc := encode(t, 1<<20, rs...)
			SetBaseOffset(enc, 77)
			small := compress(t, how, enc)
			if len(small) > len(enc)*3/4 || &small[0] == &enc[0] {
				t.Fatalf("%s: %d bytes became %d", how, len(enc), len(small))
			}
			if size, err := Size(small); err != nil || size != len(small) {
				t.Fatalf("Size %d, %v; want %d", size, err, len(small))
			}
			if _, err := Open(small); !errors.Is(err, ErrCompressed) || !strings.Contains(err.Error(), how.String()) {
				t.Fatalf("Open: %v", err)
			}
			b, err := d.Open(append(small, "what follows"...))
			if err != nil {
				t.Fatal(err)
			}
			checkBatch(t, &b, rs)
			if !bytes.Equal(b.Bytes(), enc) {
				t.Fatal("other bytes than before compression")
			}
			if _, err := Open(b.Bytes()); err != nil {
				t.Fatal(err)
			}
			if again := compress(t, how, small); !bytes.Equal(again, small) {
				t.Fatal("compressed twice")
			}
		}
	}
}

// What does not shrink stays as it is; None touches nothing.
func TestIncompressible(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	r := Record{Value: make([]byte, 1000)}
	for i := range r.Value {
		r.Value[i] = byte(rng.Uint32())
	}
	enc := encode(t, 2000, r)
	for _, how := range []Compression{None, S2, Zstd} {
		if got := compress(t, how, enc); !bytes.Equal(got, enc) {
			t.Errorf("%s: %d random bytes became %d", how, len(enc), len(got))
		}
	}
	text := encode(t, 1<<16, lines(100)...)
	if got := compress(t, None, text); !bytes.Equal(got, text) {
		t.Error("None compressed")
	}
	c, err := NewCompressor(S2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compress([]byte("nothing of the kind")); !errors.Is(err, ErrTruncated) {
		t.Errorf("something else compressed: %v", err)
	}
	if _, err := c.Compress(append(text, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a batch and a byte compressed: %v", err)
	}
}

func TestCompressionNames(t *testing.T) {
	for _, how := range []Compression{None, S2, Zstd} {
		if got, err := ParseCompression(how.String()); err != nil || got != how {
			t.Errorf("%s: %v, %v", how, got, err)
		}
	}
	if _, err := ParseCompression("gzip"); err == nil || !strings.Contains(err.Error(), "zstd") {
		t.Errorf("gzip: %v", err)
	}
	if _, err := NewCompressor(9); err == nil {
		t.Error("a compressor of something unknown")
	}
	for _, limit := range []int{0, HeaderBytes - 1, MaxBatchBytes + 1} {
		if _, err := NewDecoder(limit); err == nil {
			t.Errorf("a decoder for %d bytes", limit)
		}
	}
}

func TestDecoderRefuses(t *testing.T) {
	le := binary.LittleEndian
	enc := encode(t, 1<<20, lines(1000)...)
	d := newDecoder(t, 1<<20)
	// A bomb: 256 MiB of zeros behind the header of a small batch.
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	bomb := encode(t, 1<<20, lines(1000)...)
	bomb = append(bomb[:HeaderBytes:HeaderBytes], w.EncodeAll(make([]byte, 256<<20), nil)...)
	bomb[offCompression] = byte(Zstd)
	seal(bomb)
	for _, how := range []Compression{S2, Zstd} {
		small := compress(t, how, enc)
		remade := func(change func(b []byte) []byte) []byte {
			b := change(bytes.Clone(small))
			seal(b)
			return b
		}
		for _, tc := range []struct {
			name string
			in   []byte
			want error
		}{
			{"truncated", small[:len(small)-1], ErrTruncated},
			{"a flipped bit", flip(small, len(small)/2), ErrChecksum},
			{"a body cut short", remade(func(b []byte) []byte { return b[:len(b)-10] }), ErrCorrupt},
			{"no body", remade(func(b []byte) []byte { return b[:HeaderBytes] }), ErrCorrupt},
			{"garbage behind the body", remade(func(b []byte) []byte { return append(b, "garbage"...) }), ErrCorrupt},
			{"another compression", remade(func(b []byte) []byte { b[offCompression] ^= 3; return b }), ErrCorrupt},
			{"more payload than there is", remade(func(b []byte) []byte { le.PutUint32(b[offPayload:], le.Uint32(b[offPayload:])+1); return b }), ErrCorrupt},
			{"less payload than there is", remade(func(b []byte) []byte { le.PutUint32(b[offPayload:], le.Uint32(b[offPayload:])-1); return b }), ErrCorrupt},
			{"payload of 4 GiB", remade(func(b []byte) []byte { le.PutUint32(b[offPayload:], 1<<32-1); return b }), ErrTooLarge},
			{"no records", remade(func(b []byte) []byte { le.PutUint32(b[offRecords:], 0); return b }), ErrCorrupt},
			{"more than the decoder takes", compress(t, how, encode(t, 2<<20, Record{Value: bytes.Repeat([]byte("x"), 1<<20)})), ErrTooLarge},
			{"a bomb", bomb, ErrCorrupt},
		} {
			var err error
			if grown := allocated(func() { _, err = d.Open(tc.in) }); grown > 4<<20 {
				t.Errorf("%s, %s: %d bytes allocated", how, tc.name, grown)
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%s, %s: %v, want %v", how, tc.name, err, tc.want)
			}
		}
	}
}
