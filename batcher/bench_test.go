package batcher

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// Append to completion on one goroutine over a link that answers at once: with one
// message in a duty cycle, what the aggregator adds to a message on an idle link.
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

// aggregator is what the benchmarks compare: the inbox, and others as one writes
// them. append blocks while it is full.
type aggregator interface {
	producer() (appender, error)
	close()
}

type appender interface {
	append(r *serialize.Record, token uint64) error
	close()
}

// probe is the link of the benchmarks: it answers at once and notes when each
// record got there.
type probe struct {
	done   func(id uint64, base int64, err error) error
	next   int64
	onSend func(first int64, records int)
}

func (s *probe) SendBatch(id uint64, b *hugepages.Buf, records int) error {
	base := s.next
	s.next += int64(records)
	if s.onSend != nil {
		s.onSend(base, records)
	}
	b.Release()
	return s.done(id, base, nil)
}

// inboxLoop is the inbox on a loop of its own, which parks when it has nothing to
// do, or spins.
type inboxLoop struct {
	in      *Inbox
	x       *Batcher
	wake    chan struct{}
	spin    bool
	owner   sync.Mutex // held while it runs, or somebody in its place
	began   time.Time
	closing atomic.Bool
	ended   chan struct{}
}

func newInboxLoop(pool *hugepages.Pool, sink *probe, spin, lend bool) (*inboxLoop, error) {
	x, err := New(Options{Pool: pool}, sink)
	if err != nil {
		return nil, err
	}
	sink.done = x.Done
	l := &inboxLoop{x: x, wake: make(chan struct{}, 1), spin: spin, began: time.Now(), ended: make(chan struct{})}
	o := InboxOptions{Wake: func() {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}}
	if lend {
		o.Borrow = l.borrow
	}
	if l.in, err = NewInbox(x, o); err != nil {
		return nil, err
	}
	go l.run()
	return l, nil
}

func (l *inboxLoop) run() {
	defer close(l.ended)
	for {
		if !l.spin {
			<-l.wake
		}
		l.owner.Lock()
		now := int64(time.Since(l.began))
		if l.closing.Load() {
			l.in.Close(0)
			l.in.Drain(now)
			l.owner.Unlock()
			return
		}
		l.in.Drain(now)
		l.x.Flush(now)
		l.owner.Unlock()
		if l.spin {
			runtime.Gosched()
		}
	}
}

func (l *inboxLoop) borrow(send func(now int64, cheap bool) bool) bool {
	if !l.owner.TryLock() {
		return false
	}
	defer l.owner.Unlock()
	return send(int64(time.Since(l.began)), false)
}

func (l *inboxLoop) close() {
	l.closing.Store(true)
	l.in.opts.Wake()
	<-l.ended
}

type inboxAppender struct{ p *Producer }

func (l *inboxLoop) producer() (appender, error) {
	p, err := l.in.Producer(&counter{})
	return inboxAppender{p}, err
}
func (a inboxAppender) close() { a.p.Close() }
func (a inboxAppender) append(r *serialize.Record, token uint64) error {
	for {
		err := a.p.Append(r, token)
		if !errors.Is(err, ErrFull) {
			return err
		}
		if err := a.p.Wait(context.Background()); err != nil {
			return err
		}
	}
}

// channelTimer is the batcher that one writes first: a channel of records, a
// goroutine that encodes them, and a timer that limits how long they wait. With
// linger 0 it is a bare channel, which sends each record as it comes.
type channelTimer struct {
	records chan staged
	ended   chan struct{}
}

type staged struct {
	r     serialize.Record
	token uint64
}

func newChannelTimer(pool *hugepages.Pool, sink *probe, linger time.Duration) (*channelTimer, error) {
	builder, err := serialize.NewBuilder(defaultMaxBatchRecords)
	if err != nil {
		return nil, err
	}
	sink.done = func(uint64, int64, error) error { return nil }
	c := &channelTimer{records: make(chan staged, 8192), ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		buf, id := (*hugepages.Buf)(nil), uint64(0)
		send := func() {
			n := builder.Len()
			buf.Resize(len(builder.Finish()))
			id++
			_ = sink.SendBatch(id, buf, n)
			buf = nil
		}
		timer := time.NewTimer(time.Hour)
		for {
			select {
			case s, ok := <-c.records:
				if !ok {
					if buf != nil {
						send()
					}
					return
				}
				if buf == nil {
					if buf, err = pool.Get(defaultMaxBatchBytes, hugepages.Batch); err != nil {
						panic(err)
					}
					builder.Reset(buf.Bytes())
					if linger > 0 {
						timer.Reset(linger)
					}
				}
				if builder.Append(&s.r) != nil {
					send()
					if buf, err = pool.Get(defaultMaxBatchBytes, hugepages.Batch); err != nil {
						panic(err)
					}
					builder.Reset(buf.Bytes())
					if err := builder.Append(&s.r); err != nil {
						panic(err)
					}
				}
				if linger == 0 {
					send()
				}
			case <-timer.C:
				if buf != nil {
					send()
				}
			}
		}
	}()
	return c, nil
}

