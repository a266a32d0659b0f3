package rdma_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

const borrowPatience = 30 * time.Second

// tryLend sends p on c in the place of n's loop, if that sleeps.
func (n *node) tryLend(c *netpoll.Conn, p []byte) (ok bool, err error) {
	done := n.loop.Borrow(func(int64) bool {
		if ok, _ = c.Lends(); ok {
			err = sendCopy(c, p)
		}
		return true
	})
	return done && ok, err
}

// lend is tryLend until it succeeds.
func (n *node) lend(c *netpoll.Conn, p []byte) {
	n.t.Helper()
	for end := time.Now().Add(borrowPatience); ; time.Sleep(time.Millisecond) {
		switch ok, err := n.tryLend(c, p); {
		case err != nil:
			n.t.Fatal(err)
		case ok:
			return
		case time.Now().After(end):
			n.t.Fatal("the loop cannot be borrowed")
		}
	}
}

// lossy is a link that loses a share of what it is given to send, in thousandths.
type lossy struct {
	*softroce.UDPLink
	rng  *rand.Rand
	lose atomic.Int64
}

func (l *lossy) Tx(frames []softroce.Frame) int {
	for i := range frames {
		if int64(l.rng.IntN(1000)) < l.lose.Load() {
			l.TxFree(frames[i : i+1])
		} else if l.UDPLink.Tx(frames[i:i+1]) == 0 {
			return i
		}
	}
	return len(frames)
}

// startLossy is a node behind a link that begins without losses.
func startLossy(t *testing.T, seed uint64, timeout time.Duration) (*node, *lossy) {
	t.Helper()
	link, err := softroce.NewUDPLink(loopback)
	if err != nil {
		t.Fatal(err)
	}
	l := &lossy{UDPLink: link, rng: rand.New(rand.NewPCG(seed, 7))}
	dev := softroce.New(l, softroce.Options{PeerTimeout: timeout})
	return startNode(t, nodeOptions{fabric: rdma.DeviceFabric("udp", dev), loop: netpoll.Options{Idle: netpoll.Efficient()}}), l
}

// Messages leave while the loop sleeps, and their answers come to the loop.
func TestBorrow(t *testing.T) {
	for _, tc := range []struct {
		name string
		wrap func(rdma.Device) rdma.Device
	}{{"transmits", nil}, {"no descriptor", func(d rdma.Device) rdma.Device { return blind{d} }}} {
		t.Run(tc.name, func(t *testing.T) {
			server := startNode(t, nodeOptions{})
			client := startNode(t, nodeOptions{loop: netpoll.Options{Idle: netpoll.Efficient()}, wrap: tc.wrap})
			h := newCollector()
			c := client.dial(server.listen(&echo{}), h)
			const n = 40
			for i := range n {
				p := pattern(i, 1+i*400) // also more than one SEND
				client.lend(c, p)
				if got := h.next(t); string(got) != string(p) {
					t.Fatalf("message %d differs", i)
				}
			}
			if lent := client.loop.Stats().Lent; lent < n-1 { // the last may not show yet
				t.Errorf("lent %d times", lent)
			}
		})
	}
}

// Several goroutines and the loop send while the network loses packets: all comes back,
// once, each sender's in order. What was lost of a lent send is sent again by the loop.
func TestBorrowUnderLoss(t *testing.T) {
	const senders, each = 4, 60
	server, sl := startLossy(t, 1, 20*time.Second)
	client, cl := startLossy(t, 2, 20*time.Second)
	h := newCollector()
	c := client.dial(server.listen(&echo{}), h)
	sl.lose.Store(100)
	cl.lose.Store(100)
	var lent atomic.Int64
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				p := pattern(i, 8+i*50)
				binary.BigEndian.PutUint32(p, uint32(s))
				binary.BigEndian.PutUint32(p[4:], uint32(i))
				ok, err := client.tryLend(c, p)
				for try := 0; !ok && err == nil && try < 20; try++ {
					time.Sleep(100 * time.Microsecond)
					ok, err = client.tryLend(c, p)
				}
				if ok {
					lent.Add(1)
				} else if err == nil {
					err = client.sendAll(c, [][]byte{p})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var next [senders]uint32
	for range senders * each {
		p := h.next(t)
		if s, i := binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:]); i != next[s] {
			t.Fatalf("sender %d: message %d, want %d", s, i, next[s])
		} else {
			next[s]++
		}
	}
	t.Logf("%d of %d were lent", lent.Load(), senders*each)
	if lent.Load() == 0 {
		t.Error("none was lent")
	}
	sl.lose.Store(0)
	cl.lose.Store(0)
}

