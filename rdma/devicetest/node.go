package devicetest

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
)

const (
	depth     = 32      // of work queues, unless a test says otherwise
	slotBytes = 1 << 20 // the longest message
	slots     = 4
	smallSlot = 4096 // of the small slots behind them, one for each work request
)

// wallLimit ends a test whose device makes no progress. Machines that are emulated
// in software and shared are slow.
const wallLimit = 60 * time.Second

// world is two devices and the time that passes for them.
type world struct {
	t        *testing.T
	pair     Pair
	a, b     *node
	deadPeer time.Duration
}

// node is a device with registered memory.
type node struct {
	t     *testing.T
	dev   rdma.Device
	arena *hugepages.Arena
	pd    rdma.PD
	mr    *rdma.MR
	open  bool
}

func newWorld(t *testing.T, s Setup) *world {
	t.Helper()
	w := &world{t: t, pair: s.Open(t), deadPeer: s.DeadPeer}
	if w.pair.Now == nil {
		start := time.Now()
		w.pair.Now = func() int64 { return int64(time.Since(start)) + 1 }
	}
	if w.pair.Idle == nil {
		w.pair.Idle = func(int64) {}
	}
	w.a, w.b = newNode(t, w.pair.A), newNode(t, w.pair.B)
	return w
}

func newNode(t *testing.T, dev rdma.Device) *node {
	t.Helper()
	n := &node{t: t, dev: dev, open: true}
	var err error
	if n.arena, err = hugepages.NewArena(hugepages.ArenaOptions{Bytes: slots*slotBytes + 2*depth*smallSlot, Backing: hugepages.Ordinary}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.open {
			if err := dev.Close(); err != nil {
				t.Errorf("closing the device: %v", err)
			}
		}
		if err := n.arena.Close(); err != nil {
			t.Error(err)
		}
	})
	if n.pd, err = dev.AllocPD(); err != nil {
		t.Fatal(err)
	}
	if n.mr, err = n.pd.RegisterMR(n.arena, 0); err != nil {
		t.Fatal(err)
	}
	return n
}

// big is a place for a message of up to slotBytes.
func (n *node) big(i int) []byte { return n.arena.Bytes()[i%slots*slotBytes:][:slotBytes] }

// tx and rx are places for small messages, one for each work request.
func (n *node) tx(i int) []byte {
	return n.arena.Bytes()[slots*slotBytes+i%depth*smallSlot:][:smallSlot]
}
func (n *node) rx(i int) []byte {
	return n.arena.Bytes()[slots*slotBytes+(depth+i%depth)*smallSlot:][:smallSlot]
}

// end is one end of a connection, with a completion queue of its own.
type end struct {
	*node
	qp rdma.QP
	cq rdma.CQ

	destRdAtomic int
}

func (n *node) newCQ(entries int) rdma.CQ {
	n.t.Helper()
	cq, err := n.dev.CreateCQ(entries)
	if err != nil {
		n.t.Fatal(err)
	}
	return cq
}

func (n *node) newEnd(sends, receives int) *end {
	n.t.Helper()
	return n.newEndOn(n.newCQ(sends+receives), sends, receives)
}

func (n *node) newEndOn(cq rdma.CQ, sends, receives int) *end {
	n.t.Helper()
	return n.newEndWith(rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: sends, RecvWRs: receives})
}

