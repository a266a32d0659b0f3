package memif_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma"
)

// placeless is Pairs of an end that leaves the ICRC out and knows of nothing more.
func placeless() dpdk.Pairs {
	return &wrapped{wrap: func(p *memif.Port) dpdk.Port { return placelessPort{p} }}
}

type placelessPort struct{ *memif.Port }

func (placelessPort) Place(int) []byte { return nil }

const patience = 20 * time.Second

func laneLoop(t testing.TB, p dpdk.Pairs) (*netpoll.Loop, *rdma.EventLoop) {
	el := dpdk.NewEventLoop(p, rdma.EventLoopOptions{Receives: 8, ReceiveBytes: 2044})
	return looptest.Start(t, netpoll.Options{Idle: netpoll.Balanced(), Backends: []netpoll.Backend{el}}), el
}

// waitLone waits until el shows messages sent past the work queue.
func waitLone(t *testing.T, el *rdma.EventLoop) {
	t.Helper()
	for end := time.Now().Add(patience); el.Stats().LoneMessages == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no message was sent past the work queue")
		}
	}
}

// bursts sends messages of all sizes, one to four at once, and expects their echoes in
// order before it sends more.
type bursts struct {
	netpoll.BaseHandler
	t    *testing.T
	rng  *rand.Rand
	left int
	want [][]byte
	done chan struct{}
}

func (h *bursts) send(c *netpoll.Conn) {
	for range 1 + h.rng.IntN(8)/5 {
		n := h.rng.IntN(200)
		if h.rng.IntN(50) == 0 {
			n = h.rng.IntN(20_000)
		}
		b, err := c.Alloc(n)
		if err != nil {
			h.t.Error(err)
			return
		}
		for i := range b.Bytes() {
			b.Bytes()[i] = byte(h.left + i)
		}
		h.want = append(h.want, append([]byte(nil), b.Bytes()...))
		if err := c.Send(b); err != nil {
			h.t.Error(err)
			return
		}
		h.left--
	}
}

func (h *bursts) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		got, err := ms[i].Contiguous(c.Loop().Pool())
		if err != nil || len(h.want) == 0 || !bytes.Equal(got, h.want[0]) {
			h.t.Errorf("with %d left: %d bytes that were not expected next (%v)", h.left, len(got), err)
			c.Close(nil)
			return
		}
		h.want = h.want[1:]
	}
	switch {
	case len(h.want) > 0:
	case h.left > 0:
		h.send(c)
	default:
		close(h.done)
	}
}

// Messages that go past the work queue and others stay in order, also where one end
// cannot send any so.
func TestLoneMessages(t *testing.T) {
	for _, tc := range []struct {
		name           string
		server, client dpdk.Pairs
	}{
		{"both", &memif.Pairs{}, &memif.Pairs{}},
		{"client", placeless(), &memif.Pairs{}},
		{"server", &memif.Pairs{}, placeless()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server, se := laneLoop(t, tc.server)
			client, ce := laneLoop(t, tc.client)
			ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
			if err != nil {
				t.Fatal(err)
			}
			h := &bursts{t: t, rng: rand.New(rand.NewPCG(1, 2)), left: 4000, done: make(chan struct{})}
			c, err := client.Dial(context.Background(), ln.URL(), h)
			if err != nil {
				t.Fatal(err)
			}
			if err := client.Do(func() { h.send(c) }); err != nil {
				t.Fatal(err)
			}
			select {
			case <-h.done:
			case <-time.After(patience):
				t.Fatal("the echoes did not all come")
			}
			for end, el := range map[string]*rdma.EventLoop{"server": se, "client": ce} {
				if tc.name == end || tc.name == "both" {
					waitLone(t, el)
				} else if n := el.Stats().LoneMessages; n > 0 {
					t.Errorf("%s: %d messages past the work queue", end, n)
				}
			}
		})
	}
}

// ends counts messages, and notes for each connection that ended whether its last
// message had come.
type ends struct {
	looptest.Echo
	t    *testing.T
	last map[*netpoll.Conn]bool
	over chan bool
}

func (h *ends) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		h.last[c] = h.last[c] || string(ms[i].Data) == "last"
	}
	if !h.last[c] {
		h.Echo.OnMessages(c, ms)
	}
}

func (h *ends) OnClose(c *netpoll.Conn, err error) {
	if err != nil {
		h.t.Errorf("closed: %v", err)
	}
	h.Echo.OnClose(c, err)
	h.over <- h.last[c]
}

// What was sent before an orderly close arrives before it, though nobody waits for an
// acknowledgement; also more than one look at the ring finds.
func TestLoneMessagesBeforeTheEnd(t *testing.T) {
	const conns = 150
	server, _ := laneLoop(t, &memif.Pairs{})
	client, ce := laneLoop(t, &memif.Pairs{})
	h := &ends{t: t, last: map[*netpoll.Conn]bool{}, over: make(chan bool, conns)}
	ln, err := server.Listen("dpdk://127.0.0.1:0", h)
	if err != nil {
		t.Fatal(err)
	}
	var cs []*netpoll.Conn
	for range conns {
		cs = append(cs, looptest.Dial(t, client, ln.URL(), 10, 20))
	}
	err = client.Do(func() {
		for _, c := range cs {
			b, err := c.Alloc(4)
			if err != nil {
				t.Error(err)
				return
			}
			copy(b.Bytes(), "last")
			if err := c.Send(b); err != nil {
				t.Error(err)
			}
			c.Flush()
			c.Drain(client.Now() + int64(patience))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for range conns {
		select {
		case came := <-h.over:
			if !came {
				t.Error("the last message did not come")
			}
		case <-time.After(patience):
			t.Fatal("not every connection ended")
		}
	}
	waitLone(t, ce)
}

// A server that goes amid lone messages ends its connections; no buffer stays behind.
func TestPeerGoesAmidLoneMessages(t *testing.T) {
	server, _ := laneLoop(t, &memif.Pairs{})
	client, ce := laneLoop(t, &memif.Pairs{})
	ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
	if err != nil {
		t.Fatal(err)
	}
	h := &endless{pinger: pinger{left: -1}, closed: make(chan struct{})}
	c, err := client.Dial(context.Background(), ln.URL(), h)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Do(func() { h.send(c) }); err != nil {
		t.Fatal(err)
	}
	waitLone(t, ce)
	server.Stop()
	select {
	case <-h.closed:
	case <-time.After(patience):
		t.Fatal("the connection did not end")
	}
}

type endless struct {
	pinger
	closed chan struct{}
}

func (h *endless) OnClose(*netpoll.Conn, error) { close(h.closed) }