// A peer that falls silent while the loop sleeps is found by the timers of a lent send.
func TestLentSendToSilentPeer(t *testing.T) {
	server := startNode(t, nodeOptions{})
	client, link := startLossy(t, 3, 200*time.Millisecond)
	h := newCollector()
	c := client.dial(server.listen(&echo{}), h)
	client.lend(c, []byte("hello"))
	h.next(t)
	link.lose.Store(1000)
	client.lend(c, []byte("anybody there?"))
	if err := h.waitClose(t); err == nil || !strings.Contains(err.Error(), "the peer stands still") {
		t.Errorf("closed: %v", err)
	}
	link.lose.Store(0)
}

// refusing is a device whose queue pairs take no sends any more once they are told to.
type refusing struct {
	rdma.Device
	refuse atomic.Bool
}

func (d *refusing) AllocPD() (rdma.PD, error) {
	pd, err := d.Device.AllocPD()
	return refusingPD{pd, d}, err
}

type refusingPD struct {
	rdma.PD
	dev *refusing
}

func (p refusingPD) CreateQP(cfg rdma.QPConfig) (rdma.QP, error) {
	qp, err := p.PD.CreateQP(cfg)
	return refusingQP{qp, p.dev}, err
}

type refusingQP struct {
	rdma.QP
	dev *refusing
}

func (q refusingQP) PostSend(wrs []rdma.SendWR) (int, error) {
	if q.dev.refuse.Load() {
		return 0, rdma.ErrQPState
	}
	return q.QP.PostSend(wrs)
}

// byGoroutine tells on which goroutine the connection ended.
type byGoroutine struct {
	*collector
	on chan string
}

func (h byGoroutine) OnClose(c *netpoll.Conn, err error) {
	h.on <- goroutine()
	h.collector.OnClose(c, err)
}

func goroutine() string {
	var b [64]byte
	return strings.Fields(string(b[:runtime.Stack(b[:], false)]))[1]
}

// A queue pair that fails under a lent send ends its connection on the loop.
func TestLentSendFails(t *testing.T) {
	var dev *refusing
	server := startNode(t, nodeOptions{})
	client := startNode(t, nodeOptions{loop: netpoll.Options{Idle: netpoll.Efficient()}, wrap: func(d rdma.Device) rdma.Device {
		dev = &refusing{Device: d}
		return dev
	}})
	h := byGoroutine{newCollector(), make(chan string, 1)}
	c := client.dial(server.listen(&echo{}), h)
	dev.refuse.Store(true)
	client.lend(c, []byte("into the void"))
	if err := h.waitClose(t); err == nil || !errors.Is(err, rdma.ErrQPState) {
		t.Errorf("closed: %v", err)
	}
	if <-h.on == goroutine() {
		t.Error("OnClose ran within Borrow")
	}
	client.do(func() {
		if ok, _ := c.Lends(); ok {
			t.Error("a closed connection lends")
		}
	})
}

// A connection that drains or closes while others lend its loop: what a drained one took
// arrives, what a closed one took arrives or is dropped, and nobody sends any more.
func TestBorrowWhileItEnds(t *testing.T) {
	for _, drain := range []bool{true, false} {
		server := startNode(t, nodeOptions{})
		client := startNode(t, nodeOptions{loop: netpoll.Options{Idle: netpoll.Efficient()}})
		c, ch, sh := pair(t, server, client, nil)
		var taken atomic.Int64
		var wg sync.WaitGroup
		var stop atomic.Bool
		for range 3 {
			wg.Go(func() {
				for !stop.Load() {
					switch ok, err := client.tryLend(c, []byte("again and again")); {
					case errors.Is(err, netpoll.ErrBackpressure), errors.Is(err, hugepages.ErrExhausted):
					case err != nil:
						t.Error(err)
						return
					case ok:
						taken.Add(1)
					}
				}
			})
		}
		for end := time.Now().Add(borrowPatience); taken.Load() < 100 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		client.do(func() {
			if drain {
				c.Drain(client.loop.Now() + int64(borrowPatience))
			} else {
				c.Close(nil)
			}
		})
		if err := ch.waitClose(t); err != nil {
			t.Errorf("drain %v: %v", drain, err)
		}
		stop.Store(true)
		wg.Wait()
		_ = sh.waitClose(t)
		if got := int64(len(sh.got)); taken.Load() < 100 || drain && got != taken.Load() || got > taken.Load() {
			t.Errorf("drain %v: %d of %d arrived", drain, got, taken.Load())
		}
	}
}
