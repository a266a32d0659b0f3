package batcher

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loopSink is a link and its loop for tests with goroutines: it answers batches
// some cycles later, refuses now and then, and keeps a log.
type loopSink struct {
	t       testing.TB
	b       *Batcher
	rng     *rand.Rand
	flight  []sentBatch
	log     [][]byte // values in log order
	stalled bool
}

func (s *loopSink) SendBatch(id uint64, buf *hugepages.Buf, records int) error {
	if s.rng.IntN(10) == 0 {
		s.stalled = true
		return ErrBackpressure
	}
	s.flight = append(s.flight, sentBatch{id, buf, records})
	return nil
}

// poll answers and makes room, as a poll of the link would.
func (s *loopSink) poll() {
	if s.stalled && s.rng.IntN(2) == 0 {
		s.stalled = false
		s.b.Writable()
	}
	for len(s.flight) > 0 && s.rng.IntN(3) > 0 {
		x := s.flight[0]
		s.flight = s.flight[1:]
		batch, err := serialize.Open(x.buf.Bytes())
		if err != nil {
			s.t.Error(err)
		}
		base := int64(len(s.log))
		for _, r := range batch.All() {
			s.log = append(s.log, bytes.Clone(r.Value))
		}
		x.buf.Release()
		if err := s.b.Done(x.id, base, nil); err != nil {
			s.t.Error(err)
		}
	}
}

// testLoop drives an inbox on a goroutine of its own: it sleeps until woken.
type testLoop struct {
	in    *Inbox
	b     *Batcher
	sink  *loopSink
	wake  chan struct{}
	wakes atomic.Int64
	do    chan func()
	idle  chan struct{} // closed when the inbox was closed and is idle
}

func startTestLoop(t *testing.T, o Options, io InboxOptions, seed uint64) *testLoop {
	t.Helper()
	if o.Pool == nil {
		o.Pool = newPool(t, 8<<20)
	}
	l := &testLoop{
		sink: &loopSink{t: t, rng: rand.New(rand.NewPCG(seed, 2))}, wake: make(chan struct{}, 1), do: make(chan func()), idle: make(chan struct{}),
	}
	var err error
	if l.b, err = New(o, l.sink); err != nil {
		t.Fatal(err)
	}
	l.sink.b = l.b
	io.Wake = func() {
		l.wakes.Add(1)
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	if l.in, err = NewInbox(l.b, io); err != nil {
		t.Fatal(err)
	}
	go l.run()
	return l
}

func (l *testLoop) run() {
	defer close(l.idle)
	for now := int64(1); ; now++ {
		l.sink.poll()
		l.in.Drain(now, 200)
		l.b.Flush(now)
		if l.in.closing && l.in.Idle() && len(l.sink.flight) == 0 {
			return
		}
		if len(l.sink.flight) > 0 || l.sink.stalled {
			select {
			case f := <-l.do:
				f()
			case <-l.wake:
			default:
			}
			continue
		}
		select { // asleep: nothing but a wake-up brings it back
		case <-l.wake:
		case f := <-l.do:
			f()
		}
	}
}

func (l *testLoop) close(t *testing.T) {
	t.Helper()
	l.do <- func() { l.in.Close(1 << 60) }
	select {
	case <-l.idle:
	case <-time.After(20 * time.Second):
		t.Fatal("the inbox does not come to rest")
	}
}

// mailbox is a Completer that a producer's goroutine reads: order and offsets
// are checked on the loop's goroutine, the count is shared.
type mailbox struct {
	t       testing.TB
	next    uint64
	offsets []int64
	done    atomic.Uint64
}

func (m *mailbox) Complete(token uint64, offset int64, err error) {
	if err != nil || token != m.next {
		m.t.Errorf("completion of %d: %v; want %d", token, err, m.next)
	}
	m.next++
	m.offsets = append(m.offsets, offset)
	m.done.Add(1)
}

// Many producers, small bounds, a sink that refuses: every record is in the log
// once, each producer's in its order, and its completions say where.
func TestInboxManyProducers(t *testing.T) {
	const producers, each = 8, 3000
	l := startTestLoop(t, Options{MaxBatchBytes: 4096, MaxQueuedBytes: 16 << 10, MaxBatches: 4, MaxBatchRecords: 64, MaxQueuedRecords: 200},
		InboxOptions{}, 1)
	boxes := make([]*mailbox, producers)
	var wg sync.WaitGroup
	for i := range producers {
		boxes[i] = &mailbox{t: t}
		p, err := l.in.Producer(boxes[i])
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(3, uint64(i)))
			v := make([]byte, 2048)
			for k := 0; k < each; {
				binary.BigEndian.PutUint32(v, uint32(i))
				binary.BigEndian.PutUint32(v[4:], uint32(k))
				n := 8 + rng.IntN(100)
				if rng.IntN(50) == 0 {
					n = 8 + rng.IntN(2000)
				}
				switch err := p.Append(&serialize.Record{Value: v[:n], Timestamp: int64(k)}, uint64(k)); {
				case err == nil:
					k++
				case errors.Is(err, ErrFull):
					if err := p.Wait(context.Background()); err != nil {
						t.Error(err)
						return
					}
				default:
					t.Error(err)
					return
				}
			}
			if i%2 == 0 {
				p.Close()
				if err := p.Append(&serialize.Record{}, 0); !errors.Is(err, ErrClosed) {
					t.Errorf("append after Close: %v", err)
				}
			}
		})
	}
	wg.Wait()
	l.close(t)
	next := make([]uint32, producers)
	for off, v := range l.sink.log {
		i, k := binary.BigEndian.Uint32(v), binary.BigEndian.Uint32(v[4:])
		if k != next[i] {
			t.Fatalf("offset %d has record %d of producer %d, want %d", off, k, i, next[i])
		}
		if boxes[i].offsets[k] != int64(off) {
			t.Fatalf("record %d of producer %d was told offset %d, it is at %d", k, i, boxes[i].offsets[k], off)
		}
		next[i]++
	}
	if len(l.sink.log) != producers*each {
		t.Fatalf("%d records in the log, want %d", len(l.sink.log), producers*each)
	}
	if w := l.wakes.Load(); w >= producers*each {
		t.Errorf("%d wake-ups for %d records", w, producers*each)
	}
	if _, err := l.in.Producer(&counter{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a producer after Close: %v", err)
	}
}