func (n *node) newEndWith(cfg rdma.QPConfig) *end {
	n.t.Helper()
	qp, err := n.pd.CreateQP(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	return &end{node: n, qp: qp, cq: cfg.RecvCQ, destRdAtomic: cfg.MaxDestRdAtomic}
}

func (e *end) remote(mtu int) rdma.Remote {
	a := e.dev.Attr()
	return rdma.Remote{Addr: a.GID, UDPPort: a.UDPPort, QPN: e.qp.Num(), StartPSN: e.qp.StartPSN(), PathMTU: mtu, MaxDestRdAtomic: e.destRdAtomic}
}

// connected gives the two ends of a connection.
func (w *world) connected() (a, b *end) {
	w.t.Helper()
	a, b = w.a.newEnd(depth, depth), w.b.newEnd(depth, depth)
	w.connect(a, b)
	return a, b
}

func (w *world) connect(a, b *end) {
	w.t.Helper()
	mtu := w.mtu()
	for _, e := range [...][2]*end{{a, b}, {b, a}} {
		if err := e[0].qp.Connect(e[1].remote(mtu)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) mtu() int { return min(w.a.dev.Attr().PathMTU, w.b.dev.Attr().PathMTU) }

// step runs both devices once.
func (w *world) step() {
	now := w.pair.Now()
	work, next := 0, int64(0)
	for _, n := range [...]*node{w.a, w.b} {
		if !n.open {
			continue
		}
		did, deadline := n.dev.Progress(now)
		work += did
		if deadline != 0 && (next == 0 || deadline < next) {
			next = deadline
		}
	}
	if work == 0 {
		w.pair.Idle(next)
	}
}

// until runs the devices until done.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for start := time.Now(); !done(); w.step() {
		if time.Since(start) > wallLimit {
			w.t.Fatalf("waited %v for %s", wallLimit, what)
		}
	}
}

// settle gives what should not happen time to happen.
func (w *world) settle() {
	for range 200 {
		w.step()
	}
}

// poll takes n completions of e, in order.
func (w *world) poll(e *end, n int) []rdma.WC {
	w.t.Helper()
	got := make([]rdma.WC, 0, n)
	w.until("completions", func() bool {
		got = got[:len(got)+e.cq.Poll(got[len(got):n])]
		return len(got) == n
	})
	return got
}

// sent checks that the next completion is that of send id, without error.
func (w *world) sent(e *end, id uint64) {
	w.t.Helper()
	wc := w.poll(e, 1)[0]
	if wc.ID != id || wc.Op != rdma.WCSend || wc.Status != rdma.Success || wc.QPN != e.qp.Num() {
		w.t.Fatalf("completion %+v, want that of send %d of queue pair %d", wc, id, e.qp.Num())
	}
}

// received checks that the next completion is that of receive id, with want in data.
func (w *world) received(e *end, id uint64, data, want []byte) rdma.WC {
	w.t.Helper()
	wc := w.poll(e, 1)[0]
	if wc.ID != id || wc.Op != rdma.WCRecv || wc.Status != rdma.Success || wc.QPN != e.qp.Num() {
		w.t.Fatalf("completion %+v, want that of receive %d of queue pair %d", wc, id, e.qp.Num())
	}
	if wc.Bytes != len(want) || !bytes.Equal(data[:wc.Bytes], want) {
		w.t.Fatalf("received %d bytes, want %d; equal: %v", wc.Bytes, len(want), bytes.Equal(data[:min(wc.Bytes, len(want))], want))
	}
	return wc
}

// nothing checks that no completion comes.
func (w *world) nothing(e *end) {
	w.t.Helper()
	w.settle()
	var wcs [1]rdma.WC
	if e.cq.Poll(wcs[:]) != 0 {
		w.t.Fatalf("unexpected completion %+v", wcs[0])
	}
}

// failed collects the completions of n requests of a pair that broke: the first
// one of kind op has one of the statuses, the others are flushed.
func (w *world) failed(e *end, op rdma.WCOpcode, n int, status ...rdma.Status) {
	w.t.Helper()
	for i, wc := range w.poll(e, n) {
		if wc.Op.IsRecv() != op.IsRecv() || wc.QPN != e.qp.Num() {
			w.t.Fatalf("completion %d: %+v, want one of kind %d of queue pair %d", i, wc, op, e.qp.Num())
		}
		ok := i > 0 && wc.Status == rdma.FlushError
		for _, s := range status {
			ok = ok || i == 0 && wc.Status == s
		}
		if !ok {
			w.t.Fatalf("completion %d has status %q, want %v first and then flushes", i, wc.Status, status)
		}
	}
	if s := e.qp.State(); s != rdma.QPError {
		w.t.Errorf("the pair is in state %d after a failure", s)
	}
	if _, err := e.qp.PostSend([]rdma.SendWR{{Data: e.tx(0)[:1]}}); !errors.Is(err, rdma.ErrQPState) {
		w.t.Errorf("a send on a broken pair: %v", err)
	}
}

func (e *end) postSend(wrs ...rdma.SendWR) {
	e.t.Helper()
	if n, err := e.qp.PostSend(wrs); err != nil || n != len(wrs) {
		e.t.Fatalf("posted %d of %d sends: %v", n, len(wrs), err)
	}
}

func (e *end) postRecv(wrs ...rdma.RecvWR) {
	e.t.Helper()
	if n, err := e.qp.PostRecv(wrs); err != nil || n != len(wrs) {
		e.t.Fatalf("posted %d of %d receives: %v", n, len(wrs), err)
	}
}

// fill writes a pattern that differs with seed.
func fill(p []byte, seed int) []byte {
	for i := range p {
		p[i] = byte(seed*131 + i*7 + i>>8)
	}
	return p
}

// pattern is what fill writes, in the Go heap.
func pattern(seed, n int) []byte { return fill(make([]byte, n), seed) }
