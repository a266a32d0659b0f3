package netpoll

import (
	"testing"

	"github.com/millrace/millrace/hugepages"
)

// recycler is a wire that is done with a message at once.
type recycler struct {
	lateBackend
	loop *Loop
}

func (w *recycler) Send(b *hugepages.Buf) { w.loop.Recycle(b) }

// Alloc has the buffer that was sent before, unless others hold it or another size is
// asked for; a loop at rest and a closed connection hold none.
func TestRecycle(t *testing.T) {
	pool := testPool(t, 8<<20)
	other := testPool(t, 8<<20)
	l, err := NewLoop(Options{Pool: pool, Idle: Efficient()})
	if err != nil {
		t.Fatal(err)
	}
	w := &recycler{loop: l}
	ep := NewEndpoint(l, BaseHandler{}, w, Transport{}, "")
	ep.Open()
	c := ep.Conn()
	alloc := func(n int) (*hugepages.Buf, *byte) {
		t.Helper()
		b, err := c.Alloc(n)
		if err != nil || b.Len() != n {
			t.Fatalf("%v, %v", b, err)
		}
		return b, &b.Bytes()[0]
	}
	send := func(b *hugepages.Buf) {
		t.Helper()
		if err := c.Send(b); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(want int) {
		t.Helper()
		if n := pool.Outstanding(); n != want {
			t.Fatalf("%d buffers are out, want %d", n, want)
		}
	}
	b, at := alloc(100)
	send(b)
	kept(1)
	if b, again := alloc(200); again != at {
		t.Error("not the buffer that was sent")
	} else {
		send(b)
	}
	kept(1)
	large, _ := alloc(5000)
	kept(2)
	send(large) // one is kept
	kept(1)
	b, _ = alloc(100)
	held := b.Retain()
	send(b)
	kept(1)
	held.Release()
	kept(0)
	foreign, err := other.Get(100, hugepages.Send)
	if err != nil {
		t.Fatal(err)
	}
	send(foreign)
	if other.Outstanding() != 0 {
		t.Error("it keeps a buffer of another pool")
	}
	b, _ = alloc(100)
	send(b)
	kept(1)
	c.Close(nil)
	kept(0)
	l.Stop()
	if err := l.Run(); err != nil {
		t.Fatal(err)
	}
}
