package netpoll

import (
	"net/url"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
)

// lateBackend finds its work where a loop does not count it: in Arm, and in the
// flush of a connection.
type lateBackend struct {
	inArm   func() // runs once
	inFlush func()
}

func (b *lateBackend) Attach(*Loop) error { return nil }
func (b *lateBackend) Poll(int) int       { return 0 }
func (b *lateBackend) Close() error       { return nil }
func (b *lateBackend) Scheme() string     { return "late" }

func (b *lateBackend) Arm() (int64, bool) {
	if f := b.inArm; f != nil {
		b.inArm = nil
		f()
		return 0, false
	}
	return 0, true
}

func (b *lateBackend) Listen(*url.URL, Handler) (Listener, error)       { return nil, ErrClosed }
func (b *lateBackend) Dial(_ *url.URL, _ Handler, d func(*Conn, error)) { d(nil, ErrClosed) }

func (b *lateBackend) Send(buf *hugepages.Buf) { buf.Release() }
func (b *lateBackend) SetReading(bool)         {}
func (b *lateBackend) Shut()                   {}
func (b *lateBackend) Flush() {
	if f := b.inFlush; f != nil {
		b.inFlush = nil
		f()
	}
}

// closeFunc is a handler that minds nothing but the end.
type closeFunc struct {
	BaseHandler
	f func()
}

func (h closeFunc) OnClose(*Conn, error) { h.f() }

// What handlers leave for the end of the cycle is taken up also when a backend
// dispatched while the loop was about to block, or a flush did.
func TestCycleEndAfterLateDispatch(t *testing.T) {
	late := &lateBackend{}
	l, err := NewLoop(Options{Pool: testPool(t, 8<<20), Idle: Efficient(), Backends: []Backend{late}})
	if err != nil {
		t.Fatal(err)
	}
	left, taken := 0, make(chan int, 10)
	l.AtCycleEnd(func(int64) int64 {
		if left > 0 {
			taken <- left
			left = 0
		}
		return 0
	})
	late.inArm = func() { left = 1 }
	go func() { _ = l.Run() }()
	defer func() { l.Stop(); <-l.Done() }()
	expect := func(want int) {
		t.Helper()
		select {
		case got := <-taken:
			if got != want {
				t.Fatalf("took %d, want %d", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%d was left lying", want)
		}
	}
	expect(1)
	err = l.Do(func() {
		ep := NewEndpoint(l, closeFunc{f: func() { left = 2 }}, late, Transport{}, "")
		ep.Open()
		late.inFlush = func() { ep.Closed(ErrClosed) }
		b, err := ep.Conn().Alloc(1)
		if err != nil {
			t.Error(err)
			return
		}
		if err := ep.Conn().Send(b); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	expect(2)
}
