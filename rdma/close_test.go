package rdma_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// pair connects a client to a server with collectors on both sides.
func pair(t *testing.T, server, client *node, open func(*netpoll.Conn)) (c *netpoll.Conn, ch, sh *collector) {
	t.Helper()
	sh, ch = newCollector(), newCollector()
	sh.open = open
	return client.dial(server.listen(sh), ch), ch, sh
}

func TestDrain(t *testing.T) {
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	c, ch, sh := pair(t, server, client, nil)
	const n = 300
	client.do(func() {
		for i := range n {
			if err := sendCopy(c, pattern(i, 50*i)); err != nil {
				t.Error(err)
			}
		}
		c.Drain(client.loop.Now() + int64(5*time.Second))
		if err := sendCopy(c, []byte("late")); !errors.Is(err, netpoll.ErrClosed) {
			t.Errorf("Send while draining: %v", err)
		}
	})
	if err := ch.waitClose(t); err != nil {
		t.Errorf("drained side: %v", err)
	}
	if err := sh.waitClose(t); err != nil {
		t.Errorf("peer: %v", err)
	}
	for i := range n {
		if got := <-sh.got; !bytes.Equal(got, pattern(i, 50*i)) {
			t.Fatalf("message %d differs", i)
		}
	}
}

// A close is noticed after the messages before it, also by a reader that paused.
func TestByeWaitsForPausedReader(t *testing.T) {
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	var peer *netpoll.Conn
	c, ch, sh := pair(t, server, client, func(c *netpoll.Conn) { peer = c; c.PauseReading() })
	client.do(func() {
		// The one that a connection can take before it has delivered anything.
		if err := sendCopy(c, pattern(0, 100)); err != nil {
			t.Error(err)
		}
		c.Drain(client.loop.Now() + int64(5*time.Second))
	})
	if err := ch.waitClose(t); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-sh.closed:
		t.Fatalf("closed before delivery: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	server.do(func() { peer.ResumeReading() })
	if err := sh.waitClose(t); err != nil {
		t.Errorf("peer: %v", err)
	}
	if len(sh.got) != 1 {
		t.Errorf("%d messages of 1", len(sh.got))
	}
}

func TestDrainDeadline(t *testing.T) {
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	c, ch, sh := pair(t, server, client, (*netpoll.Conn).PauseReading)
	client.do(func() {
		if err := sendCopy(c, make([]byte, 4<<20)); err != nil {
			t.Error(err)
		}
		c.Drain(client.loop.Now() + int64(50*time.Millisecond))
	})
	if err := ch.waitClose(t); !errors.Is(err, netpoll.ErrDrainTimeout) {
		t.Errorf("got %v", err)
	}
	if err := sh.waitClose(t); !errors.Is(err, rdma.ErrPeerAborted) {
		t.Errorf("peer: %v", err)
	}
}

func TestShutdownDrains(t *testing.T) {
	server := startNode(t, nodeOptions{stopped: true})
	client := startNode(t, nodeOptions{})
	greeted := make(chan struct{})
	_, ch, sh := pair(t, server, client, func(c *netpoll.Conn) {
		_ = sendCopy(c, make([]byte, 100_000))
		close(greeted)
	})
	<-greeted // the client's end may be open before the server's
	if err := server.loop.Shutdown(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-server.run; err != nil {
		t.Fatal(err)
	}
	if err := sh.waitClose(t); err != nil {
		t.Errorf("server: %v", err)
	}
	if err := ch.waitClose(t); err != nil {
		t.Errorf("client: %v", err)
	}
	if got := <-ch.got; len(got) != 100_000 {
		t.Errorf("greeting of %d bytes", len(got))
	}
}

// Handlers may close from within any of their methods, and on both sides at once.
func TestCloseInsideHandlers(t *testing.T) {
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	closer := &closer{closed: make(chan error, 16)}
	url := server.listen(closer)
	for i := range 8 {
		h := newCollector()
		c := client.dial(url, h)
		client.do(func() {
			for k := range 20 {
				_ = sendCopy(c, pattern(k, 10_000*(i%3)))
			}
		})
		if err := h.waitClose(t); err != nil && !errors.Is(err, rdma.ErrPeerAborted) {
			t.Errorf("client: %v", err)
		}
		if err := <-closer.closed; err != errDone {
			t.Errorf("server: %v", err)
		}
	}
	h := newCollector()
	h.open = func(c *netpoll.Conn) { c.Close(nil) }
	client.dial(url, h)
	if err := h.waitClose(t); err != nil {
		t.Errorf("closed in OnOpen: %v", err)
	}
}

var errDone = errors.New("done")

type closer struct {
	netpoll.BaseHandler
	closed chan error
}

func (h *closer) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	_ = sendCopy(c, []byte("half-way"))
	kept := ms[0].Retain()
	c.Close(errDone)
	c.Flush()
	c.ResumeReading()
	kept.Release()
}
func (h *closer) OnClose(_ *netpoll.Conn, err error) { h.closed <- err }

// A process that dies closes its sockets, with no farewell on the bootstrap.
func TestPeerDies(t *testing.T) {
	server := startNode(t, nodeOptions{})
	sh := newCollector()
	r := dialRaw(t, server.listen(sh), nil)
	r.send(0, false, 100)
	r.nc.Close()
	err := sh.waitClose(t)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "died or cannot be reached") {
		t.Errorf("got %v", err)
	}
	if len(sh.got) != 1 {
		t.Error("what arrived before was not delivered")
	}
}

