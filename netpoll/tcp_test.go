package netpoll

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/hugepages"
)

func TestMain(m *testing.M) {
	if policy := os.Getenv(idleServerEnv); policy != "" { // a child of BenchmarkIdle
		if err := idleServer(policy); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// testPool gives a pool whose buffers must all be back at the end of the test.
func testPool(t testing.TB, bytes int) *hugepages.Pool {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: bytes})
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

// startLoop runs a loop until the end of the test.
func startLoop(t testing.TB, o Options) *Loop {
	t.Helper()
	if o.Pool == nil {
		o.Pool = testPool(t, 64<<20)
	}
	l, err := NewLoop(o)
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

func dialCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echo sends every message back, keeping what back-pressure refuses.
type echo struct {
	BaseHandler
	mu     sync.Mutex
	closed []error
}

type echoState struct{ waiting []*hugepages.Buf }

func (e *echo) OnOpen(c *Conn) { c.Context = &echoState{} }

func (e *echo) OnMessages(c *Conn, ms []Message) {
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

func (e *echo) OnWritable(c *Conn) {
	s := c.Context.(*echoState)
	for len(s.waiting) > 0 {
		if err := c.Send(s.waiting[0]); errors.Is(err, ErrBackpressure) {
			c.PauseReading()
			return
		} else if err != nil {
			return
		}
		s.waiting = s.waiting[1:]
	}
	c.ResumeReading()
}

func (e *echo) OnClose(c *Conn, err error) {
	for _, b := range c.Context.(*echoState).waiting {
		b.Release()
	}
	e.mu.Lock()
	e.closed = append(e.closed, err)
	e.mu.Unlock()
}

// collector keeps copies of what arrives.
type collector struct {
	BaseHandler
	got    chan []byte
	closed chan error
	wr     chan struct{}
}

func newCollector() *collector {
	return &collector{got: make(chan []byte, 4096), closed: make(chan error, 1), wr: make(chan struct{}, 16)}
}

func (h *collector) OnMessages(c *Conn, ms []Message) {
	for i := range ms {
		h.got <- append([]byte{}, ms[i].Data...)
	}
}
func (h *collector) OnWritable(*Conn)           { h.wr <- struct{}{} }
func (h *collector) OnClose(_ *Conn, err error) { h.closed <- err }

func waitClose(t *testing.T, h *collector) error {
	t.Helper()
	select {
	case err := <-h.closed:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("no OnClose")
		return nil
	}
}

func TestTCPEchoSizes(t *testing.T) {
	for _, idle := range []IdlePolicy{Latency(), Balanced(), Efficient()} {
		t.Run(idle.Name, func(t *testing.T) {
			server := startLoop(t, Options{Idle: idle})
			ln, err := server.Listen("tcp://127.0.0.1:0", &echo{})
			if err != nil {
				t.Fatal(err)
			}
			client := startLoop(t, Options{Idle: idle})
			h := newCollector()
			c, err := client.Dial(dialCtx(t), ln.URL(), h)
			if err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			sizes := []int{0, 1, 3, 4, 5, 127, 128, 4096, tcpReadBytes - 4, tcpReadBytes, tcpReadBytes + 1, 1 << 20, 4 << 20, 0, 7}
			for range 200 {
				sizes = append(sizes, rng.IntN(9000))
			}
			var want [][]byte
			for _, n := range sizes {
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				want = append(want, p)
			}
			go func() {
				for _, p := range want {
					for {
						var err error
						_ = client.Do(func() { err = sendCopy(c, p) })
						if !errors.Is(err, ErrBackpressure) && !errors.Is(err, hugepages.ErrExhausted) {
							break
						}
						time.Sleep(time.Millisecond)
					}
				}
			}()
			for i, p := range want {
				select {
				case got := <-h.got:
					if !bytes.Equal(got, p) {
						t.Fatalf("message %d (%d bytes): got %d other bytes", i, len(p), len(got))
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("message %d of %d bytes did not come back", i, len(p))
				}
			}
		})
	}
}

func sendCopy(c *Conn, p []byte) error {
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

// rawDial connects with the net package and exchanges preambles.
func rawDial(t *testing.T, ln Listener) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(ln.URL(), "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if _, err := Handshake(nc, 1<<20); err != nil {
		t.Fatal(err)
	}
	return nc
}

// Every way in which TCP may cut the stream must give the same messages.
func TestTCPSplitAnywhere(t *testing.T) {
	server := startLoop(t, Options{})
	h := newCollector()
	ln, err := server.Listen("tcp://127.0.0.1:0", h)
	if err != nil {
		t.Fatal(err)
	}
	var stream []byte
	want := []string{"", "a", "hello", "", strings.Repeat("x", 300)}
	for _, w := range want {
		stream = binary.BigEndian.AppendUint32(stream, uint32(len(w)))
		stream = append(stream, w...)
	}
	for cut := 1; cut < 40; cut++ {
		nc := rawDial(t, ln)
		for off := 0; off < len(stream); off += cut {
			if _, err := nc.Write(stream[off:min(off+cut, len(stream))]); err != nil {
				t.Fatal(err)
			}
			if cut < 8 {
				time.Sleep(20 * time.Microsecond)
			}
		}
		for i, w := range want {
			if got := <-h.got; string(got) != w {
				t.Fatalf("cut %d: message %d: got %q", cut, i, got)
			}
		}
		nc.Close()
		if err := waitClose(t, h); err != nil {
			t.Fatalf("cut %d: close: %v", cut, err)
		}
	}
}

func TestTCPPeerMisbehaves(t *testing.T) {
	frame := func(n uint32, p string) []byte { return append(binary.BigEndian.AppendUint32(nil, n), p...) }
	for _, tc := range []struct {
		name string
		send []byte
		want error
		text string
	}{
		{"over the limit", frame(1<<31, "x"), ErrProtocol, "raise MaxMessageBytes"},
		{"cut header", []byte{0, 0}, io.ErrUnexpectedEOF, "middle of a message"},
		{"cut body", frame(10, "abc"), io.ErrUnexpectedEOF, "middle of a message"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := startLoop(t, Options{MaxMessageBytes: 1 << 20})
			h := newCollector()
			ln, err := server.Listen("tcp://127.0.0.1:0", h)
			if err != nil {
				t.Fatal(err)
			}
			nc := rawDial(t, ln)
			if _, err := nc.Write(tc.send); err != nil {
				t.Fatal(err)
			}
			_ = nc.(*net.TCPConn).CloseWrite()
			if err := waitClose(t, h); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("close: %v", err)
			}
		})
	}
}

func TestHandshakeRefusals(t *testing.T) {
	preamble := func(version, flags uint16, limit uint32) []byte {
		p := binary.BigEndian.AppendUint16([]byte(preambleMagic), version)
		p = binary.BigEndian.AppendUint16(p, flags)
		return binary.BigEndian.AppendUint32(p, limit)
	}
	for _, tc := range []struct {
		name  string
		reply []byte
		text  string
	}{
		{"http", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "speaks another protocol"},
		{"short foreign", []byte("-ERR"), "speaks another protocol"},
		{"version", preamble(2, 0, 1<<20), "speaks version 2, this side 1"},
		{"features", preamble(1, 8, 1<<20), "unknown features 0x8"},
		{"no messages", preamble(1, 0, 0), "messages of 0 bytes"},
		{"closes", nil, "closed during the preamble"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				_, _ = io.ReadFull(nc, make([]byte, preambleBytes))
				_, _ = nc.Write(tc.reply)
			}()
			client := startLoop(t, Options{})
			_, err = client.Dial(dialCtx(t), "tcp://"+ln.Addr().String(), &BaseHandler{})
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestTCPBadAddresses(t *testing.T) {
	l := startLoop(t, Options{})
	ln, err := l.Listen("tcp://127.0.0.1:0", &BaseHandler{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ url, text string }{
		{ln.URL(), "in use"},
		{"tcp://192.0.2.1:7000", "no interface here has that address"},
		{"tcp://127.0.0.1", "want tcp://host:port"},
		{"tcp://127.0.0.1:1/path", "want tcp://host:port"},
		{"rdma://127.0.0.1:1", "no backend for it in this loop; it has tcp://"},
		{"::", "address"},
	} {
		if _, err := l.Listen(tc.url, &BaseHandler{}); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("Listen(%q): %v", tc.url, err)
		}
	}
	if _, err := l.Dial(dialCtx(t), "tcp://127.0.0.1:1", &BaseHandler{}); err == nil || !strings.Contains(err.Error(), "cannot reach") {
		t.Errorf("Dial of a closed port: %v", err)
	}
}

func TestTCPBackpressureAndWritable(t *testing.T) {
	server := startLoop(t, Options{})
	sink := newCollector()
	ln, err := server.Listen("tcp://127.0.0.1:0", &paused{sink})
	if err != nil {
		t.Fatal(err)
	}
	client := startLoop(t, Options{MaxQueuedBytes: 256 << 10})
	h := newCollector()
	c, err := client.Dial(dialCtx(t), ln.URL(), h)
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	msg := make([]byte, 32<<10)
	for {
		var err error
		if e := client.Do(func() { err = sendCopy(c, msg) }); e != nil {
			t.Fatal(e)
		}
		if errors.Is(err, ErrBackpressure) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent++; sent > 4096 {
			t.Fatal("a peer that does not read never caused back-pressure")
		}
	}
	for until := time.Now().Add(10 * time.Second); c.Stats().Refused == 0; { // counters are shown a little later
		if time.Now().After(until) {
			t.Fatal("refusal not counted")
		}
		time.Sleep(time.Millisecond)
	}
	var peer *Conn
	if err := server.Do(func() {
		for k := range server.conns {
			peer = k
		}
		peer.ResumeReading()
	}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-h.wr:
	case <-time.After(10 * time.Second):
		t.Fatal("no OnWritable")
	}
	for range sent {
		<-sink.got
	}
}

// paused accepts connections with reading off.
type paused struct{ *collector }

func (p *paused) OnOpen(c *Conn) { c.PauseReading() }

func TestTCPDrain(t *testing.T) {
	server := startLoop(t, Options{})
	sink := newCollector()
	ln, err := server.Listen("tcp://127.0.0.1:0", sink)
	if err != nil {
		t.Fatal(err)
	}
	client := startLoop(t, Options{})
	h := newCollector()
	c, err := client.Dial(dialCtx(t), ln.URL(), h)
	if err != nil {
		t.Fatal(err)
	}
	const n = 100
	if err := client.Do(func() {
		for i := range n {
			if err := sendCopy(c, fmt.Appendf(nil, "message %d", i)); err != nil {
				t.Error(err)
			}
		}
		c.Drain(client.Now() + int64(5*time.Second))
		if err := sendCopy(c, []byte("late")); !errors.Is(err, ErrClosed) {
			t.Errorf("Send while draining: %v", err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if got := <-sink.got; string(got) != fmt.Sprintf("message %d", i) {
			t.Fatalf("message %d: %q", i, got)
		}
	}
	if err := waitClose(t, h); err != nil {
		t.Errorf("drained side: %v", err)
	}
	if err := waitClose(t, sink); err != nil {
		t.Errorf("peer: %v", err)
	}
}

func TestTCPDrainDeadline(t *testing.T) {
	server := startLoop(t, Options{})
	sink := newCollector()
	ln, err := server.Listen("tcp://127.0.0.1:0", &paused{sink})
	if err != nil {
		t.Fatal(err)
	}
	client := startLoop(t, Options{MaxQueuedBytes: 64 << 20})
	h := newCollector()
	c, err := client.Dial(dialCtx(t), ln.URL(), h)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Do(func() {
		for range 8 {
			if err := sendCopy(c, make([]byte, 4<<20)); err != nil {
				t.Error(err)
			}
		}
		c.Drain(client.Now() + int64(50*time.Millisecond))
	}); err != nil {
		t.Fatal(err)
	}
	if err := waitClose(t, h); !errors.Is(err, ErrDrainTimeout) {
		t.Errorf("got %v", err)
	}
	if err := waitClose(t, sink); err == nil {
		t.Error("a close that dropped messages looked orderly to the peer")
	}
}

// A handler that keeps every message must get bytes that stay as they were, and
// exhausting the pool must only delay what follows.
func TestTCPRetainAndStarve(t *testing.T) {
	server := startLoop(t, Options{Pool: testPool(t, 8<<20)})
	h := &keeper{kept: make(chan Message, 1<<16)}
	ln, err := server.Listen("tcp://127.0.0.1:0", h)
	if err != nil {
		t.Fatal(err)
	}
	nc := rawDial(t, ln)
	const n, size = 600, 40 << 10 // 24 MB through a pool of 8
	go func() {
		for i := range n {
			p := bytes.Repeat([]byte{byte(i)}, size)
			if _, err := nc.Write(append(binary.BigEndian.AppendUint32(nil, size), p...)); err != nil {
				return
			}
		}
	}()
	var held []Message
	for i := 0; i < n; {
		select {
		case m := <-h.kept:
			if m.Len() != size || m.Data[0] != byte(i) || m.Data[size-1] != byte(i) {
				t.Fatalf("message %d changed", i)
			}
			held = append(held, m)
			i++
		case <-time.After(100 * time.Millisecond): // starved: give some back
			for k := range held {
				if b := held[k].Data[0]; bytes.Count(held[k].Data, []byte{b}) != size {
					t.Fatal("a retained message changed")
				}
				held[k].Release()
			}
			held = held[:0]
		}
	}
	for k := range held {
		held[k].Release()
	}
}

type keeper struct {
	BaseHandler
	kept chan Message
}

func (k *keeper) OnMessages(_ *Conn, ms []Message) {
	for i := range ms {
		k.kept <- ms[i].Retain()
	}
}

func TestTCPShutdownDrainsAndFreesAll(t *testing.T) {
	server, err := NewLoop(Options{Pool: testPool(t, 64<<20)})
	if err != nil {
		t.Fatal(err)
	}
	run := make(chan error, 1)
	go func() { run <- server.Run() }()
	h := &greeter{newCollector(), make(chan struct{})}
	ln, err := server.Listen("tcp://127.0.0.1:0", h)
	if err != nil {
		t.Fatal(err)
	}
	client := startLoop(t, Options{})
	ch := newCollector()
	if _, err := client.Dial(dialCtx(t), ln.URL(), ch); err != nil {
		t.Fatal(err)
	}
	<-h.greeted // the client's end may be open before the server's
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-run; err != nil {
		t.Fatal(err)
	}
	if got := <-ch.got; len(got) != 100_000 {
		t.Errorf("greeting of %d bytes", len(got))
	}
	if err := waitClose(t, ch); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := server.Submit(func() {}); !errors.Is(err, ErrLoopClosed) {
		t.Errorf("Submit after the end: %v", err)
	}
	if _, err := server.Listen("tcp://127.0.0.1:0", h); !errors.Is(err, ErrLoopClosed) {
		t.Errorf("Listen after the end: %v", err)
	}
}

type greeter struct {
	*collector
	greeted chan struct{}
}

func (g *greeter) OnOpen(c *Conn) {
	_ = sendCopy(c, make([]byte, 100_000))
	close(g.greeted)
}
