package netpoll

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
)

const borrowPatience = 20 * time.Second

// counting counts what comes back.
type counting struct {
	BaseHandler
	messages atomic.Int64
	came     chan struct{} // of 1
	closed   chan error
}

func newCounting() *counting {
	return &counting{came: make(chan struct{}, 1), closed: make(chan error, 1)}
}

func (k *counting) OnMessages(_ *Conn, ms []Message) {
	k.messages.Add(int64(len(ms)))
	select {
	case k.came <- struct{}{}:
	default:
	}
}

func (k *counting) OnClose(_ *Conn, err error) { k.closed <- err }

// wait waits until n messages have come.
func (k *counting) wait(t *testing.T, n int64) {
	t.Helper()
	end := time.After(borrowPatience)
	for k.messages.Load() < n {
		select {
		case <-k.came:
		case err := <-k.closed:
			t.Fatalf("closed: %v", err)
		case <-end:
			t.Fatalf("%d of %d messages came back", k.messages.Load(), n)
		}
	}
}

// borrowPair is a loop that blocks whenever it has nothing to do, and its connection to
// one that echoes.
func borrowPair(t *testing.T, b Backend, k Handler) (*Loop, *Conn) {
	t.Helper()
	ln, err := startLoop(t, Options{}).Listen("tcp://127.0.0.1:0", &echo{})
	if err != nil {
		t.Fatal(err)
	}
	client := startLoop(t, Options{Idle: Efficient(), Backends: []Backend{b}})
	c, err := client.Dial(dialCtx(t), ln.URL(), k)
	if err != nil {
		t.Fatal(err)
	}
	return client, c
}

func lends(c *Conn) bool {
	ok, _ := c.Lends()
	return ok
}

// post sends a message within a Borrow.
func post(t *testing.T, c *Conn, p []byte) bool {
	var b *hugepages.Buf
	var err error
	if b, err = c.Alloc(len(p)); err != nil {
		t.Error(err)
		return false
	}
	copy(b.Bytes(), p)
	if err = c.Send(b); err != nil {
		b.Release()
		t.Error(err)
	}
	return err == nil
}

// A message leaves while the loop sleeps, and its answer arrives on the loop.
func TestBorrow(t *testing.T) {
	k := newCounting()
	l, c := borrowPair(t, NewTCP(), k)
	end := time.Now().Add(borrowPatience)
	for n := int64(1); n <= 20; n++ {
		for !l.Borrow(func(int64) bool { return lends(c) && post(t, c, []byte("alone")) }) { // until it sleeps
			if time.Now().After(end) {
				t.Fatal("the loop cannot be borrowed")
			}
			time.Sleep(time.Millisecond)
		}
		k.wait(t, n)
	}
	if err := l.Do(func() {
		if l.Borrow(func(int64) bool { return true }) {
			t.Error("a loop that runs was borrowed")
		}
	}); err != nil {
		t.Fatal(err)
	}
	l.Stop()
	<-l.Done()
	if l.Borrow(func(int64) bool { return true }) {
		t.Error("a loop that ended was borrowed")
	}
	if lent := l.Stats().Lent; lent != 20 {
		t.Errorf("lent %d times, want 20", lent)
	}
}

