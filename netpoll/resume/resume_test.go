package resume_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/resume"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func startLoop(t *testing.T, scheme string) *netpoll.Loop {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 32 << 20, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	var b netpoll.Backend = netpoll.NewTCP()
	if scheme == "rdma" {
		local := netip.MustParseAddrPort("127.0.0.1:0")
		b = rdma.NewEventLoop(softroce.NewFabric(local, softroce.Options{PeerTimeout: 10 * time.Second}), rdma.EventLoopOptions{})
	}
	l, err := netpoll.NewLoop(netpoll.Options{Pool: hugepages.NewPool(arena), Backends: []netpoll.Backend{b}})
	if err != nil {
		t.Fatal(err)
	}
	run := make(chan error, 1)
	go func() { run <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-run; err != nil {
			t.Error(err)
		}
		if err := arena.Close(); err != nil { // every buffer is back, also of sessions without a connection
			t.Error(err)
		}
	})
	return l
}

// end sends count numbered messages of random lengths and checks those that come.
type end struct {
	t       *testing.T
	name    string
	rng     *rand.Rand
	count   int // to send
	expect  int // to come
	sent    int
	got     int
	session *resume.Session
	opened  chan *resume.Session
	done    chan struct{} // all has come
	closed  chan error
	unacked int
}

func newEnd(t *testing.T, name string, seed uint64, send, expect int) *end {
	return &end{t: t, name: name, rng: rand.New(rand.NewPCG(seed, uint64(len(name)))), count: send, expect: expect,
		opened: make(chan *resume.Session, 1), done: make(chan struct{}), closed: make(chan error, 1)}
}

func (e *end) OnOpen(s *resume.Session) {
	e.session = s
	e.opened <- s
	e.OnWritable(s)
}

func (e *end) OnWritable(s *resume.Session) {
	for e.sent < e.count {
		n := 8 + e.rng.IntN(3000)
		if e.rng.IntN(50) == 0 {
			n += 20_000
		}
		b, err := s.Loop().Pool().Get(n, hugepages.Send)
		if err != nil {
			e.t.Error(err)
			return
		}
		fill(b.Bytes(), e.sent)
		if err := s.Send(b); err != nil {
			b.Release()
			if !errors.Is(err, netpoll.ErrBackpressure) {
				e.t.Errorf("%s: send: %v", e.name, err)
			}
			return
		}
		e.sent++
	}
}

func fill(p []byte, i int) {
	for k := range p {
		p[k] = byte(i + k)
	}
	binary.BigEndian.PutUint64(p, uint64(i))
}

func (e *end) OnMessage(s *resume.Session, m *netpoll.Message) {
	p := bytes.Clone(m.Data)
	for _, seg := range m.Rest {
		p = append(p, seg.Data...)
	}
	want := make([]byte, len(p))
	fill(want, e.got)
	if !bytes.Equal(p, want) {
		e.t.Errorf("%s: message %d of %d bytes begins % x", e.name, e.got, len(p), p[:8])
		s.Abort(errors.New("test failed"))
		return
	}
	if e.got++; e.got == e.expect {
		close(e.done)
	}
}

func (e *end) OnClose(s *resume.Session, err error) {
	e.unacked = len(s.Unacked())
	e.closed <- err
}

func (e *end) wait(c chan struct{}) {
	e.t.Helper()
	select {
	case <-c:
	case err := <-e.closed:
		e.t.Fatalf("%s: closed: %v", e.name, err)
	case <-time.After(30 * time.Second):
		e.t.Fatalf("%s: %d of %d came", e.name, e.got, e.expect)
	}
}

func (e *end) waitClose() error {
	e.t.Helper()
	select {
	case err := <-e.closed:
		return err
	case <-time.After(30 * time.Second):
		e.t.Fatalf("%s: no OnClose", e.name)
		return nil
	}
}

// cutter forwards TCP connections and cuts each after a random number of bytes, in
// the middle of whatever they carry.
type cutter struct {
	ln    net.Listener
	to    string
	mu    sync.Mutex
	rng   *rand.Rand
	cuts  int
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newCutter(t *testing.T, to string, seed uint64) *cutter {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{ln: ln, to: to, rng: rand.New(rand.NewPCG(seed, 99)), conns: map[net.Conn]bool{}}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			c.forward(in, out)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		c.mu.Lock()
		for nc := range c.conns {
			nc.Close()
		}
		c.mu.Unlock()
		c.wg.Wait()
	})
	return c
}

