package broker_test

import (
	"context"
	"testing"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/serialize"
)

// window lets only so many messages be without an answer.
type window struct {
	room   chan struct{} // of 1: half of it is free again
	size   int
	done   int // since room was told
	failed error
}

func (w *window) Complete(_ uint64, _ int64, err error) {
	if err != nil {
		w.failed = err
	}
	if w.done++; w.done == w.size/2 {
		w.done = 0
		w.room <- struct{}{}
	}
}

// Client → proxy → broker and back in one process, 128 B, 4096 messages in flight.
// For profiles; the bench command has a process for each role.
func BenchmarkProduce(b *testing.B) {
	for _, scheme := range schemes {
		for _, mode := range []struct {
			name  string
			batch batcher.Options
		}{{"aggregated", batcher.Options{}}, {"single", batcher.Options{MaxBatchRecords: 1, MaxBatchBytes: 16 << 10, MaxBatches: 4096}}} {
			b.Run(scheme+"/"+mode.name, func(b *testing.B) {
				s := startServer(b, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}})
				p := startProxy(b, broker.ProxyConfig{Broker: s.URLs()[0], Batch: mode.batch})
				c := connect(b, broker.ClientConfig{URL: p.URLs()[0], Batch: mode.batch})
				w := &window{room: make(chan struct{}, 2), size: 4096}
				out, err := c.Producer("bench", w)
				if err != nil {
					b.Fatal(err)
				}
				r := serialize.Record{Value: make([]byte, 128)}
				ctx := context.Background()
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					if i > w.size/2 && i%(w.size/2) == 0 {
						<-w.room
					}
					if err := out.Append(ctx, &r, uint64(i)); err != nil {
						b.Fatal(err)
					}
				}
				if err := out.Flush(ctx); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if w.failed != nil {
					b.Fatal(w.failed)
				}
				out.Close()
			})
		}
	}
}

// A topic of a million messages read again and again through a proxy.
func BenchmarkConsume(b *testing.B) {
	const stored = 1_000_000
	for _, scheme := range schemes {
		b.Run(scheme, func(b *testing.B) {
			s := startServer(b, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}})
			p := startProxy(b, broker.ProxyConfig{Broker: s.URLs()[0]})
			c := connect(b, broker.ClientConfig{URL: p.URLs()[0]})
			out, err := c.Producer("bench", new(counted))
			if err != nil {
				b.Fatal(err)
			}
			r := serialize.Record{Value: make([]byte, 128)}
			for i := range uint64(stored) {
				if err := out.Append(context.Background(), &r, i); err != nil {
					b.Fatal(err)
				}
			}
			if err := out.Flush(context.Background()); err != nil {
				b.Fatal(err)
			}
			out.Close()
			b.SetBytes(int64(len(r.Value)))
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; {
				err := c.Consume(context.Background(), "bench", 0, func(offset uint64, r *serialize.Record) error {
					if n++; n == b.N || offset == stored-1 {
						return broker.ErrStop
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type counted struct{ n int }

func (c *counted) Complete(uint64, int64, error) { c.n++ }
