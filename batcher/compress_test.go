package batcher

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// decodingSink opens and answers every batch at once.
type decodingSink struct {
	t       *testing.T
	b       *Batcher
	decoder *serialize.Decoder
	values  []string
	plain   []bool // of each batch
	base    int64
}

func (s *decodingSink) SendBatch(id uint64, buf *hugepages.Buf, records int) error {
	defer buf.Release()
	info, err := serialize.Check(buf.Bytes())
	if err != nil || info.Records != records || info.Bytes != buf.Len() {
		s.t.Fatalf("batch %d of %d records and %d bytes: %+v, %v", id, records, buf.Len(), info, err)
	}
	batch, err := s.decoder.Open(buf.Bytes())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range batch.All() {
		s.values = append(s.values, string(r.Value))
	}
	s.plain = append(s.plain, info.Compression == serialize.None)
	s.base += int64(records)
	return s.b.Done(id, s.base-int64(records), nil)
}

func newDecodingSink(t *testing.T, how serialize.Compression, o Options) (*decodingSink, *Batcher) {
	s := &decodingSink{t: t}
	var err error
	if s.decoder, err = serialize.NewDecoder(1 << 20); err != nil {
		t.Fatal(err)
	}
	if o.Compressor, err = serialize.NewCompressor(how); err != nil {
		t.Fatal(err)
	}
	o.Pool = newPool(t, 4<<20)
	if s.b, err = New(o, s); err != nil {
		t.Fatal(err)
	}
	return s, s.b
}

// Batches are compressed when they close, whoever filled them, and hold what was
// appended, in its order.
func TestCompression(t *testing.T) {
	for _, how := range []serialize.Compression{serialize.S2, serialize.Zstd} {
		t.Run(how.String(), func(t *testing.T) {
			var counters Counters
			sink, b := newDecodingSink(t, how, Options{Counters: &counters})
			in, err := NewInbox(b, InboxOptions{Wake: func() {}})
			if err != nil {
				t.Fatal(err)
			}
			led := &ledger{t: t}
			p, err := in.Producer(led)
			if err != nil {
				t.Fatal(err)
			}
			value := func(i int) string { return fmt.Sprintf("a line of text like others, number %d", i) }
			for i := range 200 {
				rec := serialize.Record{Value: []byte(value(i))}
				if i/50%2 == 0 {
					err = p.Append(&rec, uint64(i))
				} else {
					err = b.Append(&rec, Completion{led, uint64(i)})
				}
				if err != nil {
					t.Fatal(err)
				}
				if i%50 == 49 {
					in.Drain(int64(i))
					b.Flush(int64(i))
				}
			}
			// One in a batch of its own is compressed as well.
			if err := b.Put(&serialize.Record{Value: make([]byte, 4<<10)}, Completion{led, 200}); err != nil {
				t.Fatal(err)
			}

			if len(sink.values) != 201 || led.ok != 201 {
				t.Fatalf("%d records arrived, %d completed, want 201", len(sink.values), led.ok)
			}
			for i, v := range sink.values[:200] {
				if v != value(i) {
					t.Fatalf("record %d is %q", i, v)
				}
			}
			if n, z := counters.Batches.Load(), counters.Compressed.Load(); n != 5 || z != n || counters.Records.Load() != 201 ||
				counters.Bytes.Load()*2 > counters.PlainBytes.Load() {
				t.Errorf("%d batches, %d compressed, %d records, %d of %d bytes", n, z, counters.Records.Load(), counters.Bytes.Load(), counters.PlainBytes.Load())
			}
			in.Close(0)
			in.Drain(1)
		})
	}
}

// What does not shrink leaves as it is, and is tried less and less often, until it
// does shrink again.
func TestCompressionGivesUpOnNoise(t *testing.T) {
	var counters Counters
	sink, b := newDecodingSink(t, serialize.S2, Options{Counters: &counters})
	led := &ledger{t: t}
	rng := rand.New(rand.NewPCG(1, 2))
	tries, token := 0, uint64(0)
	send := func(v []byte) {
		before := b.compressing.skip
		if err := b.Append(&serialize.Record{Value: v}, Completion{led, token}); err != nil {
			t.Fatal(err)
		}
		token++
		b.Flush(int64(token))
		if before == 0 {
			tries++
		}
	}
	noise := make([]byte, 2000)
	for range 1000 {
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		send(noise)
	}
	// 1 + 1, 1 + 2, 1 + 4 … 1 + 64, and then each 65th.
	if tries < 15 || tries > 25 {
		t.Errorf("%d of 1000 batches of noise were tried, want about 20", tries)
	}
	if counters.Compressed.Load() != 0 || counters.Bytes.Load() != counters.PlainBytes.Load() {
		t.Errorf("%d batches of noise shrank", counters.Compressed.Load())
	}
	for range 2*maxCompressSkips + 10 {
		send(make([]byte, 2000))
	}
	if n := counters.Compressed.Load(); n < maxCompressSkips {
		t.Errorf("%d batches of zeros were compressed", n)
	}
	// Small ones are not worth a try.
	sink.plain = nil
	send(make([]byte, 100))
	if len(sink.plain) != 1 || !sink.plain[0] {
		t.Errorf("a small batch was compressed: %v", sink.plain)
	}
	b.Close(0)
}
