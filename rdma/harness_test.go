package rdma_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

// TestMain is also the whole program of a peer process; see process_test.go.
func TestMain(m *testing.M) {
	if url := os.Getenv(peerProcessEnv); url != "" {
		if err := peerProcess(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// testPool gives a pool whose buffers must all be back at the end of the test.
func testPool(t testing.TB, bytes int) *hugepages.Pool {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: bytes, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := arena.Close(); err != nil {
			t.Errorf("buffers leaked: %v", err)
		}
	})
	return hugepages.NewPool(arena)
}

// node is a loop with an rdma event loop over user-space RoCE on the loopback.
type node struct {
	t    testing.TB
	loop *netpoll.Loop
	el   *rdma.EventLoop
	dev  *softroce.Device
	run  chan error
}

type nodeOptions struct {
	loop    netpoll.Options
	rdma    rdma.EventLoopOptions
	fabric  rdma.Fabric                   // default: one UDP device
	wrap    func(rdma.Device) rdma.Device // around that device
	name    string                        // of the fabric
	stopped bool                          // the test stops it itself
	timeout time.Duration                 // after which a silent peer counts as dead; default 5 s, for machines under load
	mayRNR  bool
	tcp     bool // the loop has a TCP backend too
}

func startNode(t testing.TB, o nodeOptions) *node {
	t.Helper()
	n := &node{t: t, run: make(chan error, 1)}
	if o.loop.Pool == nil {
		o.loop.Pool = testPool(t, 64<<20)
	}
	if o.fabric == nil {
		link, err := softroce.NewUDPLink(loopback)
		if err != nil {
			t.Fatal(err)
		}
		n.dev = softroce.New(link, softroce.Options{PeerTimeout: cmp.Or(o.timeout, 5*time.Second)})
		var dev rdma.Device = n.dev
		if o.wrap != nil {
			dev = o.wrap(dev)
		}
		if o.name == "" {
			o.name = "udp"
		}
		o.fabric = rdma.DeviceFabric(o.name, dev)
	}
	n.el = rdma.NewEventLoop(o.fabric, o.rdma)
	o.loop.Backends = []netpoll.Backend{n.el}
	if o.tcp {
		o.loop.Backends = append(o.loop.Backends, netpoll.NewTCP())
	}
	var err error
	if n.loop, err = netpoll.NewLoop(o.loop); err != nil {
		t.Fatal(err)
	}
	go func() { n.run <- n.loop.Run() }()
	if !o.stopped {
		t.Cleanup(func() {
			// A credit scheme that holds never meets a receiver without a buffer.
			if n.dev != nil && !o.mayRNR {
				n.do(func() {
					if s := n.dev.Stats(); s.NoReceive > 0 || s.CQFull > 0 {
						t.Errorf("%d messages found no receive, %d no completion entry", s.NoReceive, s.CQFull)
					}
				})
			}
			n.stop()
		})
	}
	return n
}

func (n *node) stop() {
	n.loop.Stop()
	if err := <-n.run; err != nil {
		n.t.Errorf("Run: %v", err)
	}
}

func (n *node) do(fn func()) {
	n.t.Helper()
	if err := n.loop.Do(fn); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) listen(h netpoll.Handler) string {
	n.t.Helper()
	ln, err := n.loop.Listen("rdma://127.0.0.1:0", h)
	if err != nil {
		n.t.Fatal(err)
	}
	return ln.URL()
}

func (n *node) dial(url string, h netpoll.Handler) *netpoll.Conn {
	n.t.Helper()
	c, err := n.loop.Dial(testCtx(n.t), url, h)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echo sends every message back, keeping what back-pressure refuses.
type echo struct {
	netpoll.BaseHandler
	mu     sync.Mutex
	closed []error
}

type echoState struct{ waiting []*hugepages.Buf }

func (e *echo) OnOpen(c *netpoll.Conn) { c.Context = &echoState{} }

func (e *echo) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	s := c.Context.(*echoState)
	for i := range ms {
		b, err := c.Alloc(ms[i].Len())
		if err != nil {
			c.Close(err)
			return
		}
		n := copy(b.Bytes(), ms[i].Data)
		for _, seg := range ms[i].Rest {
			n += copy(b.Bytes()[n:], seg.Data)
		}
		s.waiting = append(s.waiting, b)
	}
	e.OnWritable(c)
}

func (e *echo) OnWritable(c *netpoll.Conn) {
	s := c.Context.(*echoState)
	for len(s.waiting) > 0 {
		if err := c.Send(s.waiting[0]); errors.Is(err, netpoll.ErrBackpressure) {
			c.PauseReading()
			return
		} else if err != nil {
			return
		}
		s.waiting = s.waiting[1:]
	}
	c.ResumeReading()
}

func (e *echo) OnClose(c *netpoll.Conn, err error) {
	for _, b := range c.Context.(*echoState).waiting {
		b.Release()
	}
	e.mu.Lock()
	e.closed = append(e.closed, err)
	e.mu.Unlock()
}

// collector keeps copies of what arrives.
type collector struct {
	open   func(*netpoll.Conn)
	got    chan []byte
	closed chan error
	wr     chan struct{}
}

func newCollector() *collector {
	return &collector{got: make(chan []byte, 1<<16), closed: make(chan error, 1), wr: make(chan struct{}, 1024)}
}

func (h *collector) OnOpen(c *netpoll.Conn) {
	if h.open != nil {
		h.open(c)
	}
}

func (h *collector) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		p := append([]byte{}, ms[i].Data...)
		for _, s := range ms[i].Rest {
			p = append(p, s.Data...)
		}
		h.got <- p
	}
}
func (h *collector) OnWritable(*netpoll.Conn)           { h.wr <- struct{}{} }
func (h *collector) OnClose(_ *netpoll.Conn, err error) { h.closed <- err }

func (h *collector) next(t testing.TB) []byte {
	t.Helper()
	select {
	case p := <-h.got:
		return p
	case err := <-h.closed:
		t.Fatalf("closed: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("no message")
	}
	return nil
}

func (h *collector) waitClose(t testing.TB) error {
	t.Helper()
	select {
	case err := <-h.closed:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("no OnClose")
		return nil
	}
}

func sendCopy(c *netpoll.Conn, p []byte) error {
	b, err := c.Alloc(len(p))
	if err != nil {
		return err
	}
	copy(b.Bytes(), p)
	if err := c.Send(b); err != nil {
		b.Release()
		return err
	}
	return nil
}

// sendAll sends from outside the loop, waiting while it is refused.
func (n *node) sendAll(c *netpoll.Conn, msgs [][]byte) error {
	for _, p := range msgs {
		for {
			var err error
			if e := n.loop.Do(func() { err = sendCopy(c, p) }); e != nil {
				return e
			}
			if err == nil {
				break
			}
			if !errors.Is(err, netpoll.ErrBackpressure) && !errors.Is(err, hugepages.ErrExhausted) {
				return fmt.Errorf("send: %w", err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

func pattern(i, n int) []byte {
	p := make([]byte, n)
	for k := range p {
		p[k] = byte(i*131 + k*7 + k>>8)
	}
	return p
}
