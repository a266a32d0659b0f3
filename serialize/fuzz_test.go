package serialize

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
)

var namedErrors = []error{ErrTruncated, ErrNotBatch, ErrVersion, ErrFeatures, ErrChecksum, ErrCorrupt}

// Whatever the bytes, Open answers with a batch that can be read to the end, or
// with one of its errors; it never panics and never allocates by what they say.
func FuzzOpen(f *testing.F) {
	for _, rs := range goldenBatches() {
		f.Add(encode(f, 1<<16, rs...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		visitAny(t, data)
		// The same with the marks that random bytes rarely have, so that the checks
		// behind the checksum are reached.
		if len(data) >= HeaderBytes {
			b := bytes.Clone(data)
			binary.LittleEndian.PutUint32(b[offMagic:], magic)
			b[offVersion], b[offVersion+1] = Version, 0
			b[offFeatures] &= knownFeatures
			b[offFeatures+1] = 0
			clear(b[offReserved:HeaderBytes])
			binary.LittleEndian.PutUint32(b[offSize:], uint32(len(b)))
			binary.LittleEndian.PutUint32(b[offCRC:], checksum(b))
			visitAny(t, b)
		}
	})
}

func visitAny(t *testing.T, data []byte) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	batch, err := Open(data)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<10 {
		t.Errorf("Open allocated %d bytes", grown)
	}
	if err != nil {
		for _, e := range namedErrors {
			if errors.Is(err, e) {
				return
			}
		}
		t.Fatalf("not one of the named errors: %v", err)
	}
	total := 0
	for i, r := range batch.All() {
		total += len(r.Key) + len(r.Value) + len(r.Headers)
		if i%37 == 0 && !sameRecord(r, batch.Record(i)) {
			t.Fatalf("record %d reads differently by index", i)
		}
		if HeaderBlock(r.Headers).Check() == nil {
			for k, v := range HeaderBlock(r.Headers).All() {
				_, _ = k, v
			}
		}
	}
	if total != batch.PayloadBytes() {
		t.Fatalf("records have %d bytes, the payload %d", total, batch.PayloadBytes())
	}
}

// Records cut from the fuzzer's bytes come back as they were.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("\x05hello\x03abc\x00\xffxyz"), uint16(300))
	f.Fuzz(func(t *testing.T, data []byte, room uint16) {
		b, err := NewBuilder(500)
		if err != nil {
			t.Fatal(err)
		}
		b.Reset(make([]byte, room))
		var kept []Record
		for len(data) > 0 {
			how := data[0]
			data = data[1:]
			cut := func(n int) []byte {
				n = min(n, len(data))
				p := data[:n:n]
				data = data[n:]
				return p
			}
			r := Record{Timestamp: int64(int8(how)) << (how % 50)}
			if how&1 == 0 {
				r.Value = cut(int(how >> 2))
			}
			if how&2 == 0 {
				r.Key = cut(int(how >> 6))
			}
			if how&12 == 0 {
				r.Headers = AppendHeader(nil, "h", cut(2))
			}
			switch err := b.Append(&r); {
			case err == nil:
				kept = append(kept, r)
			case !errors.Is(err, ErrFull) && !errors.Is(err, ErrRecordTooLarge):
				t.Fatal(err)
			}
		}
		enc := b.Finish()
		if len(kept) == 0 {
			return
		}
		batch, err := Open(enc)
		if err != nil {
			t.Fatal(err)
		}
		checkBatch(t, &batch, kept)
	})
}