func (c *cutter) forward(in, out net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
		limit := int64(c.rng.IntN(300_000))
		c.conns[p[0]] = true
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			n, _ := io.CopyN(p[1], p[0], limit)
			c.mu.Lock()
			defer c.mu.Unlock()
			if n == limit {
				c.cuts++
			}
			delete(c.conns, p[0])
			for _, nc := range p {
				if n == limit {
					_ = nc.(*net.TCPConn).SetLinger(0) // what is under way is lost
				}
				nc.Close()
			}
		}()
	}
}

// Connections that break at random points, noticed by either end or by both, lose
// nothing, repeat nothing and keep the order.
func TestConnectionsBreak(t *testing.T) {
	for _, scheme := range []string{"tcp", "rdma"} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%s/%d", scheme, seed), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 7))
				server, client := startLoop(t, scheme), startLoop(t, scheme)
				const n = 1500
				counts := [2]int{n, n}
				counts[seed%2] = 10 * int(seed%3) // sometimes nearly one way
				se, ce := newEnd(t, "server", seed, counts[0], counts[1]), newEnd(t, "client", seed, counts[1], counts[0])
				for _, e := range []*end{se, ce} {
					if e.expect == 0 {
						close(e.done)
					}
				}
				o := resume.Options{MaxMessages: 64 << rng.IntN(5)}
				ln, err := resume.Listen(server, scheme+"://127.0.0.1:0", se, o)
				if err != nil {
					t.Fatal(err)
				}
				url := ln.URL()
				var cut *cutter
				if scheme == "tcp" {
					cut = newCutter(t, strings.TrimPrefix(url, "tcp://"), seed)
					url = "tcp://" + cut.ln.Addr().String()
				}
				if _, err := resume.Dial(client, url, ce, o); err != nil {
					t.Fatal(err)
				}
				<-ce.opened
				<-se.opened
				quiet := make(chan struct{})
				var breaks int
				broken := make(chan struct{})
				go func() {
					defer close(broken)
					for {
						select {
						case <-quiet:
							return
						case <-time.After(time.Duration(rng.IntN(8000)) * time.Microsecond):
						}
						e, l := se, server
						if rng.IntN(2) == 0 {
							e, l = ce, client
						}
						_ = l.Do(func() {
							if c := e.session.Conn(); c != nil {
								c.Close(errors.New("cut by the test"))
								breaks++
							}
						})
					}
				}()
				se.wait(se.done)
				ce.wait(ce.done)
				close(quiet)
				<-broken
				// The end that closes is either; the connections go on breaking over TCP.
				closer, l := se, server
				if seed%4 < 2 {
					closer, l = ce, client
				}
				if err := l.Do(closer.session.Close); err != nil {
					t.Fatal(err)
				}
				if err := se.waitClose(); err != nil {
					t.Errorf("server: %v", err)
				}
				if err := ce.waitClose(); err != nil {
					t.Errorf("client: %v", err)
				}
				if se.got != se.expect || ce.got != ce.expect {
					t.Errorf("%d and %d messages came", se.got, ce.got)
				}
				if closer.unacked > 0 {
					t.Errorf("the closing end still held %d messages", closer.unacked)
				}
				var ss, cs resume.Stats
				_ = server.Do(func() { ss = se.session.Stats() })
				_ = client.Do(func() { cs = ce.session.Stats() })
				if cut != nil {
					cut.mu.Lock() // its last connections may still end
					breaks += cut.cuts
					cut.mu.Unlock()
				}
				t.Logf("%d breaks; server %+v, client %+v", breaks, ss, cs)
				if breaks > 0 && cs.Connections < 2 {
					t.Error("nothing was resumed")
				}
			})
		}
	}
}

