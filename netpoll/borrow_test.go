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
