package serialize

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			for _, n := range []int{1, 2, 31, 32, 33, 64, 65, 300} {
				rs := s.records(rng, n)
				enc := encode(t, HeaderBytes+payloadBytes(rs)+30*n, rs...)
				b, err := Open(enc)
				if err != nil {
					t.Fatal(err)
				}
				checkBatch(t, &b, rs)
				if b.PayloadBytes() != payloadBytes(rs) || !bytes.Equal(b.Bytes(), enc) || b.BaseOffset() != NoOffset {
					t.Fatalf("payload %d, %d bytes, offset %d", b.PayloadBytes(), len(b.Bytes()), b.BaseOffset())
				}
				if n2, err := Size(enc[:HeaderBytes]); err != nil || n2 != len(enc) {
					t.Fatalf("Size %d, %v; want %d", n2, err, len(enc))
				}
				trusted, err := OpenTrusted(append(enc, "what follows"...))
				if err != nil {
					t.Fatal(err)
				}
				checkBatch(t, &trusted, rs)
			}
		})
	}
}

// The columns that a batch needs, in bytes.
func TestColumnWidths(t *testing.T) {
	v := func(n int, ts int64) Record { return Record{Value: make([]byte, n), Timestamp: ts} }
	k := func(key string) Record { return Record{Key: []byte(key), Value: []byte("v")} }
	for _, tc := range []struct {
		name string
		rs   []Record
		want int
	}{
		{"one record", []Record{v(130, 7)}, 0},
		{"all alike", []Record{v(130, 7), v(130, 7), v(130, 7)}, 0},
		{"two lengths", []Record{v(5, 7), v(4, 7), v(5, 7)}, 1},
		{"lengths within 3", []Record{v(5, 7), v(4, 7), v(7, 7), v(4, 7), v(4, 7)}, 2},
		{"lengths within 15", []Record{v(15, 7), v(0, 7), v(7, 7)}, 2},
		{"lengths within 255", []Record{v(300, 7), v(45, 7)}, 2},
		{"lengths within 65535", []Record{v(301, 7), v(45, 7)}, 4},
		{"lengths beyond", []Record{v(0, 7), v(65536, 7)}, 8},
		{"steady time", []Record{v(1, -100), v(1, 900), v(1, 1900), v(1, 2900)}, 0},
		{"steps within 1", []Record{v(1, 0), v(1, 10), v(1, 21)}, 1},
		{"time falls", []Record{v(1, 155), v(1, 200), v(1, 0)}, 3},
		{"time jumps", []Record{v(1, 0), v(1, 1<<40), v(1, 0)}, 24},
		{"time from end to end", []Record{v(1, math.MinInt64), v(1, math.MaxInt64), v(1, math.MinInt64)}, 1},
		{"keys of one length", []Record{k("ab"), k("cd")}, 0},
		{"keys", []Record{k("ab"), k("cde")}, 1},
		{"a record without a key", []Record{k(""), v(1, 0)}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			enc := encode(t, 1<<18, tc.rs...)
			if got := len(enc) - HeaderBytes - payloadBytes(tc.rs); got != tc.want {
				t.Errorf("columns of %d bytes for %d records, want %d", got, len(tc.rs), tc.want)
			}
			b, err := Open(enc)
			if err != nil {
				t.Fatal(err)
			}
			checkBatch(t, &b, tc.rs)
		})
	}
}

// Overhead of ordinary records without a key, in hundreds and thousands: at most
// 3 bytes, all included.
func TestOverhead(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, s := range []shape{
		{name: "log lines", minValue: 70, maxValue: 300, timeSpread: 200},
		{name: "events", minValue: 90, maxValue: 900},
	} {
		for _, n := range []int{100, 1000} {
			rs := s.records(rng, n)
			enc := encode(t, 1<<20, rs...)
			if per := float64(len(enc)-payloadBytes(rs)) / float64(n); per > 3 {
				t.Errorf("%s, batches of %d: %.2f bytes of overhead per record", s.name, n, per)
			}
		}
	}
}

