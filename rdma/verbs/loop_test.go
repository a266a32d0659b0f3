package verbs_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/verbs"
)

// startLoop runs a loop with one backend until the end of the test. Its buffers
// must all be back then.
func startLoop(t testing.TB, b netpoll.Backend, idle netpoll.IdlePolicy) *netpoll.Loop {
	t.Helper()
	// Two loops that spin would leave nothing of two processors for setting up
	// connections; the kernel shares more fairly than the runtime.
	procs := runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 32 << 20, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	l, err := netpoll.NewLoop(netpoll.Options{Pool: hugepages.NewPool(arena), Backends: []netpoll.Backend{b}, Idle: idle})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := arena.Close(); err != nil {
			t.Errorf("buffers leaked: %v", err)
		}
	})
	return l
}

// verbsLoop is a backend over the device under test.
func verbsLoop(t testing.TB, c verbs.Choice) netpoll.Backend {
	t.Helper()
	c.Device = deviceName
	f, err := verbs.NewFabric(verbs.Options{Choice: c})
	if err != nil {
		t.Fatal(err)
	}
	return rdma.NewEventLoop(f, rdma.EventLoopOptions{})
}

// echo sends back what comes; back-pressure pauses reading.
type echo struct{ netpoll.BaseHandler }

type echoState struct{ waiting []*hugepages.Buf }

func (echo) OnOpen(c *netpoll.Conn) { c.Context = &echoState{} }

func (e echo) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
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

