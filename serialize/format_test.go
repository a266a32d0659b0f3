package serialize

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// byTheBook reads an uncompressed batch as docs/BATCH-FORMAT.md describes it, number
// by number, with none of the package's code: where the two differ, the document or
// the package is wrong. Nil if the parts are not where the document has them.
func byTheBook(b []byte) []Record {
	le := binary.LittleEndian
	n, payload := int(le.Uint32(b[24:])), int(le.Uint32(b[28:]))
	features, baseTime, leastStep := le.Uint16(b[18:]), int64(le.Uint64(b[32:])), int64(le.Uint64(b[56:]))
	at := 64 + payload
	// next reads the column that follows: count numbers of a width by its code.
	next := func(count int, code byte, least uint64) []uint64 {
		width := 0
		if code > 0 {
			width = 1 << (code - 1)
		}
		numbers := make([]uint64, count)
		for i := range numbers {
			for k := range width {
				bit := i*width + k
				numbers[i] |= uint64(b[at+bit/8]>>(bit%8)&1) << k
			}
			numbers[i] += least
		}
		at += (count*width + 7) / 8
		return numbers
	}
	checkpoints := next((n-1)/32, 6, 0)
	starts := next((n+31)/32, b[54]>>4, uint64(baseTime))
	values := next(n, b[52]&15, uint64(le.Uint32(b[40:])))
	keys := next(n, b[52]>>4, uint64(le.Uint32(b[44:])))
	headers := next(n, b[53]&15, uint64(le.Uint32(b[48:])))
	times := next(n, b[54]&15, 0)
	attributes := next(n, b[53]>>4, uint64(b[55]))
	if at != len(b) {
		return nil
	}
	rs := make([]Record, n)
	from := 64
	cut := func(bytes uint64) []byte {
		p := b[from : from+int(bytes)]
		from += len(p)
		return p
	}
	for i := range rs {
		if i > 0 && i%32 == 0 && uint64(from-64) != checkpoints[i/32-1] {
			return nil
		}
		r := &rs[i]
		if key := cut(keys[i]); attributes[i]&1 != 0 {
			r.Key = key
		}
		if value := cut(values[i]); attributes[i]&2 == 0 {
			r.Value = value
		}
		r.Headers = cut(headers[i])
		switch {
		case features&8 == 0:
			r.Timestamp = baseTime + int64(times[i])
		case i%32 == 0:
			r.Timestamp = int64(starts[i/32])
		default:
			r.Timestamp = rs[i-1].Timestamp + leastStep + int64(times[i])
		}
	}
	return rs
}

// crcByTheBook is CRC32C bit by bit.
func crcByTheBook(crc uint32, p []byte) uint32 {
	crc = ^crc
	for _, v := range p {
		crc ^= uint32(v)
		for range 8 {
			crc = crc>>1 ^ 0x82f63b78&-(crc&1)
		}
	}
	return ^crc
}

// What the package writes is what the document says, whatever the records.
func TestFormatIsAsDocumented(t *testing.T) {
	rng := rand.New(rand.NewPCG(41, 42))
	for _, s := range shapes {
		for _, n := range []int{1, 2, 7, 31, 32, 33, 65, 100} {
			rs := s.records(rng, n)
			enc := encode(t, HeaderBytes+payloadBytes(rs)+30*n, rs...)
			got := byTheBook(enc)
			if len(got) != n {
				t.Fatalf("%s, %d records: the parts do not lie where the document says", s.name, n)
			}
			for i := range got {
				if !sameRecord(got[i], rs[i]) {
					t.Fatalf("%s, record %d of %d: %s, want %s", s.name, i, n, show(got[i]), show(rs[i]))
				}
			}
			if want := crcByTheBook(crcByTheBook(0, enc[64:]), enc[16:64]); binary.LittleEndian.Uint32(enc[4:]) != want {
				t.Fatalf("%s, %d records: checksum %x, want %08x", s.name, n, enc[4:8], want)
			}
		}
	}
}

// The document's example is the golden batch, byte for byte.
func TestDocumentedExample(t *testing.T) {
	text, err := os.ReadFile("../docs/BATCH-FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(text), "\n## An example\n")
	if !ok {
		t.Fatal("the document has no example")
	}
	var got []byte
	for line := range strings.Lines(example) {
		if line, ok = strings.CutPrefix(line, "    "); !ok {
			continue
		}
		digits, _, _ := strings.Cut(line, "  ") // what they mean
		b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b...)
	}
	if want := golden(t, "two-records"); !bytes.Equal(got, want) {
		t.Errorf("the document has\n%swant\n%s", hexLines(got), hexLines(want))
	}
}
