package serialize

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
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
	// What shrinks, but by less than 1/16, is not worth decompressing either.
	zeros := func(n int) []byte {
		return encode(t, 2000, Record{Value: append(r.Value[:1000:1000], make([]byte, n)...)})
	}
	for _, how := range []Compression{S2, Zstd} {
		if got := compress(t, how, zeros(50)); !bytes.Equal(got, zeros(50)) {
			t.Errorf("%s: compressed though it saves less than 1/16: %d bytes became %d", how, len(zeros(50)), len(got))
		}
		if got := compress(t, how, zeros(120)); len(got) > len(zeros(100)) {
			t.Errorf("%s: not compressed though it saves 1/10: %d bytes", how, len(got))
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
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	// behind is body behind the header of a batch of some 60 KB.
	behind := func(how Compression, body []byte) []byte {
		b := append(bytes.Clone(enc[:HeaderBytes]), body...)
		b[offCompression] = byte(how)
		seal(b)
		return b
	}
	zeros := make([]byte, 64<<20)
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0} // RFC 8878, 3.1.1: magic, and that nothing is said of the content's size
	block := []byte{1<<1 | 1, 0, 2, 'x'}       // 3.1.1.2: the last; 16 KiB of one byte
	bombs := map[string][]byte{
		"a bomb of zstd":              behind(Zstd, w.EncodeAll(zeros, nil)),
		"a bomb of s2":                behind(S2, s2.Encode(nil, zeros)),
		"an s2 block of a lie":        behind(S2, binary.AppendUvarint(nil, 1<<32-1)),
		"a zstd window of 3.75 TiB":   behind(Zstd, slices.Concat(frame, []byte{0xff}, block)),
		"a zstd window of the limit":  behind(Zstd, slices.Concat(frame, []byte{10 << 3}, block)),
		"zstd content of 2^63 bytes":  behind(Zstd, slices.Concat(frame[:4], []byte{3<<6 | 1<<5}, binary.LittleEndian.AppendUint64(nil, 1<<63), block)),
		"a million empty zstd frames": behind(Zstd, bytes.Repeat(slices.Concat(frame, []byte{0}, []byte{1, 0, 0}), 1<<20/9)),
		"one frame after the other":   behind(Zstd, bytes.Repeat(w.EncodeAll(zeros[:64<<10], nil), 1000)),
	}
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
		} {
			refuses(t, d, how.String()+", "+tc.name, tc.in, tc.want)
		}
	}
	for name, bomb := range bombs {
		refuses(t, d, name, bomb, ErrCorrupt)
		fresh := newDecoder(t, 1<<20)
		refuses(t, fresh, name+", first of all", bomb, ErrCorrupt)
		if b, err := fresh.Open(compress(t, Zstd, enc)); err != nil || b.Len() != 1000 {
			t.Errorf("after %s: %v", name, err)
		}
	}
}

// refuses checks that d, which takes 1 MiB, refuses b within what NewDecoder promises.
func refuses(t *testing.T, d *Decoder, name string, b []byte, want error) {
	t.Helper()
	var err error
	if grown := allocated(func() { _, err = d.Open(b) }); grown > 4<<20 {
		t.Errorf("%s: %d bytes allocated", name, grown)
	}
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", name, err, want)
	}
}

// Compressed batches as they were once written are read for ever, also by a library
// that would compress them otherwise.
func TestGoldenCompressed(t *testing.T) {
	rs := lines(100)
	d := newDecoder(t, 1<<20)
	for _, how := range []Compression{S2, Zstd} {
		name := how.String() + "-100"
		if *update {
			small := compress(t, how, encode(t, 1<<20, rs...))
			if err := os.WriteFile(filepath.Join("testdata", name+".hex"), []byte(hexLines(small)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		small := golden(t, name)
		if info, err := Check(small); err != nil || info.Compression != how || info.Records != len(rs) || info.Bytes != len(small) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		b, err := d.Open(small)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkBatch(t, &b, rs)
		if !bytes.Equal(b.Bytes(), encode(t, 1<<20, rs...)) {
			t.Errorf("%s: other bytes than before compression", name)
		}
	}
}