func TestBuilderBounds(t *testing.T) {
	if _, err := NewBuilder(0); err == nil {
		t.Error("a builder for no records")
	}
	if _, err := NewBuilder(MaxRecords + 1); err == nil {
		t.Error("a builder for more records than readers take")
	}
	b, err := NewBuilder(3)
	if err != nil {
		t.Fatal(err)
	}
	if b.Finish() != nil {
		t.Error("an empty batch has bytes")
	}
	r := func(n int) *Record { return &Record{Value: bytes.Repeat([]byte{'x'}, n)} }
	for _, tc := range []struct {
		name string
		room int
		rs   []*Record
		want []error
	}{
		{"exactly one", HeaderBytes + 10, []*Record{r(10), r(0), r(1)}, []error{nil, ErrFull, ErrFull}},
		{"too large first", HeaderBytes + 10, []*Record{r(11), r(10)}, []error{ErrRecordTooLarge, nil}},
		{"too large later", HeaderBytes + 10, []*Record{r(1), r(11), r(1)}, []error{nil, ErrRecordTooLarge, nil}},
		{"by count", 1000, []*Record{r(1), r(1), r(1), r(1), {Key: []byte("k")}}, []error{nil, nil, nil, ErrFull, ErrFull}},
		{"width counts", HeaderBytes + 12, []*Record{r(5), r(4), r(5), r(0)}, []error{nil, nil, ErrFull, nil}},
		{"no room for a header", HeaderBytes - 1, []*Record{r(0)}, []error{ErrRecordTooLarge}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			room := make([]byte, tc.room)
			b.Reset(room)
			var kept []Record
			for i, r := range tc.rs {
				if err := b.Append(r); !errors.Is(err, tc.want[i]) || err != nil && tc.want[i] == nil {
					t.Fatalf("record %d: %v, want %v", i, err, tc.want[i])
				} else if err == nil {
					kept = append(kept, *r)
				}
			}
			enc := b.Finish()
			if len(kept) == 0 {
				return
			}
			if &enc[0] != &room[0] {
				t.Error("the batch does not begin where it was to be built")
			}
			got, err := Open(enc)
			if err != nil {
				t.Fatal(err)
			}
			checkBatch(t, &got, kept)
		})
	}
}

// Random records into batches of random room: whatever is refused leaves no
// trace, whatever is taken is there, and the batch keeps within its room.
func TestBuilderFillsToTheBrim(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	b, err := NewBuilder(200)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 150 {
		s := shapes[rng.IntN(len(shapes))]
		rs := s.records(rng, 1+rng.IntN(220))
		backing := bytes.Repeat([]byte{0xa5}, rng.IntN(payloadBytes(rs)+HeaderBytes+1000)+16)
		room := backing[:len(backing)-16]
		b.Reset(room)
		var kept []Record
		for i := range rs {
			before := b.Size()
			err := b.Append(&rs[i])
			switch {
			case err == nil:
				kept = append(kept, rs[i])
			case errors.Is(err, ErrFull) && len(kept) == 0:
				t.Fatalf("round %d: an empty batch is full", round)
			case b.Size() != before || b.Len() != len(kept):
				t.Fatalf("round %d: a refused record left a trace", round)
			}
		}
		enc := b.Finish()
		if !bytes.Equal(backing[len(room):], bytes.Repeat([]byte{0xa5}, 16)) {
			t.Fatalf("round %d: written beyond the room", round)
		}
		if len(kept) == 0 {
			continue
		}
		got, err := Open(enc)
		if err != nil {
			t.Fatalf("round %d (%s): %v", round, s.name, err)
		}
		checkBatch(t, &got, kept)
	}
}

