package serialize

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime/metrics"
	"testing"
)

var namedErrors = []error{ErrTruncated, ErrNotBatch, ErrVersion, ErrFeatures, ErrChecksum, ErrCorrupt, ErrCompressed, ErrTooLarge}

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
			b[offVersion] = Version
			b[offCompression] %= byte(Zstd) + 1
			b[offFeatures] &= knownFeatures
			b[offFeatures+1] = 0
			binary.LittleEndian.PutUint32(b[offSize:], uint32(len(b)))
			binary.LittleEndian.PutUint32(b[offCRC:], checksum(b))
			visitAny(t, b)
		}
	})
}

func visitAny(t *testing.T, data []byte) {
	var batch Batch
	var err error
	const most = 64 << 10
	var grown uint64
	for range 5 { // what others allocated meanwhile is not there every time
		if grown = allocated(func() { batch, err = Open(data) }); grown <= most {
			break
		}
	}
	if grown > most {
		t.Errorf("Open allocated %d bytes", grown)
	}
	readAny(t, &batch, err)
}

// allocated is how many bytes were allocated while f ran, by whomever; of small
// objects some come late. Unlike runtime.ReadMemStats the metric does not stop the
// world, so that fuzzing is fast.
func allocated(f func()) uint64 {
	sample := [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample[:])
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample[:])
	return sample[0].Value.Uint64() - before
}

// readAny reads all that was opened; an error must have a name.
func readAny(t *testing.T, batch *Batch, err error) {
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
	i := 0
	for v := range batch.Values() {
		if i%37 == 0 && !sameBytes(v, batch.Value(i)) {
			t.Fatalf("value %d reads differently by index", i)
		}
		i++
	}
	if i != batch.Len() {
		t.Fatalf("%d values of %d records", i, batch.Len())
	}
}

// Whatever the compressed bytes, a Decoder stays within its limit.
func FuzzDecoder(f *testing.F) {
	for _, rs := range goldenBatches() {
		enc := encode(f, 1<<16, append(rs, lines(40)...)...)
		for _, how := range []Compression{S2, Zstd} {
			small := compress(f, how, enc)
			f.Add(small[:HeaderBytes], small[HeaderBytes:], byte(how))
		}
	}
	const limit = 1 << 16
	d := newDecoder(f, limit)
	f.Fuzz(func(t *testing.T, header, body []byte, how byte) {
		b := make([]byte, HeaderBytes, HeaderBytes+len(body))
		copy(b, header)
		b = append(b, body...)
		binary.LittleEndian.PutUint32(b[offMagic:], magic)
		b[offVersion], b[offCompression] = Version, how%byte(Zstd+1)
		b[offFeatures] &= knownFeatures
		b[offFeatures+1] = 0
		seal(b)
		var batch Batch
		var err error
		if grown := allocated(func() { batch, err = d.Open(b) }); grown > limit+2<<20 {
			t.Errorf("Open allocated %d bytes", grown)
		}
		readAny(t, &batch, err)
	})
}

// A batch that opens survives compression.
func FuzzCompress(f *testing.F) {
	for _, rs := range goldenBatches() {
		f.Add(encode(f, 1<<16, rs...), byte(1))
	}
	d := newDecoder(f, 1<<20)
	var compressors [Zstd + 1]*Compressor
	for how := range compressors {
		var err error
		if compressors[how], err = NewCompressor(Compression(how)); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, how byte) {
		// Most inputs are no batch: they are a record's value then.
		enc := encode(t, 2*len(data)+1000, Record{Value: data})
		if b, err := Open(data); err == nil {
			enc = bytes.Clone(b.Bytes())
		}
		before := bytes.Clone(enc)
		small, err := compressors[how%byte(Zstd+1)].Compress(enc)
		if err != nil {
			t.Fatal(err)
		}
		b, err := d.Open(small)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), before) && BaseOffset(before) == BaseOffset(b.Bytes()) {
			t.Fatalf("%d bytes came back as %d others", len(before), len(b.Bytes()))
		}
	})
}

// Records cut from the fuzzer's bytes come back as they were.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("\x05hello\x03abc\x00\xffxyz"), uint16(300))
	encoder := newEncoder(f, 2, blockRecords)
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
		if len(kept) == 1 {
			if got, err := EncodeOne(make([]byte, room), &kept[0]); err != nil || !bytes.Equal(got, enc) {
				t.Fatalf("EncodeOne makes other bytes (%v)", err)
			}
		}
		if got, err := encoder.Encode(make([]byte, room), kept); err != nil || !bytes.Equal(got, enc) {
			t.Fatalf("an Encoder makes other bytes (%v)", err)
		}
	})
}
