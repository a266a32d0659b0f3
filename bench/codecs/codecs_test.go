package codecs

import (
	"fmt"
	"os"
	"testing"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/serialize"
)

// records are batches of n of the messages in the file that MILLRACE_BENCH_INPUT
// names, or of the sample's; one millisecond apart.
func records(t testing.TB, n int) (batches [][]serialize.Record, values int) {
	t.Helper()
	ms, err := messages.Load(os.Getenv("MILLRACE_BENCH_INPUT"), 0)
	if err != nil {
		t.Fatal(err)
	}
	for next := 0; next < len(ms) || len(batches) == 0; {
		var b []serialize.Record
		for range n {
			m := ms[next%len(ms)]
			next++
			b = append(b, serialize.Record{Value: m, Timestamp: 1_700_000_000_000 + int64(next)})
			values += len(m)
		}
		batches = append(batches, b)
	}
	return batches, values
}

func newCodec(t testing.TB, name string, o Options) Codec {
	t.Helper()
	o.Workers, o.MaxBytes = max(1, o.Workers), 64<<20
	c, err := New(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Sizes of the same records: the format's promise, on the sample and on whatever
// MILLRACE_BENCH_INPUT names.
func TestSizes(t *testing.T) {
	for _, how := range []serialize.Compression{serialize.None, serialize.S2, serialize.Zstd} {
		for _, n := range []int{100, 1000} {
			batches, values := records(t, n)
			size := map[string]int{}
			for _, name := range []string{Millrace, Kafka} {
				c := newCodec(t, name, Options{CRC: true, Compression: how})
				for _, b := range batches {
					enc, err := c.Encode(b)
					if err != nil {
						t.Fatal(err)
					}
					size[name] += len(enc)
					got, err := c.Visit(enc)
					want := 0
					for i := range b {
						want += len(b[i].Value)
					}
					if err != nil || got != want {
						t.Fatalf("%s: visited %d bytes of %d: %v", name, got, want, err)
					}
				}
			}
			per := func(name string) float64 { return float64(size[name]-values) / float64(n*len(batches)) }
			t.Logf("%s, batches of %d: overhead per record %.2f, kafka-v2 %.2f; whole %.3f of kafka-v2's", how, n, per(Millrace), per(Kafka), float64(size[Millrace])/float64(size[Kafka]))
			if how == serialize.None && (per(Millrace) > 3 || per(Millrace) > 0.6*per(Kafka)) {
				t.Errorf("batches of %d: overhead of %.2f bytes per record, kafka-v2 has %.2f", n, per(Millrace), per(Kafka))
			}
			if size[Millrace] > size[Kafka] {
				t.Errorf("%s, batches of %d: %d bytes, kafka-v2 has %d", how, n, size[Millrace], size[Kafka])
			}
		}
	}
}

func TestProtobuf(t *testing.T) {
	batches, _ := records(t, 100)
	for _, crc := range []bool{false, true} {
		c := newCodec(t, Protobuf, Options{CRC: crc})
		enc, err := c.Encode(batches[0])
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		for i := range batches[0] {
			want += len(batches[0][i].Value)
		}
		if got, err := c.Visit(enc); err != nil || got != want {
			t.Errorf("visited %d bytes of %d: %v", got, want, err)
		}
		if _, err := c.Visit(enc[:len(enc)-1]); err == nil {
			t.Error("a truncated batch passes")
		}
	}
}

func BenchmarkCodec(b *testing.B) {
	for _, n := range []int{100, 1000} {
		for _, name := range []string{Millrace, Kafka, Protobuf} {
			batches, values := records(b, n)
			for _, crc := range []bool{true, false} {
				c := newCodec(b, name, Options{CRC: crc})
				report := func(b *testing.B) {
					b.ReportAllocs()
					b.SetBytes(int64(values / len(batches)))
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
				}
				if crc {
					b.Run(fmt.Sprintf("encode/%s/%d", name, n), func(b *testing.B) {
						for i := 0; b.Loop(); i++ {
							if _, err := c.Encode(batches[i%len(batches)]); err != nil {
								b.Fatal(err)
							}
						}
						report(b)
					})
				}
				var encoded [][]byte
				for _, batch := range batches {
					enc, err := c.Encode(batch)
					if err != nil {
						b.Fatal(err)
					}
					encoded = append(encoded, append([]byte(nil), enc...))
				}
				b.Run(fmt.Sprintf("visit/crc=%t/%s/%d", crc, name, n), func(b *testing.B) {
					for i := 0; b.Loop(); i++ {
						if _, err := c.Visit(encoded[i%len(encoded)]); err != nil {
							b.Fatal(err)
						}
					}
					report(b)
				})
			}
		}
	}
}