// A process that does not know the session ends it, and what is not acknowledged
// comes back.
func TestLost(t *testing.T) {
	first, second, client := startLoop(t, "tcp"), startLoop(t, "tcp"), startLoop(t, "tcp")
	ln, err := resume.Listen(first, "tcp://127.0.0.1:0", newEnd(t, "server", 1, 0, -1), resume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ce := newEnd(t, "client", 1, 0, 0)
	if _, err := resume.Dial(client, ln.URL(), ce, resume.Options{}); err != nil {
		t.Fatal(err)
	}
	s := <-ce.opened
	first.Stop()
	<-first.Done()
	_ = client.Do(func() {
		for i := range 5 { // while there is no connection
			ce.count = i + 1
			ce.OnWritable(s)
		}
	})
	if _, err := resume.Listen(second, ln.URL(), newEnd(t, "another", 1, 0, -1), resume.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := ce.waitClose(); !errors.Is(err, resume.ErrLost) {
		t.Errorf("got %v", err)
	}
	if ce.unacked != 5 {
		t.Errorf("%d came back", ce.unacked)
	}
}

// The queue of what is not acknowledged is bounded, and so is the wait for a
// connection.
func TestBounds(t *testing.T) {
	client := startLoop(t, "tcp")
	ce := newEnd(t, "client", 1, 0, 0)
	s, err := resume.Dial(client, "tcp://127.0.0.1:1", ce, resume.Options{MaxMessages: 3, Patience: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Do(func() {
		for i := range 4 {
			b, err := client.Pool().Get(10, hugepages.Send)
			if err != nil {
				t.Error(err)
				return
			}
			if err = s.Send(b); err != nil {
				b.Release()
			}
			if (i == 3) != errors.Is(err, netpoll.ErrBackpressure) {
				t.Errorf("message %d: %v", i, err)
			}
		}
	})
	if err := ce.waitClose(); !errors.Is(err, resume.ErrExpired) {
		t.Errorf("got %v", err)
	}
	if ce.unacked != 3 {
		t.Errorf("%d came back", ce.unacked)
	}

	server := startLoop(t, "tcp")
	ln, err := resume.Listen(server, "tcp://127.0.0.1:0", newEnd(t, "server", 1, 0, -1), resume.Options{MaxSessions: 1})
	if err != nil {
		t.Fatal(err)
	}
	one, two := newEnd(t, "one", 1, 0, 0), newEnd(t, "two", 1, 0, 0)
	if _, err := resume.Dial(client, ln.URL(), one, resume.Options{}); err != nil {
		t.Fatal(err)
	}
	<-one.opened
	if _, err := resume.Dial(client, ln.URL(), two, resume.Options{Patience: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if err := two.waitClose(); !errors.Is(err, resume.ErrExpired) {
		t.Errorf("got %v", err)
	}
}

// Whatever a peer says, it ends its own connection at most.
func FuzzMessages(f *testing.F) {
	hello := append([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 16)...)
	data := func(kind, seq, ack byte) []byte {
		return []byte{kind, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, seq, 0, 0, 0, 0, 0, 0, 0, ack}
	}
	f.Add(hello, data(3, 1, 1))
	f.Add(hello, data(5, 1, 1))
	f.Add(hello, data(4, 1, 9))
	f.Add(hello, data(3, 7, 1))
	f.Add(data(3, 1, 1), hello)
	f.Add([]byte{}, hello)
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 16 << 20, Backing: hugepages.Ordinary})
	if err != nil {
		f.Fatal(err)
	}
	l, err := netpoll.NewLoop(netpoll.Options{Pool: hugepages.NewPool(arena)})
	if err != nil {
		f.Fatal(err)
	}
	run := make(chan error, 1)
	go func() { run <- l.Run() }()
	ln, err := resume.Listen(l, "tcp://127.0.0.1:0", sink{}, resume.Options{Patience: time.Millisecond})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		l.Stop()
		if err := errors.Join(<-run, arena.Close()); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		nc, err := net.Dial("tcp", strings.TrimPrefix(ln.URL(), "tcp://"))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := netpoll.Handshake(nc, 1<<20); err != nil {
			t.Fatal(err)
		}
		var p []byte
		for _, m := range [][]byte{a, b} {
			p = append(binary.BigEndian.AppendUint32(p, uint32(len(m))), m...)
		}
		_, _ = nc.Write(p)
		_ = nc.(*net.TCPConn).CloseWrite()
		_ = nc.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("it hangs")
		}
	})
}

type sink struct{}

func (sink) OnOpen(*resume.Session)                      {}
func (sink) OnMessage(*resume.Session, *netpoll.Message) {}
func (sink) OnWritable(*resume.Session)                  {}
func (sink) OnClose(*resume.Session, error)              {}
