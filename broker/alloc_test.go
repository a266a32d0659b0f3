//go:build !race && !invariants

package broker_test

import (
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/serialize"
)

type countdown struct {
	left   atomic.Int64
	failed atomic.Value
	done   chan struct{}
}

func (c *countdown) Complete(_ uint64, _ int64, err error) {
	if err != nil {
		c.failed.Store(err)
	}
	if c.left.Add(-1) == 0 {
		c.done <- struct{}{}
	}
}

// A message allocates nothing on its way from a producer through a proxy into the
// log and back, in any of the three processes, which are one here; a batch may.
func TestProduceAllocatesNothingPerMessage(t *testing.T) {
	const n = 20_000
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			s := startServer(t, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}})
			p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0]})
			for _, c := range []struct {
				name  string
				batch batcher.Options
				most  float64 // allocations per message
			}{
				{"aggregated", batcher.Options{}, 0.02},
				{"each a request of its own", batcher.Options{MaxBatchRecords: 1, MaxBatchBytes: 16 << 10, MaxBatches: 1024}, 0.1},
			} {
				client := connect(t, broker.ClientConfig{URL: p.URLs()[0], Batch: c.batch})
				done := &countdown{done: make(chan struct{}, 1)}
				out, err := client.Producer("allocations", done)
				if err != nil {
					t.Fatal(err)
				}
				ctx := within(t)
				r := serialize.Record{Value: make([]byte, 128)}
				burst := func() {
					done.left.Store(n)
					for i := range n {
						if err := out.Append(ctx, &r, uint64(i)); err != nil {
							t.Fatal(err)
						}
					}
					<-done.done
				}
				burst() // what is allocated once
				burst()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				burst()
				runtime.ReadMemStats(&after)
				got := float64(after.Mallocs-before.Mallocs) / n
				t.Logf("%s: %.4f allocations per message", c.name, got)
				if got > c.most {
					t.Errorf("%s: %.4f allocations per message, want at most %v", c.name, got, c.most)
				}
				if err := done.failed.Load(); err != nil {
					t.Error(err)
				}
				out.Close()
			}
		})
	}
}
