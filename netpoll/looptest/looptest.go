// Package looptest is what the tests of transports share: a loop that ends with its
// test, a server that echoes, and a client that expects the echo.
package looptest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

const (
	// poolBytes is the memory of one loop.
	poolBytes = 32 << 20
	// patience bounds what a machine under load may take.
	patience = 20 * time.Second
)

// Start runs a loop until the test ends. Without a pool in o it gets one whose
// buffers must all be back then.
func Start(t testing.TB, o netpoll.Options) *netpoll.Loop {
	t.Helper()
	if o.Pool == nil {
		arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: poolBytes})
		if err != nil {
			t.Fatal(err)
		}
		o.Pool = hugepages.NewPool(arena)
		t.Cleanup(func() {
			if err := arena.Close(); err != nil {
				t.Errorf("buffers leaked: %v", err)
			}
		})
	}
	l, err := netpoll.NewLoop(o)
	if err != nil {
		t.Fatal(err)
	}
	run := make(chan error, 1)
	go func() { run <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-run; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

// Echo sends every message back. What back-pressure refuses waits, and reading with
// it. It uses Conn.Context.
type Echo struct{ netpoll.BaseHandler }

type waiting struct{ bufs []*hugepages.Buf }

// OnOpen implements netpoll.Handler.
func (Echo) OnOpen(c *netpoll.Conn) { c.Context = &waiting{} }

// OnMessages implements netpoll.Handler.
func (e Echo) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	w := c.Context.(*waiting)
	for i := range ms {
		b, err := c.Alloc(ms[i].Len())
		if err != nil {
			c.Close(err)
			return
		}
		gather(b.Bytes(), &ms[i])
		w.bufs = append(w.bufs, b)
	}
	e.OnWritable(c)
}

// OnWritable implements netpoll.Handler.
func (Echo) OnWritable(c *netpoll.Conn) {
	w := c.Context.(*waiting)
	for len(w.bufs) > 0 {
		if err := c.Send(w.bufs[0]); errors.Is(err, netpoll.ErrBackpressure) {
			c.PauseReading()
			return
		} else if err != nil {
			return
		}
		w.bufs = w.bufs[1:]
	}
	c.ResumeReading()
}

// OnClose implements netpoll.Handler.
func (Echo) OnClose(c *netpoll.Conn, _ error) {
	for _, b := range c.Context.(*waiting).bufs {
		b.Release()
	}
}

func gather(dst []byte, m *netpoll.Message) {
	n := copy(dst, m.Data)
	for _, s := range m.Rest {
		n += copy(dst[n:], s.Data)
	}
}

// Dial connects to a server that echoes, and fails the test if a message of any of
// the sizes does not come back as it was. After some of them it waits until both
// loops have gone to sleep, unless they never do.
func Dial(t testing.TB, client *netpoll.Loop, url string, sizes ...int) *netpoll.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	k := NewCollector(1)
	c, err := client.Dial(ctx, url, k)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range sizes {
		want := bytes.Repeat([]byte{byte(i + 1)}, n)
		if err := client.Do(func() { send(t, c, want) }); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-k.Got:
			if !bytes.Equal(got, want) {
				t.Fatalf("of %d bytes came back %d others", n, len(got))
			}
		case err := <-k.Closed:
			t.Fatalf("%d bytes: closed: %v", n, err)
		case <-time.After(patience):
			t.Fatalf("%d bytes did not come back", n)
		}
		if i%3 == 2 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	return c
}

func send(t testing.TB, c *netpoll.Conn, p []byte) {
	b, err := c.Alloc(len(p))
	if err != nil {
		t.Error(err)
		return
	}
	copy(b.Bytes(), p)
	if err := c.Send(b); err != nil {
		b.Release()
		t.Error(err)
	}
}

// Collector hands over copies of what arrives, and how the connection ended.
type Collector struct {
	netpoll.BaseHandler
	Got    chan []byte
	Closed chan error
}

// NewCollector makes one that takes n messages before it waits for who reads them.
func NewCollector(n int) *Collector {
	return &Collector{Got: make(chan []byte, n), Closed: make(chan error, 1)}
}

// OnMessages implements netpoll.Handler.
func (k *Collector) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		p := make([]byte, ms[i].Len())
		gather(p, &ms[i])
		k.Got <- p
	}
}

// OnClose implements netpoll.Handler.
func (k *Collector) OnClose(_ *netpoll.Conn, err error) { k.Closed <- err }