func (c *channelTimer) producer() (appender, error) { return c, nil }
func (c *channelTimer) append(r *serialize.Record, token uint64) error {
	c.records <- staged{*r, token} // the caller keeps the bytes: it need not copy them
	return nil
}

func (c *channelTimer) close() {
	if c.ended != nil {
		close(c.records)
		<-c.ended
		c.ended = nil
	}
}

// noClose keeps a producer's close from closing what all share.
type noClose struct{ appender }

func (noClose) close() {}

// channelLinger is short for such a batcher; 1 to 5 ms are usual.
const channelLinger = 100 * time.Microsecond

func eachAggregator(b *testing.B, f func(b *testing.B, make func(*hugepages.Pool, *probe) (aggregator, error)), more ...string) {
	kinds := map[string]func(*hugepages.Pool, *probe) (aggregator, error){
		"inbox":          func(p *hugepages.Pool, s *probe) (aggregator, error) { return newInboxLoop(p, s, false, true) },
		"inbox-woken":    func(p *hugepages.Pool, s *probe) (aggregator, error) { return newInboxLoop(p, s, false, false) },
		"inbox-spinning": func(p *hugepages.Pool, s *probe) (aggregator, error) { return newInboxLoop(p, s, true, false) },
		"channel-timer":  func(p *hugepages.Pool, s *probe) (aggregator, error) { return newChannelTimer(p, s, channelLinger) },
		"bare-channel":   func(p *hugepages.Pool, s *probe) (aggregator, error) { return newChannelTimer(p, s, 0) },
	}
	for _, name := range append([]string{"inbox", "channel-timer"}, more...) {
		b.Run(name, func(b *testing.B) { f(b, kinds[name]) })
	}
}

// Two producers on goroutines of their own and the loop on a third, messages of
// 128 B.
func BenchmarkTwoProducers(b *testing.B) {
	eachAggregator(b, func(b *testing.B, make func(*hugepages.Pool, *probe) (aggregator, error)) {
		sink := &probe{}
		a, err := make(newPool(b, 16<<20), sink)
		if err != nil {
			b.Fatal(err)
		}
		const producers = 2
		var wg sync.WaitGroup
		b.ReportAllocs()
		b.ResetTimer()
		for i := range producers {
			p, err := a.producer()
			if err != nil {
				b.Fatal(err)
			}
			if _, shared := p.(*channelTimer); shared {
				p = noClose{p}
			}
			n := b.N / producers
			if i == 0 {
				n += b.N % producers
			}
			wg.Go(func() {
				defer p.close()
				rec := serialize.Record{Value: value128[:]}
				for k := range n {
					if err := p.append(&rec, uint64(k)); err != nil {
						b.Error(err)
						return
					}
				}
				if x, ok := p.(inboxAppender); ok {
					<-x.p.Flush()
				}
			})
		}
		wg.Wait()
		a.close()
		b.StopTimer()
		if sink.next != int64(b.N) {
			b.Fatalf("%d of %d sent", sink.next, b.N)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mmsg/s")
	})
}

var value128 [128]byte

// From append to the link at a steady rate, one producer. The bare channel is what
// a hand-over to another goroutine costs in any case.
func BenchmarkLatency(b *testing.B) {
	for _, rate := range []int{1000, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("%d-per-s", rate), func(b *testing.B) {
			eachAggregator(b, func(b *testing.B, make_ func(*hugepages.Pool, *probe) (aggregator, error)) {
				began := time.Now()
				at := make([]int64, b.N)
				sink := &probe{onSend: func(first int64, records int) {
					now := int64(time.Since(began))
					for i := first; i < first+int64(records); i++ {
						at[i] = now - at[i]
					}
				}}
				a, err := make_(newPool(b, 16<<20), sink)
				if err != nil {
					b.Fatal(err)
				}
				p, err := a.producer()
				if err != nil {
					b.Fatal(err)
				}
				rec := serialize.Record{Value: value128[:]}
				began = time.Now()
				b.ResetTimer()
				for i := range b.N {
					due := int64(i) * int64(time.Second) / int64(rate)
					for int64(time.Since(began)) < due {
						if rate < 1_000_000 {
							runtime.Gosched()
						}
					}
					at[i] = due // a stall shows in all messages that it delays
					if err := p.append(&rec, uint64(i)); err != nil {
						b.Fatal(err)
					}
				}
				if x, ok := p.(inboxAppender); ok {
					<-x.p.Flush()
				}
				p.close()
				a.close()
				b.StopTimer()
				slices.Sort(at)
				b.ReportMetric(float64(at[b.N/2])/1e3, "p50-µs")
				b.ReportMetric(float64(at[b.N*99/100])/1e3, "p99-µs")
			}, "inbox-woken", "inbox-spinning", "bare-channel")
		})
	}
}
