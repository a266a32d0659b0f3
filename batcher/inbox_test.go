package batcher

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
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
	owner sync.Mutex // held but while it sleeps, as a loop's is
	now   int64
	lent  int
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
	io.Borrow = func(send func(int64, bool) bool) bool {
		if !l.owner.TryLock() {
			return false
		}
		defer l.owner.Unlock()
		l.now += aloneNanos
		if !send(l.now, seed%2 == 0) {
			return false
		}
		l.lent++
		if len(l.sink.flight) > 0 || l.sink.stalled {
			io.Wake() // to answer
		}
		return true
	}
	if l.in, err = NewInbox(l.b, io); err != nil {
		t.Fatal(err)
	}
	l.owner.Lock()
	go l.run()
	return l
}

func (l *testLoop) run() {
	defer close(l.idle)
	defer l.owner.Unlock()
	for ; ; l.now++ {
		l.sink.poll()
		l.in.Drain(l.now)
		l.b.Flush(l.now)
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
		if at := l.in.NextDeadline(); at > l.now && at < l.now+int64(time.Minute) {
			time.Sleep(10 * time.Microsecond)
			l.now = at - 1
			continue
		}
		l.owner.Unlock()
		f := func() {}
		select { // asleep: nothing but a wake-up brings it back
		case <-l.wake:
		case f = <-l.do:
		}
		l.owner.Lock()
		f()
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

// The columns of no batch take more than the room that is kept for them.
func TestColumnBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for n := 1; n < 300; n += 1 + n/10 {
		b, err := serialize.NewBuilder(n)
		if err != nil {
			t.Fatal(err)
		}
		payload := n*4 + 3<<16
		b.Reset(make([]byte, serialize.HeaderBytes+payload+columnBytes(n)))
		for i := range n {
			r := serialize.Record{Timestamp: rng.Int64() - rng.Int64(), Key: make([]byte, rng.IntN(2)), Headers: make([]byte, rng.IntN(2))}
			if i > 0 {
				r.Value = make([]byte, rng.IntN(2))
			} else { // lengths as wide as this payload allows
				r.Key, r.Value, r.Headers = make([]byte, 1<<16), make([]byte, 1<<16), make([]byte, 1<<16)
			}
			if rng.IntN(3) == 0 {
				r.Key = nil
			}
			if err := b.Append(&r); err != nil {
				t.Fatalf("record %d of %d: %v", i, n, err)
			}
		}
		if b.Finish() == nil {
			t.Fatal("no batch")
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
	r, in, wakes := handRig(t, Options{PartialInFlight: 1})
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
	if n := in.Drain(1); n != 100 {
		t.Fatalf("drained %d", n)
	}
	r.want("[100]")
	burst(1)
	if *wakes != 2 {
		t.Fatalf("%d wake-ups, want one for the next burst", *wakes)
	}
	if n := in.Drain(1); n != 0 {
		t.Fatalf("drained %d while the link is busy", n)
	}
	burst(10)
	if *wakes != 2 {
		t.Fatalf("%d wake-ups, want none while the link is busy", *wakes)
	}
	r.sink.answer(0, nil)
	if *wakes != 3 {
		t.Fatalf("%d wake-ups, want one with the answer", *wakes)
	}
	if n := in.Drain(1); n != 11 {
		t.Fatalf("drained %d", n)
	}
	burst(2048 + 5)
	before := *wakes
	if before == 3 {
		t.Fatal("not woken for a full batch")
	}
	if n := in.Drain(2); n != 2048 {
		t.Fatalf("drained %d, want the full batch though the link is busy", n)
	}
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
	in.Drain(3)
	r.want("[100 11 2048 5]")
	r.sink.answer(0, nil)
}

// Records of several producers and of the batcher's own goroutine keep their order
// and share batches.
func TestInboxKeepsTheOrderOfTheLoop(t *testing.T) {
	r, in, _ := handRig(t, Options{})
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	stage := func() {
		if err := p.Append(&serialize.Record{Value: []byte("from outside")}, r.taken); err != nil {
			t.Fatal(err)
		}
		r.taken++
	}
	stage()
	if !in.Seal(1) {
		t.Fatal("not taken")
	}
	r.adds(2, 8)
	stage()
	if !in.Seal(1) {
		t.Fatal("not taken")
	}
	r.want("[1 2 1]")
	for len(r.sink.batches) > 0 {
		r.sink.answer(0, nil)
	}
	if r.led.ok != 4 || !in.Idle() {
		t.Errorf("%d completed, idle %v", r.led.ok, in.Idle())
	}
}

func TestInboxTimes(t *testing.T) {
	r, in, _ := handRig(t, Options{Linger: 100, MaxDelay: 300, PartialInFlight: 1})
	p, err := in.Producer(r.led)
	if err != nil {
		t.Fatal(err)
	}
	at := func(now, deadline int64, sizes string) {
		t.Helper()
		in.Drain(now)
		r.b.Flush(now)
		r.want(sizes)
		if got := in.NextDeadline(); got != deadline {
			t.Fatalf("deadline %d at %d, want %d", got, now, deadline)
		}
	}
	stage := func() {
		if err := p.Append(&serialize.Record{Value: []byte("01234567")}, r.taken); err != nil {
			t.Fatal(err)
		}
		r.taken++
	}
	stage()
	at(10, 110, "[]")
	at(109, 110, "[]")
	at(110, 0, "[1]")
	stage()
	at(120, 420, "[1]") // busy
	r.sink.answer(0, nil)
	at(130, 220, "[1]")
	at(220, 0, "[1 1]")
	stage()
	at(230, 530, "[1 1]")
	at(530, 0, "[1 1 1]")
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
}

// Flush waits for what was appended before, not for what others append after, and
// not for the limits of time.
func TestProducerFlush(t *testing.T) {
	l := startTestLoop(t, Options{MaxBatchBytes: 4096, Linger: time.Hour}, InboxOptions{}, 1)
	box := &mailbox{t: t}
	p, err := l.in.Producer(box)
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.in.Producer(&mailbox{t: t})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for k := uint64(0); ; {
			select {
			case <-stop:
				return
			default:
			}
			if other.Append(&serialize.Record{Value: []byte("more and more")}, k) == nil {
				k++
			} else if err := other.Wait(context.Background()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	token := uint64(0)
	for round := range 50 {
		for range round {
			for p.Append(&serialize.Record{Value: []byte("flushed")}, token) != nil {
				if err := p.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			token++
		}
		<-p.Flush()
		if n := box.done.Load(); n != token {
			t.Fatalf("%d of %d completed after Flush", n, token)
		}
	}
	close(stop)
	wg.Wait()
	l.close(t)
}

// While a greedy producer never pauses, the others get their records through.
func TestInboxIsFair(t *testing.T) {
	l := startTestLoop(t, Options{MaxBatchBytes: 2048, MaxBatchRecords: 200, MaxBatches: 2}, InboxOptions{Stages: 2}, 1)
	greedy, err := l.in.Producer(&mailbox{t: t})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for k := uint64(0); ; { // never waits
			select {
			case <-stop:
				return
			default:
			}
			if greedy.Append(&serialize.Record{Value: []byte("x")}, k) == nil {
				k++
			} else {
				runtime.Gosched()
			}
		}
	})
	var modest sync.WaitGroup
	for range 3 {
		p, err := l.in.Producer(&mailbox{t: t})
		if err != nil {
			t.Fatal(err)
		}
		modest.Go(func() {
			for k := range uint64(500) {
				for p.Append(&serialize.Record{Value: []byte("modest")}, k) != nil {
					if err := p.Wait(context.Background()); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	modest.Wait() // or the test does not end
	close(stop)
	wg.Wait()
	l.close(t)
}

// Who never pauses gets no more than its share of a batch while another, that waited
// for room, has nothing in it yet.
func TestWhoWaitedComesBeforeWhoIsGreedy(t *testing.T) {
	r, in, _ := handRig(t, Options{MaxBatchBytes: 8 << 10, MaxBatchRecords: 200, MaxBatches: 2})
	next := uint64(0)
	open := func() *Producer {
		p, err := in.Producer(r.led)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	greedy, modest := open(), open()
	add := func(p *Producer) bool {
		err := p.Append(&serialize.Record{Value: []byte("x")}, next)
		if err == nil {
			next++
		} else if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		return err == nil
	}
	for add(greedy) {
	}
	if add(modest) {
		t.Fatal("there is room in a full inbox")
	}
	waited := make(chan error, 1)
	go func() { waited <- modest.Wait(t.Context()) }()
	for waiting := 0; waiting == 0; runtime.Gosched() {
		in.mu.Lock()
		waiting = len(in.waiters)
		in.mu.Unlock()
	}
	in.Drain(1) // full batches leave, and a new one is begun
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	before := next
	for add(greedy) {
	}
	if n := next - before; n != producerQuantum {
		t.Errorf("the greedy producer took %d places of 200 before who had waited, want %d", n, producerQuantum)
	}
	if err := greedy.Append(&serialize.Record{}, next); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
	if !add(modest) {
		t.Error("nothing was left for who had waited")
	}
	if !add(greedy) {
		t.Error("the greedy producer is held back though nobody waits")
	}
	in.Close(1 << 40)
	for now := int64(2); !in.Idle(); now++ {
		in.Drain(now)
		r.b.Flush(now)
		for len(r.sink.batches) > 0 {
			r.sink.answer(0, nil)
		}
	}
	if r.led.ok != int(next) {
		t.Errorf("%d of %d completed", r.led.ok, next)
	}
}

// Without memory for a batch producers are told ErrFull, and that memory is what lacks,
// and go on when there is some.
func TestInboxWithoutMemory(t *testing.T) {
	pool := newPool(t, 1<<20)
	l := startTestLoop(t, Options{Pool: pool}, InboxOptions{}, 1)
	hog := exhaust(pool)
	box := &mailbox{t: t}
	p, err := l.in.Producer(box)
	if err != nil {
		t.Fatal(err)
	}
	rec := &serialize.Record{Value: []byte("0123456789")}
	if err := p.Append(rec, 0); !errors.Is(err, ErrFull) || !errors.Is(err, hugepages.ErrExhausted) {
		t.Fatalf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	var releasing sync.WaitGroup
	releasing.Go(func() {
		for _, b := range hog {
			b.Release()
		}
	})
	defer releasing.Wait()
	for p.Append(rec, 0) != nil {
		if err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	<-p.Flush()
	if n := box.done.Load(); n != 1 {
		t.Errorf("%d completed", n)
	}
	l.close(t)
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
		in.Drain(1)
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
		if len(r.sink.batches) == 0 {
			t.Fatalf("%d of %d completed and nothing in flight", r.led.next, taken)
		}
		r.sink.answer(0, nil)
		if *wakes > before {
			in.Drain(1)
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
	in.Drain(1) // what fits
	r.b.Flush(1)
	in.Close(50)
	if in.Idle() || in.NextDeadline() != 50 {
		t.Fatalf("idle %v, deadline %d", in.Idle(), in.NextDeadline())
	}
	in.Drain(2)
	r.b.Flush(2)
	if r.led.next != 0 {
		t.Fatalf("%d completed", r.led.next)
	}
	in.Drain(50)
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
			in.Drain(1)
			r.b.Close(1000)
		}
	}
	in.Drain(2)
	if r.led.next != 0 {
		t.Fatalf("%d completed before those in flight", r.led.next)
	}
	before := *wakes
	r.sink.answer(0, nil)
	if *wakes == before {
		t.Fatal("not woken when the queued records completed")
	}
	in.Drain(3)
	if r.led.ok != 5 || r.led.failed[ErrClosed] != 5 || !in.Idle() {
		t.Errorf("%d completed, %v failed, idle %v", r.led.ok, r.led.failed, in.Idle())
	}
}

// Records pass the inbox as they are, whatever their parts and sizes.
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
		in.Drain(1)
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
	for i, n := range []int{4096 - serialize.HeaderBytes, 4095 - serialize.HeaderBytes, 4096 - serialize.HeaderBytes - 10} { // alone in its batch
		if err := p.Append(&serialize.Record{Value: make([]byte, n)}, uint64(3000+i)); err != nil {
			t.Fatal(err)
		}
		if !in.Seal(1) {
			t.Fatalf("a record of %d bytes was not taken", n)
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
		{InboxOptions{Wake: wake, Stages: 1}, "Stages 1"},
		{InboxOptions{Wake: wake, Stages: 1 << 20}, "Stages 1048576"},
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
	in.Drain(1)
	if _, err := in.Producer(r.led); err != nil {
		t.Errorf("a producer in the place of a closed one: %v", err)
	}
}