// Several goroutines and the loop send at once; a message that waits for a socket's
// room, and a timer that is set meanwhile, are the loop's again.
func TestBorrowedByMany(t *testing.T) {
	const senders, each = 4, 300
	k := newCounting()
	l, c := borrowPair(t, NewTCP(), k)
	large := bytes.Repeat([]byte{7}, 200<<10)
	var timers atomic.Int64
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for n := range each {
				p := []byte("small")
				if n%50 == 49 {
					p = large
				}
				send := func() bool {
					if n%100 == 0 {
						l.After(time.Millisecond, func() { timers.Add(1) })
					}
					return post(t, c, p)
				}
				if i == 0 || !l.Borrow(func(int64) bool { return send() }) {
					if err := l.Do(func() { send() }); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	k.wait(t, senders*each)
	for end := time.Now().Add(borrowPatience); timers.Load() < senders*each/100; {
		if time.Now().After(end) {
			t.Fatalf("%d timers ran", timers.Load())
		}
		time.Sleep(time.Millisecond)
	}
}

// An error is met by the loop, on its goroutine: no handler runs within Borrow.
func TestBorrowedSendFails(t *testing.T) {
	k := newCounting()
	tcp := NewTCP()
	l, c := borrowPair(t, tcp, k)
	broken := func(int64) bool {
		tcp.calls.writev = func(int, []unix.Iovec) (int, error) { return 0, unix.ECONNRESET }
		return post(t, c, []byte("into the void"))
	}
	for end := time.Now().Add(borrowPatience); !l.Borrow(broken); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the loop cannot be borrowed")
		}
	}
	select {
	case err := <-k.closed:
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("closed: %v", err)
		}
	case <-time.After(borrowPatience):
		t.Fatal("the connection did not end")
	}
	if err := l.Do(func() {
		if lends(c) {
			t.Error("a closed connection lends")
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// lentBackend is one wire that lends, and a backend that the test answers for.
type lentBackend struct {
	quietBackend
	loop      *Loop
	lent      func(now int64) (deadline int64, idle bool)
	polled    chan int64 // Now of each Poll, the latest
	flushedAt int64
}

func (b *lentBackend) Attach(l *Loop) error           { b.loop = l; return nil }
func (b *lentBackend) Send(buf *hugepages.Buf)        { buf.Release() }
func (b *lentBackend) Flush()                         { b.flushedAt = b.loop.Now() }
func (b *lentBackend) SetReading(bool)                {}
func (b *lentBackend) Shut()                          {}
func (b *lentBackend) Lends() (ok, cheap bool)        { return true, false }
func (b *lentBackend) Lent() (deadline int64, _ bool) { return b.lent(b.loop.Now()) }

func (b *lentBackend) Poll(int) int {
	select {
	case <-b.polled:
	default:
	}
	b.polled <- b.loop.Now()
	return 0
}

// borrow sends one message within a Borrow, once the loop sleeps, and runs look there.
func (b *lentBackend) borrow(t *testing.T, c *Conn, look func(now int64)) {
	t.Helper()
	before := b.loop.Clock()
	for end := time.Now().Add(borrowPatience); !b.loop.Borrow(func(now int64) bool {
		if now < before-int64(100*time.Microsecond) { // clocks differ by less
			t.Errorf("it is %d, which was %d before", now, before)
		}
		for len(b.polled) > 0 { // before it slept
			<-b.polled
		}
		look(now)
		return post(t, c, []byte("lent"))
	}); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the loop cannot be borrowed")
		}
	}
}

// waitPoll waits until Poll was called at that time or later.
func (b *lentBackend) waitPoll(t *testing.T, at int64) {
	t.Helper()
	for {
		select {
		case now := <-b.polled:
			if now >= at {
				return
			}
		case <-time.After(borrowPatience):
			t.Fatal("the loop sleeps on")
		}
	}
}

// What a lent send calls for is done by the loop: at once, or at its time, although the
// loop had gone to sleep without end. One that is borrowed again and again need not be
// woken for the second.
func TestLentSendCallsForTheLoop(t *testing.T) {
	b := &lentBackend{quietBackend: quietBackend{scheme: "lent"}, polled: make(chan int64, 1)}
	l := startLoop(t, Options{Idle: Efficient(), Backends: []Backend{b}})
	var c *Conn
	if err := l.Do(func() {
		e := NewEndpoint(l, &BaseHandler{}, b, Transport{}, "nobody")
		e.Open()
		c = e.Conn()
	}); err != nil {
		t.Fatal(err)
	}
	began, at := int64(0), int64(0)
	look := func(now int64) {
		began = now
		if l.Now() != now {
			t.Errorf("it is %d, and the loop says %d", now, l.Now())
		}
	}
	b.lent = func(int64) (int64, bool) { return 0, false }
	b.borrow(t, c, look)
	b.waitPoll(t, began)

	time.Sleep(5 * time.Millisecond) // so that Now of the cycle before is of no use
	b.lent = func(now int64) (int64, bool) { at = now + int64(20*time.Millisecond); return at, true }
	b.borrow(t, c, look)
	b.waitPoll(t, at)

	b.lent = func(now int64) (int64, bool) { return now + int64(time.Hour), true }
	b.borrow(t, c, look)
	first := began
	b.borrow(t, c, func(now int64) {
		look(now)
		if l.until <= first || l.until > now+int64(time.Hour) {
			t.Errorf("borrowed at %d and %d, it sleeps until %d", first, now, l.until)
		}
		if b.flushedAt != first {
			t.Errorf("flushed at %d, borrowed at %d", b.flushedAt, first)
		}
	})
}

// A loop that is not borrowed any more sleeps as long as it likes.
func TestLentBoundEnds(t *testing.T) {
	l := &Loop{now: 1000, lentAt: 950, lentFor: 100}
	if at := l.lentBound(); at != 1100 {
		t.Errorf("bound %d", at)
	}
	l.now = 1050
	if at := l.lentBound(); at != 0 {
		t.Errorf("bound %d after it was over", at)
	}
	if at := (&Loop{now: 1000}).lentBound(); at != 0 {
		t.Errorf("bound %d of one that was never borrowed", at)
	}
}