// A peer whose bootstrap stays up while its device is deaf.
func TestPeerDeaf(t *testing.T) {
	server := startNode(t, nodeOptions{timeout: 300 * time.Millisecond})
	sh := newCollector()
	sh.open = func(c *netpoll.Conn) { _ = sendCopy(c, []byte("anybody there?")) }
	r := dialRaw(t, server.listen(sh), func(qp *bootstrap.QP) { qp.QPN ^= 1 })
	if err := sh.waitClose(t); err == nil || !strings.Contains(err.Error(), rdma.RetryExceeded.String()) {
		t.Errorf("got %v", err)
	}
	m, err := r.bye()
	if refusal, ok := m.(*bootstrap.Refusal); !ok || !strings.Contains(refusal.Reason, "retry counter exceeded") {
		t.Errorf("the peer was told %+v, %v", m, err)
	}
}

// Closing a connection whose peer stands still waited for three beats in vain: the
// watch over the bootstrap connection kept its farewell from being read.
func TestStopBesideStandingPeer(t *testing.T) {
	t.Cleanup(rdma.SetBeatInterval(time.Hour))
	server := startNode(t, nodeOptions{timeout: 300 * time.Millisecond, stopped: true})
	sh := newCollector()
	sh.open = func(c *netpoll.Conn) { _ = sendCopy(c, []byte("anybody there?")) }
	dialRaw(t, server.listen(sh), func(qp *bootstrap.QP) { qp.QPN ^= 1 })
	if err := sh.waitClose(t); err == nil {
		t.Error("the peer answered")
	}
	stopped := make(chan struct{})
	go func() { server.stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(30 * time.Second):
		t.Fatal("the loop does not stop")
	}
}

func TestPeerBreaksProtocol(t *testing.T) {
	const more, credit, control, yield = 1 << 31, 1 << 30, 1 << 29, 1 << 28
	type message struct {
		imm    uint32
		hasImm bool
		bytes  int
	}
	for _, tc := range []struct {
		name string
		send []message
		text string
	}{
		{"unknown bits", []message{{1 << 20, true, 10}}, "unknown bits"},
		{"too many credits", []message{{5000, true, 10}}, "more than 4096 receives"},
		{"control not taken", []message{{control, true, 10}}, "a control receive that is free"},
		{"two controls", []message{{credit, true, 0}, {credit, true, 0}}, "before the last one was answered"},
		{"control that yields", []message{{credit | yield, true, 0}}, "control message with data"},
		{"yield with data", []message{{yield, true, 10}}, "a yield with data"},
		{"yield of nothing", []message{{yield | 1<<16, true, 0}}, "of 1 receives where it held 0"},
		{"yield that goes on", []message{{yield | more, true, 0}}, "a yield with data"},
		{"control with data", []message{{credit, true, 10}}, "control message with data"},
		{"control that goes on", []message{{credit | more, true, 0}}, "control message with data"},
		{"short piece", []message{{more, true, 100}}, "piece of 100 bytes"},
		{"empty piece", []message{{more, true, 0}}, "piece of 0 bytes"},
		{"too long", []message{{more, true, 8188}, {more, true, 8188}, {more, true, 8188}}, "more than 20000 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := startNode(t, nodeOptions{loop: netpoll.Options{MaxMessageBytes: 20_000}})
			sh := newCollector()
			open := make(chan struct{})
			sh.open = func(*netpoll.Conn) { close(open) }
			r := dialRaw(t, server.listen(sh), nil)
			<-open // what comes before it refuses the connection
			for _, m := range tc.send {
				r.send(m.imm, m.hasImm, m.bytes)
			}
			if err := sh.waitClose(t); !errors.Is(err, netpoll.ErrProtocol) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
			if m, err := r.bye(); err != nil {
				t.Errorf("the peer was told %+v, %v", m, err)
			} else if refusal, ok := m.(*bootstrap.Refusal); !ok || !strings.Contains(refusal.Reason, tc.text) {
				t.Errorf("the peer was told %+v", m)
			}
			if len(sh.got) > 0 {
				t.Error("delivered")
			}
		})
	}
}