func (echo) OnWritable(c *netpoll.Conn) {
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

func (echo) OnClose(c *netpoll.Conn, _ error) {
	for _, b := range c.Context.(*echoState).waiting {
		b.Release()
	}
}

// collector hands copies of what arrives to the test.
type collector struct {
	netpoll.BaseHandler
	got    chan []byte
	closed chan error
}

func newCollector() *collector {
	return &collector{got: make(chan []byte, 1024), closed: make(chan error, 1)}
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

func (h *collector) OnClose(_ *netpoll.Conn, err error) { h.closed <- err }

// The emulated guest is slow, and shared.
const patience = 60 * time.Second

func (h *collector) next(t testing.TB) []byte {
	t.Helper()
	select {
	case p := <-h.got:
		return p
	case err := <-h.closed:
		t.Fatalf("closed: %v", err)
	case <-time.After(patience):
		t.Fatal("no message")
	}
	return nil
}

func dial(t testing.TB, l *netpoll.Loop, url string, h netpoll.Handler) *netpoll.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := l.Dial(ctx, url, h)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func listen(t testing.TB, l *netpoll.Loop, url string, h netpoll.Handler) string {
	t.Helper()
	ln, err := l.Listen(url, h)
	if err != nil {
		t.Fatal(err)
	}
	return ln.URL()
}

func sendCopy(c *netpoll.Conn, p []byte) error {
	b, err := c.Alloc(len(p))
	if err != nil {
		return err
	}
	copy(b.Bytes(), p)
	if err = c.Send(b); err != nil {
		b.Release()
	}
	return err
}

// roundTrips sends messages of many sizes to an echo and compares what comes back.
func roundTrips(t *testing.T, l *netpoll.Loop, url string) *netpoll.Conn {
	t.Helper()
	h := newCollector()
	c := dial(t, l, url, h)
	for round := range 3 {
		var want [][]byte
		for i, n := range []int{0, 1, 4, 127, 128, 4096, 8188, 8192, 20_000, 1<<20 + 3, 5} {
			p := make([]byte, n)
			for k := range p {
				p[k] = byte(round + i*131 + k*7 + k>>8)
			}
			want = append(want, p)
		}
		errs := make(chan error, 1)
		go func() {
			for _, p := range want {
				for {
					var err error
					if e := l.Do(func() { err = sendCopy(c, p) }); e != nil {
						err = e
					}
					if err == nil {
						break
					}
					if !errors.Is(err, netpoll.ErrBackpressure) && !errors.Is(err, hugepages.ErrExhausted) {
						errs <- err
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
			errs <- nil
		}()
		for i, p := range want {
			if got := h.next(t); !bytes.Equal(got, p) {
				t.Fatalf("message %d (%d bytes) came back as %d other bytes", i, len(p), len(got))
			}
		}
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// deviceAddress is an address that the device under test has.
func deviceAddress(t testing.TB) string {
	t.Helper()
	dev := openDevice(t, verbs.Choice{})
	defer dev.Close()
	return net.JoinHostPort(dev.Attr().GID.String(), "0")
}

func TestEventLoopOverVerbs(t *testing.T) {
	needDevice(t)
	url := "rdma://" + deviceAddress(t)
	for _, idle := range []netpoll.IdlePolicy{netpoll.Latency(), netpoll.Balanced(), netpoll.Efficient()} {
		t.Run(idle.Name, func(t *testing.T) {
			server := startLoop(t, verbsLoop(t, verbs.Choice{}), idle)
			client := startLoop(t, verbsLoop(t, verbs.Choice{}), idle)
			c := roundTrips(t, client, listen(t, server, url, echo{}))
			if tr := c.Transport(); tr.Scheme != "rdma" || tr.Label == "user-space" {
				t.Errorf("the connection uses %+v", tr)
			}
		})
	}
}

// A handler's conn ends with the reason when the peer's process stops.
func TestEventLoopPeerStops(t *testing.T) {
	needDevice(t)
	h := newCollector()
	client := startLoop(t, verbsLoop(t, verbs.Choice{}), netpoll.Efficient())
	t.Run("server", func(t *testing.T) {
		server := startLoop(t, verbsLoop(t, verbs.Choice{}), netpoll.Efficient())
		c := dial(t, client, listen(t, server, "rdma://"+deviceAddress(t), echo{}), h)
		if err := client.Do(func() { _ = sendCopy(c, []byte("hello")) }); err != nil {
			t.Fatal(err)
		}
		h.next(t)
	})
	select {
	case <-h.closed:
	case <-time.After(patience):
		t.Fatal("the connection outlived its peer")
	}
}

// pinger bounces a message until left is zero.
type pinger struct {
	netpoll.BaseHandler
	left   int
	done   chan struct{}
	began  time.Time
	rounds []time.Duration
}

func (p *pinger) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if p.done != nil {
			now := time.Now()
			p.rounds = append(p.rounds, now.Sub(p.began))
			p.began = now
			if p.left--; p.left == 0 {
				p.done <- struct{}{}
				return
			}
		}
		if err := sendCopy(c, ms[i].Data); err != nil {
			c.Close(err)
		}
	}
}

// BenchmarkRoundTrip is 128 B there and back between two loops that spin, over the
// device and over TCP on the same machine.
func BenchmarkRoundTrip(b *testing.B) {
	needDevice(b)
	addr := deviceAddress(b)
	for _, tc := range []struct {
		name, url string
		backend   func() netpoll.Backend
	}{
		{"verbs", "rdma://" + addr, func() netpoll.Backend { return verbsLoop(b, verbs.Choice{}) }},
		{"tcp", "tcp://" + addr, func() netpoll.Backend { return netpoll.NewTCP() }},
	} {
		b.Run(tc.name, func(b *testing.B) {
			server := startLoop(b, tc.backend(), netpoll.Latency())
			client := startLoop(b, tc.backend(), netpoll.Latency())
			p := &pinger{done: make(chan struct{}, 1), rounds: make([]time.Duration, 0, b.N)}
			c := dial(b, client, listen(b, server, tc.url, &pinger{}), p)
			b.ResetTimer()
			if err := client.Do(func() {
				p.left, p.began = b.N, time.Now()
				if err := sendCopy(c, make([]byte, 128)); err != nil {
					b.Error(err)
				}
			}); err != nil {
				b.Fatal(err)
			}
			<-p.done
			reportMedian(b, p.rounds)
		})
	}
	b.Run("net", func(b *testing.B) { blockingTCP(b, addr) })
}

// blockingTCP is what a program does without any of this.
func blockingTCP(b *testing.B, addr string) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		p := make([]byte, 128)
		for {
			n, err := c.Read(p)
			if err != nil {
				return
			}
			if _, err := c.Write(p[:n]); err != nil {
				return
			}
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 128)
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		for n := 0; n < len(p); {
			k, err := c.Read(p[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += k
		}
	}
}

// BenchmarkSparse counts wake-ups over the device and over TCP.
func BenchmarkSparse(b *testing.B) {
	needDevice(b)
	addr := deviceAddress(b)
	for _, tc := range []struct {
		name, url string
		backend   func() netpoll.Backend
	}{
		{"verbs", "rdma://" + addr, func() netpoll.Backend { return verbsLoop(b, verbs.Choice{}) }},
		{"tcp", "tcp://" + addr, func() netpoll.Backend { return netpoll.NewTCP() }},
	} {
		b.Run(tc.name, func(b *testing.B) {
			server := startLoop(b, tc.backend(), netpoll.Efficient())
			client := startLoop(b, tc.backend(), netpoll.Efficient())
			s := &looptest.Sparse{}
			s.SleepsPerRequest(b, server, dial(b, client, listen(b, server, tc.url, echo{}), s))
		})
	}
}