// Producers append while the inbox closes: whatever was taken completes.
func TestInboxCloseUnderFire(t *testing.T) {
	for seed := range uint64(20) {
		l := startTestLoop(t, Options{MaxBatchBytes: 1024, MaxBatchRecords: 16}, InboxOptions{}, seed)
		boxes := make([]*mailbox, 4)
		taken := make([]uint64, 4)
		var wg sync.WaitGroup
		for i := range boxes {
			boxes[i] = &mailbox{t: t}
			p, err := l.in.Producer(boxes[i])
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				for {
					err := p.Append(&serialize.Record{Value: []byte("under fire")}, taken[i])
					if errors.Is(err, ErrFull) {
						err = p.Wait(context.Background())
					} else if err == nil {
						taken[i]++
					}
					if errors.Is(err, ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		time.Sleep(time.Millisecond)
		l.close(t)
		wg.Wait()
		for i, m := range boxes {
			if m.done.Load() != taken[i] {
				t.Fatalf("seed %d: producer %d had %d records taken, %d completed", seed, i, taken[i], m.done.Load())
			}
		}
	}
}

// handRig is an inbox driven by hand, on one goroutine.
func handRig(t *testing.T, o Options) (*rig, *Inbox, *int) {
	r := newRig(t, o)
	wakes := new(int)
	in, err := NewInbox(r.b, InboxOptions{Wake: func() { *wakes++ }})
	if err != nil {
		t.Fatal(err)
	}
	return r, in, wakes
}

func TestInboxWakesOncePerBurst(t *testing.T) {
	r, in, wakes := handRig(t, Options{})
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	token := uint64(0)
	burst := func(n int) {
		for range n {
			if err := p.Append(&serialize.Record{Value: []byte("0123456789")}, token); err != nil {
				t.Fatal(err)
			}
			token++
		}
	}
	burst(100)
	if *wakes != 1 {
		t.Fatalf("%d wake-ups for a burst", *wakes)
	}
	if n := in.Drain(1, 64); n != 64 || *wakes != 2 {
		t.Fatalf("drained %d within budget, %d wake-ups; want another for the rest", n, *wakes)
	}
	if n := in.Drain(1, 1000); n != 36 || *wakes != 2 {
		t.Fatalf("drained %d, %d wake-ups", n, *wakes)
	}
	r.b.Flush(1)
	r.want("[100]")
	burst(1)
	if *wakes != 3 {
		t.Fatalf("%d wake-ups, want one for the next burst", *wakes)
	}
	in.Drain(1, 10)
	r.b.Flush(1)
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
}

func TestInboxBackpressureReachesTheProducer(t *testing.T) {
	r, in, wakes := handRig(t, Options{MaxBatchBytes: 512, MaxQueuedBytes: 1000, MaxBatches: 2})
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	r.sink.refuse = ErrBackpressure
	rec := &serialize.Record{Key: []byte("key"), Value: make([]byte, 80), Headers: serialize.AppendHeader(nil, "h", nil)}
	taken := uint64(0)
	for ; ; taken++ {
		if err := p.Append(rec, taken); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		in.Drain(1, 1000)
		r.b.Flush(1)
		if taken > 1000 {
			t.Fatal("never full")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	r.sink.refuse = nil
	r.b.Writable()
	for r.led.next < taken {
		before := *wakes
		r.b.Flush(1)
		if len(r.sink.batches) == 0 {
			t.Fatalf("%d of %d completed and nothing in flight", r.led.next, taken)
		}
		r.sink.answer(0, nil)
		if *wakes > before {
			in.Drain(1, 1000)
		}
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestInboxCloseDeadline(t *testing.T) {
	r, in, _ := handRig(t, Options{MaxBatchBytes: 512, MaxQueuedBytes: 512})
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 15 {
		if err := p.Append(&serialize.Record{Value: make([]byte, 70)}, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	in.Drain(1, 1000) // what fits
	r.b.Flush(1)
	in.Close(50)
	if in.Idle() || in.NextDeadline() != 50 {
		t.Fatalf("idle %v, deadline %d", in.Idle(), in.NextDeadline())
	}
	in.Drain(2, 1000)
	r.b.Flush(2)
	if r.led.next != 0 {
		t.Fatalf("%d completed", r.led.next)
	}
	in.Drain(50, 1000)
	r.b.Flush(50)
	if r.led.failed[ErrCloseTimeout] != 15 || !in.Idle() || in.NextDeadline() != 0 {
		t.Errorf("%v, idle %v, deadline %d", r.led.failed, in.Idle(), in.NextDeadline())
	}
	if err := p.Append(&serialize.Record{}, 15); !errors.Is(err, ErrClosed) {
		t.Errorf("append: %v", err)
	}
	r.sink.drop()
}

// The batcher is closed under its inbox: what is staged fails by name, after
// what was queued before.
func TestBatcherClosedUnderTheInbox(t *testing.T) {
	r, in, wakes := handRig(t, Options{})
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(10) {
		if err := p.Append(&serialize.Record{Value: []byte("0123456789")}, i); err != nil {
			t.Fatal(err)
		}
		if i == 4 {
			in.Drain(1, 100)
			r.b.Close(1000)
		}
	}
	in.Drain(2, 100)
	if r.led.next != 0 {
		t.Fatalf("%d completed before those in flight", r.led.next)
	}
	before := *wakes
	r.sink.answer(0, nil)
	if *wakes == before {
		t.Fatal("not woken when the queued records completed")
	}
	in.Drain(3, 100)
	if r.led.ok != 5 || r.led.failed[ErrClosed] != 5 || !in.Idle() {
		t.Errorf("%d completed, %v failed, idle %v", r.led.ok, r.led.failed, in.Idle())
	}
}

// Records pass the ring as they are, whatever their parts, across its end.
func TestProducerCarriesRecords(t *testing.T) {
	r, in, _ := handRig(t, Options{MaxBatchBytes: 4096})
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	part := func(n int) []byte {
		if rng.IntN(4) == 0 {
			return nil
		}
		return bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(n))
	}
	for i := range uint64(3000) {
		rec := serialize.Record{Key: part(50), Value: part(1500), Timestamp: rng.Int64()}
		if h := part(20); h != nil {
			rec.Headers = serialize.AppendHeader(nil, "header", h)
		}
		if err := p.Append(&rec, i); err != nil {
			t.Fatal(err)
		}
		in.Drain(1, 10)
		r.b.Flush(1)
		batch, err := serialize.Open(r.sink.batches[0].buf.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		got := batch.Record(0)
		if !bytes.Equal(got.Key, rec.Key) || !bytes.Equal(got.Value, rec.Value) || !bytes.Equal(got.Headers, rec.Headers) || got.Timestamp != rec.Timestamp ||
			(got.Key == nil) != (rec.Key == nil) || (got.Value == nil) != (rec.Value == nil) {
			t.Fatalf("record %d: %+v, want %+v", i, got, rec)
		}
		r.sink.answer(0, nil)
	}
	if err := p.Append(&serialize.Record{Value: make([]byte, 4096)}, 0); !errors.Is(err, serialize.ErrRecordTooLarge) {
		t.Errorf("record larger than a batch: %v", err)
	}
}

func TestInboxOptions(t *testing.T) {
	r := newRig(t, Options{})
	wake := func() {}
	for _, tc := range []struct {
		o    InboxOptions
		text string
	}{
		{InboxOptions{}, "Wake is missing"},
		{InboxOptions{Wake: wake, StagingBytes: 1000}, "StagingBytes 1000"},
		{InboxOptions{Wake: wake, StagingBytes: 1 << 40}, "at most"},
		{InboxOptions{Wake: wake, MaxProducers: -1}, "MaxProducers -1"},
	} {
		if _, err := NewInbox(r.b, tc.o); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%q: %v", tc.text, err)
		}
	}
	in, err := NewInbox(r.b, InboxOptions{Wake: wake, MaxProducers: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Producer(r.led); !errors.Is(err, ErrFull) {
		t.Errorf("a producer too many: %v", err)
	}
	p.Close()
	p.Close()
	in.Drain(1, 10)
	if _, err := in.Producer(r.led); err != nil {
		t.Errorf("a producer in the place of a closed one: %v", err)
	}
}