func TestPeerClosesInsideMessage(t *testing.T) {
	server := startNode(t, nodeOptions{})
	sh := newCollector()
	r := dialRaw(t, server.listen(sh), nil)
	r.send(1<<31, true, r.peer.ReceiveBytes)
	if err := bootstrap.Send(r.nc, &bootstrap.Bye{Orderly: true}); err != nil {
		t.Fatal(err)
	}
	if err := sh.waitClose(t); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "middle of a message") {
		t.Errorf("got %v", err)
	}
}

// A peer that ignores its credits is disconnected by name, and hurts nobody else.
func TestPeerOverrunsCredits(t *testing.T) {
	server := startNode(t, nodeOptions{mayRNR: true})
	sh := newCollector()
	open := make(chan struct{})
	sh.open = func(c *netpoll.Conn) { c.PauseReading(); close(open) }
	r := dialRaw(t, server.listen(sh), nil)
	<-open // what comes before it refuses the connection
	var wrs []rdma.SendWR
	for i := range 8 {
		wrs = append(wrs, rdma.SendWR{ID: uint64(i), Data: r.mem.Bytes()[:10]})
	}
	if _, err := r.qp.PostSend(wrs); err != nil {
		t.Fatal(err)
	}
	r.dev.Progress(1)
	if err := sh.waitClose(t); !errors.Is(err, netpoll.ErrProtocol) || !strings.Contains(err.Error(), "more than it was granted") {
		t.Errorf("got %v", err)
	}
	h := newCollector()
	client := startNode(t, nodeOptions{})
	c := client.dial(server.listen(&echo{}), h)
	client.do(func() {
		if err := sendCopy(c, []byte("still here")); err != nil {
			t.Error(err)
		}
	})
	if got := h.next(t); string(got) != "still here" {
		t.Errorf("got %q", got)
	}
}

// Connections come and go on one device; completion queues are shared and reused.
func TestManyConnections(t *testing.T) {
	small := rdma.EventLoopOptions{Receives: 4, ReceiveBytes: 1024}
	server, client := startNode(t, nodeOptions{rdma: small}), startNode(t, nodeOptions{rdma: small})
	url := server.listen(&echo{})
	for range 2 {
		var conns []*netpoll.Conn
		var hs []*collector
		for range 70 { // more than share a completion queue
			h := newCollector()
			hs = append(hs, h)
			conns = append(conns, client.dial(url, h))
		}
		client.do(func() {
			for i, c := range conns {
				for k := range 5 {
					if err := sendCopy(c, fmt.Appendf(nil, "%d/%d", i, k)); err != nil {
						t.Error(err)
					}
				}
			}
		})
		for i, h := range hs {
			for k := range 5 {
				if got := h.next(t); string(got) != fmt.Sprintf("%d/%d", i, k) {
					t.Fatalf("connection %d: %q", i, got)
				}
			}
		}
		client.do(func() {
			for _, c := range conns {
				c.Close(nil)
			}
		})
		for _, h := range hs {
			if err := h.waitClose(t); err != nil {
				t.Fatal(err)
			}
		}
		for deadline := time.Now().Add(5 * time.Second); server.loop.Stats().Connections > 0; {
			if time.Now().After(deadline) {
				t.Fatal("the server keeps connections")
			}
			time.Sleep(time.Millisecond)
		}
	}
}
