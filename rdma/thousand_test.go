package rdma_test

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// tally counts the messages of each connection, which begin with its number, and
// looks at the counts when half of all are there.
type tally struct {
	netpoll.BaseHandler
	el     *rdma.EventLoop
	counts []int
	total  int
	half   []int
	most   int64 // receives posted
	done   chan struct{}
}

func (h *tally) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	h.most = max(h.most, h.el.Stats().Receives)
	for i := range ms {
		h.counts[binary.BigEndian.Uint32(ms[i].Data)]++
		h.total--
		if h.total == len(h.half)*perConn/2 {
			copy(h.half, h.counts)
		}
		if h.total == 0 {
			close(h.done)
		}
	}
}

const perConn = 24

// A thousand connections hold two receives each while they are idle, share what
// the loop has when all are busy, none left behind, and give it back.
func TestThousandConnections(t *testing.T) {
	const n, shared = 1000, 3000
	server := startNode(t, nodeOptions{rdma: rdma.EventLoopOptions{SharedReceives: shared}, loop: netpoll.Options{Pool: testPool(t, 64<<20)}, timeout: 30 * time.Second})
	client := startNode(t, nodeOptions{loop: netpoll.Options{Pool: testPool(t, 128<<20)}, timeout: 30 * time.Second})
	h := &tally{el: server.el, counts: make([]int, n), half: make([]int, n), total: n * perConn, done: make(chan struct{})}
	url := server.listen(h)

	// First one, so that what the loops need for themselves is there.
	conns := []*netpoll.Conn{client.dial(url, &netpoll.BaseHandler{})}
	before := heap()
	opened := make(chan *netpoll.Conn, n)
	for i := 1; i < n; i++ {
		client.loop.DialAsync(url, &netpoll.BaseHandler{}, func(c *netpoll.Conn, err error) {
			if err != nil {
				t.Error(err)
			}
			opened <- c
		})
		if i%50 == 0 || i == n-1 { // as many as a listener sets up at once, so that none waits for its turn too long
			for len(conns) <= i {
				if c := <-opened; c != nil {
					conns = append(conns, c)
				} else {
					t.FailNow()
				}
			}
		}
	}
	for deadline := time.Now().Add(10 * time.Second); server.loop.Stats().Connections < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not all are open")
		}
	}
	s := server.el.Stats()
	if s.Receives != 2*n || s.ReceiveBytes != 2*n*8188 {
		t.Errorf("%d idle connections hold %d receives of together %d bytes", n, s.Receives, s.ReceiveBytes)
	}
	if held := server.loop.Pool().Stats().Purposes[hugepages.Receive].Bufs; held != 2*n {
		t.Errorf("%d receive buffers are in use", held)
	}
	perEnd := (heap() - before) / (2 * (n - 1))
	t.Logf("memory of an idle connection, each end: %d bytes of receive buffers, %d bytes of Go heap and stacks", s.ReceiveBytes/n, perEnd)
	if perEnd > 64<<10 {
		t.Errorf("%d bytes for each end", perEnd)
	}

	client.do(func() {
		for range perConn {
			for i, c := range conns {
				b, err := c.Alloc(1100) // too large to travel packed
				if err != nil {
					t.Error(err)
					return
				}
				binary.BigEndian.PutUint32(b.Bytes(), uint32(i))
				if err := c.Send(b); err != nil {
					t.Error(err)
				}
			}
		}
	})
	select {
	case <-h.done:
	case <-time.After(60 * time.Second):
		t.Fatalf("%d messages are missing", h.total)
	}
	least, most := perConn, 0
	for i, got := range h.half {
		least, most = min(least, got), max(most, got)
		if h.counts[i] != perConn {
			t.Errorf("connection %d: %d messages", i, h.counts[i])
		}
	}
	// Once more, each lent.
	again := make(chan struct{})
	server.do(func() { h.total, h.done = n, again })
	for i, c := range conns {
		client.lend(c, binary.BigEndian.AppendUint32(nil, uint32(i)))
	}
	select {
	case <-again:
	case <-time.After(60 * time.Second):
		t.Fatalf("%d lent messages are missing", h.total)
	}
	t.Logf("when half had arrived: %d to %d of each connection's; at most %d receives posted", least, most, h.most)
	if least < perConn/4 {
		t.Errorf("unfair: %d to %d of %d", least, most, perConn)
	}
	if h.most > shared {
		t.Errorf("%d receives posted, the bound is %d", h.most, shared)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// A sender that idles gives its credits back, and gets them again.
func TestYield(t *testing.T) {
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	h := newCollector()
	url := server.listen(&echo{})
	c := client.dial(url, h)
	for round := range 3 {
		client.do(func() {
			for i := range 200 {
				if err := sendCopy(c, pattern(i, 300)); err != nil {
					t.Error(err)
				}
			}
		})
		for range 200 {
			h.next(t)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			// 64 receives at most were granted: the other end gives back all but one.
			if ss, cs := server.el.Stats(), client.el.Stats(); ss.Yields > uint64(round) && cs.Yields > uint64(round) && ss.Yielded > 0 && cs.Yielded > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: server %+v, client %+v", round, server.el.Stats(), client.el.Stats())
			}
		}
	}
}
