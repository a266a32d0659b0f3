package batcher

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/serialize"
)

// Append to completion on one goroutine over a link that answers at once.
func BenchmarkAppend(b *testing.B) {
	for _, perCycle := range []int{1, 100} {
		b.Run(map[int]string{1: "alone", 100: "hundreds"}[perCycle], func(b *testing.B) {
			sink := &echoSink{}
			x, err := New(Options{Pool: newPool(b, 4<<20)}, sink)
			if err != nil {
				b.Fatal(err)
			}
			sink.b = x
			c := &counter{}
			rec := serialize.Record{Value: make([]byte, 128)}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if err := x.Append(&rec, Completion{c, uint64(i)}); err != nil {
					b.Fatal(err)
				}
				if i%perCycle == 0 {
					x.Flush(int64(i))
				}
			}
			x.Flush(int64(b.N))
			if c.ok != b.N {
				b.Fatalf("%d of %d completed", c.ok, b.N)
			}
		})
	}
}

// Two producers on goroutines of their own and the loop on a third.
func BenchmarkInbox(b *testing.B) {
	sink := &echoSink{}
	x, err := New(Options{Pool: newPool(b, 4<<20)}, sink)
	if err != nil {
		b.Fatal(err)
	}
	sink.b = x
	wake := make(chan struct{}, 1)
	in, err := NewInbox(x, InboxOptions{Wake: func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	const producers = 2
	c := &counter{}
	var wg sync.WaitGroup
	var failed atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	for i := range producers {
		p, err := in.Producer(c)
		if err != nil {
			b.Fatal(err)
		}
		n := b.N / producers
		if i == 0 {
			n += b.N % producers
		}
		wg.Go(func() {
			rec := serialize.Record{Value: make([]byte, 128)}
			for k := 0; k < n; {
				err := p.Append(&rec, uint64(k))
				if err == nil {
					k++
				} else if !errors.Is(err, ErrFull) || p.Wait(context.Background()) != nil {
					failed.Add(1)
					return
				}
			}
		})
	}
	for now := int64(1); c.ok < b.N; now++ {
		if in.Drain(now, 4096) == 0 {
			<-wake
		}
		x.Flush(now)
	}
	wg.Wait()
	b.StopTimer()
	in.Close(1)
	in.Drain(2, 1)
	if failed.Load() > 0 {
		b.Fatal("a producer failed")
	}
}