// The same records make the same bytes, whatever the builder did before.
func TestBuilderReuse(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	used, err := NewBuilder(100)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		s := shapes[rng.IntN(len(shapes))]
		rs := s.records(rng, 1+rng.IntN(100))
		room := payloadBytes(rs) + 4096
		used.Reset(bytes.Repeat([]byte{byte(rng.Uint32())}, room))
		for i := range rs {
			if err := used.Append(&rs[i]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(used.Finish(), encode(t, room, rs...)) {
			t.Fatalf("%s: a used builder makes other bytes than a new one", s.name)
		}
	}
}

func TestBaseOffsetIsStampedWithoutEncoding(t *testing.T) {
	enc := encode(t, 1000, Record{Value: []byte("a")}, Record{Value: []byte("b")})
	SetBaseOffset(enc, 1<<40)
	b, err := Open(enc)
	if err != nil {
		t.Fatal(err)
	}
	if b.BaseOffset() != 1<<40 || BaseOffset(enc) != 1<<40 {
		t.Errorf("offset %d", b.BaseOffset())
	}
}

func TestBatchesInARow(t *testing.T) {
	var row []byte
	for i := range 5 {
		row = append(row, encode(t, 1000, Record{Value: fmt.Append(nil, "batch ", i)})...)
	}
	n := 0
	for ; len(row) > 0; n++ {
		b, err := Open(row)
		if err != nil {
			t.Fatal(err)
		}
		if string(b.Value(0)) != fmt.Sprint("batch ", n) {
			t.Errorf("batch %d: %q", n, b.Value(0))
		}
		row = row[len(b.Bytes()):]
	}
	if n != 5 {
		t.Errorf("%d batches", n)
	}
}

func TestIndexOutOfRangePanics(t *testing.T) {
	plain := encode(t, 1000, Record{Value: []byte("a")}, Record{Value: []byte("b")})
	deleted := encode(t, 1000, Record{Key: []byte("a")}, Record{Key: []byte("b")})
	for _, enc := range [][]byte{plain, deleted} {
		b, err := Open(enc)
		if err != nil {
			t.Fatal(err)
		}
		for name, f := range map[string]func(int){
			"Value": func(i int) { b.Value(i) }, "Key": func(i int) { b.Key(i) }, "Headers": func(i int) { b.Headers(i) },
			"Timestamp": func(i int) { b.Timestamp(i) }, "Record": func(i int) { b.Record(i) },
		} {
			for _, i := range []int{-1, 2, 1 << 40} {
				func() {
					defer func() {
						if recover() == nil {
							t.Errorf("%s(%d) of 2 records returned", name, i)
						}
					}()
					f(i)
				}()
			}
		}
	}
}

func TestHeaderBlock(t *testing.T) {
	var block []byte
	block = AppendHeader(block, "trace", []byte("abc"))
	block = AppendHeader(block, "", nil)
	block = AppendHeader(block, "long", make([]byte, 300))
	if err := HeaderBlock(block).Check(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for k, v := range HeaderBlock(block).All() {
		got = append(got, fmt.Sprintf("%s=%d", k, len(v)))
	}
	if s := strings.Join(got, " "); s != "trace=3 =0 long=300" {
		t.Errorf("headers %s", s)
	}
	for cut := 1; cut < len(block); cut++ {
		n := 0
		for range HeaderBlock(block[:cut]).All() {
			n++
		}
		if whole := cut == 10 || cut == 12; (HeaderBlock(block[:cut]).Check() == nil) != whole || n > 2 {
			t.Errorf("cut at %d: %v, %d headers", cut, HeaderBlock(block[:cut]).Check(), n)
		}
	}
}

// rewrite changes a batch and makes its checksum right again.
func rewrite(enc []byte, change func(b []byte)) []byte {
	b := bytes.Clone(enc)
	change(b)
	binary.LittleEndian.PutUint32(b[offCRC:], checksum(b))
	return b
}

func TestOpenRefuses(t *testing.T) {
	le := binary.LittleEndian
	var rs []Record
	for i := range 100 {
		rs = append(rs, Record{Key: []byte("key"), Value: make([]byte, i), Timestamp: int64(i)})
	}
	enc := encode(t, 1<<16, rs...)
	var simple []Record
	for i := range 70 {
		simple = append(simple, Record{Value: make([]byte, i)})
	}
	plain := encode(t, 1<<16, simple...)
	starts := HeaderBytes + payloadBytes(simple)
	odd := encode(t, 1000, Record{Value: []byte("a")}, Record{Value: []byte("bc")})
	var lateRecords []Record
	for i := range 33 {
		lateRecords = append(lateRecords, Record{Value: make([]byte, i%3), Timestamp: int64(i%32*100 + i/32)})
	}
	late := encode(t, 1000, lateRecords...)

	for _, tc := range []struct {
		name string
		in   []byte
		want error
		text string
	}{
		{"nothing", nil, ErrTruncated, "0 bytes"},
		{"part of the header", enc[:HeaderBytes-1], ErrTruncated, "63 bytes"},
		{"last byte missing", enc[:len(enc)-1], ErrTruncated, ""},
		{"something else", bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 10), ErrNotBatch, "47455420"},
		{"next version", rewrite(enc, func(b []byte) { b[offVersion] = 3 }), ErrVersion, "version 3"},
		{"earlier version", rewrite(enc, func(b []byte) { b[offVersion] = 1 }), ErrVersion, "version 1"},
		{"version zero", rewrite(enc, func(b []byte) { b[offVersion] = 0 }), ErrVersion, "version 0"},
		{"unknown feature", rewrite(enc, func(b []byte) { b[offFeatures] |= 0x10 }), ErrFeatures, "0x1d"},
		{"flipped payload bit", flip(enc, HeaderBytes+5), ErrChecksum, "CRC32C"},
		{"flipped column bit", flip(enc, len(enc)-1), ErrChecksum, "CRC32C"},
		{"flipped checksum", flip(enc, offCRC), ErrChecksum, "CRC32C"},
		{"size of a header less one", rewrite(enc, func(b []byte) { le.PutUint32(b[offSize:], HeaderBytes-1) }), ErrCorrupt, "size field"},
		{"size beyond the limit", rewrite(enc, func(b []byte) { le.PutUint32(b[offSize:], MaxBatchBytes+1) }), ErrCorrupt, "size field"},
		{"size of a lie", rewrite(enc, func(b []byte) { le.PutUint32(b[offSize:], MaxBatchBytes) }), ErrTruncated, ""},
		{"no records", rewrite(enc, func(b []byte) { le.PutUint32(b[offRecords:], 0) }), ErrCorrupt, "record count 0"},
		{"too many records", rewrite(enc, func(b []byte) { le.PutUint32(b[offRecords:], MaxRecords+1) }), ErrCorrupt, "record count"},
		{"another record count", rewrite(enc, func(b []byte) { le.PutUint32(b[offRecords:], 101) }), ErrCorrupt, "header describes"},
		{"payload of a lie", rewrite(enc, func(b []byte) { le.PutUint32(b[offPayload:], 1<<31) }), ErrCorrupt, "header describes"},
		{"compressed, they say", rewrite(enc, func(b []byte) { b[offCompression] = 1 }), ErrCompressed, "s2"},
		{"unknown compression", rewrite(enc, func(b []byte) { b[offCompression] = 3 }), ErrFeatures, "compression 3"},
		{"width 8", rewrite(enc, func(b []byte) { b[offWidths] = 8 }), ErrCorrupt, "value length column has an unknown width"},
		{"lengths of 64 bits", rewrite(enc, func(b []byte) { b[offWidths] = 7 }), ErrCorrupt, "more than 32 bits"},
		{"keys of 64 bits", rewrite(enc, func(b []byte) { b[offWidths] |= 0x70 }), ErrCorrupt, "key length column"},
		{"block times without their feature", rewrite(late, func(b []byte) { b[offFeatures] = 0 }), ErrCorrupt, "block time column is used"},
		{"a step without its feature", rewrite(plain, func(b []byte) { b[offMinStep] = 1 }), ErrCorrupt, "smallest step"},
		{"times of width 15", rewrite(enc, func(b []byte) { b[offWidths+2] |= 15 }), ErrCorrupt, "timestamp column"},
		{"block times of width 15", rewrite(enc, func(b []byte) { b[offWidths+2] |= 0xf0 }), ErrCorrupt, "block time column"},
		{"attributes of 4 bits", rewrite(enc, func(b []byte) { b[offWidths+1] |= 0x30 }), ErrCorrupt, "attribute column"},
		{"bits behind the last number", rewrite(odd, func(b []byte) { b[len(b)-1] |= 0x80 }), ErrCorrupt, "bits behind a column"},
		{"bits behind the last block time", rewrite(late, func(b []byte) { b[HeaderBytes+33+4] |= 0x80 }), ErrCorrupt, "bits behind the last block"},
		{"keys without their feature", rewrite(enc, func(b []byte) { b[offFeatures] &^= featureKeys }), ErrCorrupt, "feature bit"},
		{"attributes without their feature", rewrite(enc, func(b []byte) { b[offFeatures] &^= featureAttributes }), ErrCorrupt, "feature bit"},
		{"unknown attribute", rewrite(enc, func(b []byte) { b[offMinAttr] = 4 }), ErrCorrupt, "unknown attribute"},
		{"key bytes without a key", rewrite(enc, func(b []byte) { b[offMinAttr] = 0 }), ErrCorrupt, "no key"},
		{"value bytes without a value", rewrite(enc, func(b []byte) { b[offMinAttr] = 3 }), ErrCorrupt, "no value"},
		{"greater smallest length", rewrite(plain, func(b []byte) { le.PutUint32(b[offMinValue:], 1) }), ErrCorrupt, "checkpoint of record 32"},
		{"vast smallest length", rewrite(plain, func(b []byte) { le.PutUint32(b[offMinValue:], math.MaxUint32) }), ErrCorrupt, "checkpoint of record 32"},
		{"checkpoint off by one", rewrite(plain, func(b []byte) { b[starts]++ }), ErrCorrupt, "checkpoint of record 32"},
		{"longer last record", rewrite(plain, func(b []byte) { b[len(b)-1]++ }), ErrCorrupt, "payload has"},
		{"shorter last record", rewrite(plain, func(b []byte) { b[len(b)-1]-- }), ErrCorrupt, "payload has"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := Open(tc.in); !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
}

// No feature bit that this version does not know is overlooked, by whoever reads.
func TestUnknownFeaturesAreRefused(t *testing.T) {
	enc := encode(t, 1000, Record{Key: []byte("k"), Value: []byte("v")})
	d := newDecoder(t, 1<<16)
	for bit := range 16 {
		b := rewrite(enc, func(b []byte) { b[offFeatures+bit/8] |= 1 << (bit % 8) })
		want := 1<<bit&knownFeatures == 0
		_, open := Open(b)
		_, decode := d.Open(b)
		_, check := Check(b)
		_, size := Size(b)
		for _, err := range []error{open, decode, check, size} {
			if errors.Is(err, ErrFeatures) != want {
				t.Errorf("feature bit %d: %v", bit, err)
			}
		}
	}
}

func flip(enc []byte, at int) []byte {
	b := bytes.Clone(enc)
	b[at] ^= 0x10
	return b
}

// Every single flipped bit is noticed, but for the base offset's.
func TestEveryFlippedBitIsNoticed(t *testing.T) {
	enc := encode(t, 1000, Record{Key: []byte("k"), Value: []byte("value"), Timestamp: 9}, Record{Value: []byte("v")})
	for bit := range 8 * len(enc) {
		if at := bit / 8; at >= offBase && at < offBase+8 {
			continue
		}
		b := bytes.Clone(enc)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := Open(b); err == nil {
			t.Errorf("bit %d flipped and not noticed", bit)
		}
	}
}

var update = flag.Bool("update", false, "write testdata/*.hex anew")

// goldenBatches are written out byte by byte in testdata, so that a change of
// the format cannot pass unnoticed. docs/BATCH-FORMAT.md explains the first.
func goldenBatches() map[string][]Record {
	var many []Record
	for i := range 40 {
		many = append(many, Record{Value: bytes.Repeat([]byte{byte('a' + i%26)}, i%5), Timestamp: 1_700_000_000_000 - int64(i)})
	}
	return map[string][]Record{
		"two-records": {
			{Value: []byte("hello"), Timestamp: 1_700_000_000_000},
			{Value: []byte("millrace"), Timestamp: 1_700_000_000_003},
		},
		"constant": {{Value: []byte("same"), Timestamp: 1}, {Value: []byte("size"), Timestamp: 1}},
		"rich": {
			{Key: []byte("k1"), Value: []byte("with a key"), Timestamp: 1_700_000_000_000, Headers: AppendHeader(nil, "h", []byte("x"))},
			{Key: []byte{}, Value: []byte("with an empty key"), Timestamp: 1_700_000_000_000},
			{Value: []byte("without"), Timestamp: 1_700_000_000_700},
			{Key: []byte("k1"), Timestamp: 1_700_000_000_001},
		},
		"checkpoint": many,
	}
}

func TestGolden(t *testing.T) {
	for name, rs := range goldenBatches() {
		t.Run(name, func(t *testing.T) {
			enc := encode(t, 1<<16, rs...)
			if *update {
				if err := os.WriteFile(filepath.Join("testdata", name+".hex"), []byte(hexLines(enc)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want := golden(t, name)
			if !bytes.Equal(enc, want) {
				t.Errorf("encoded as\n%swant\n%s", hexLines(enc), hexLines(want))
			}
			b, err := Open(want)
			if err != nil {
				t.Fatal(err)
			}
			checkBatch(t, &b, rs)
		})
	}
}

// golden is the bytes in testdata.
func golden(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A batch as version 1 wrote it is refused by everybody who reads, and the error
// says what to do.
func TestVersion1IsRefused(t *testing.T) {
	old := golden(t, "version-1")
	d := newDecoder(t, 1<<16)
	for name, open := range map[string]func([]byte) (Batch, error){"Open": Open, "OpenTrusted": OpenTrusted, "Decoder": d.Open} {
		if _, err := open(old); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Check(old); !errors.Is(err, ErrVersion) {
		t.Errorf("Check: %v", err)
	}
	if _, err := Size(old); !errors.Is(err, ErrVersion) {
		t.Errorf("Size: %v", err)
	}
}

func hexLines(b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		n := min(16, len(b))
		fmt.Fprintf(&s, "% x\n", b[:n])
		b = b[n:]
	}
	return s.String()
}

func TestNoAllocations(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	room := make([]byte, 1<<20)
	for _, s := range shapes[:3] {
		rs := s.records(rng, 100)
		testNoAllocations(t, s.name, room, rs)
	}
	testNoAllocations(t, "headers", room, shapes[len(shapes)-1].records(rng, 100))
}

func testNoAllocations(t *testing.T, name string, room []byte, rs []Record) {
	t.Helper()
	b, err := NewBuilder(len(rs))
	if err != nil {
		t.Fatal(err)
	}
	var enc []byte
	encodeAll := func() {
		b.Reset(room)
		for i := range rs {
			if err := b.Append(&rs[i]); err != nil {
				t.Fatal(err)
			}
		}
		enc = b.Finish()
	}
	encodeAll() // the arrays for keys and headers
	if n := testing.AllocsPerRun(50, encodeAll); n != 0 {
		t.Errorf("%s: %v allocations to encode", name, n)
	}
	var sum int
	if n := testing.AllocsPerRun(50, func() {
		batch, err := Open(enc)
		if err != nil {
			t.Fatal(err)
		}
		c := batch.Cursor()
		for c.Next() {
			sum += len(c.Value()) + len(c.Record().Key)
		}
		for i, r := range batch.All() {
			sum += i + len(r.Value) + len(batch.Key(i)) + len(batch.Headers(i))
		}
		for v := range batch.Values() {
			sum += len(v)
		}
	}); n != 0 {
		t.Errorf("%s: %v allocations to read", name, n)
	}
}
