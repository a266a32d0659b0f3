package broker_test

import (
	"errors"
	"testing"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// What a burst took of an elastic arena goes back to the system, also where a
// device of the transport uses the memory, and serving goes on.
func TestMemoryFollowsTheLoad(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			const limit = 64 << 20
			arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: limit, Elastic: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := arena.Close(); err != nil {
					t.Errorf("buffers leaked: %v", err)
				}
			})
			pool := hugepages.NewPool(arena)
			s := startServer(t, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}, Pool: pool})
			c := connect(t, broker.ClientConfig{URL: s.URLs()[0]})
			produce := func() {
				t.Helper()
				if _, err := c.Produce(within(t), "t", &serialize.Record{Value: make([]byte, 1<<20)}); err != nil {
					t.Fatal(err)
				}
			}
			look := func() (backed int, again bool) {
				t.Helper()
				again, err := broker.LookToTrim(s)
				if err != nil {
					t.Fatal(err)
				}
				return arena.BackedBytes(), again
			}
			produce()
			var burst []*hugepages.Buf
			for {
				b, err := pool.Get(1<<20, hugepages.Other)
				if errors.Is(err, hugepages.ErrExhausted) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				burst = append(burst, b)
			}
			if backed, again := look(); backed < limit*3/4 || !again {
				t.Errorf("%d bytes are backed where nearly all are in use; looks again: %v", backed, again)
			}
			for _, b := range burst {
				b.Release()
			}
			if backed, again := look(); backed > broker.TrimFloor || again {
				t.Errorf("%d bytes are backed when the burst is over, looks again: %v", backed, again)
			}
			produce()
		})
	}
}
