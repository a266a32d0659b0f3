package softroce

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a device with one queue pair per peer, slots of registered memory to
// send from and to receive into.
type node struct {
	dev   *Device
	pd    rdma.PD
	mr    *rdma.MR
	cq    rdma.CQ
	qp    rdma.QP
	slot  int // bytes of one slot
	depth int
	srq   rdma.SRQ
	mem   []byte // depth slots to send from, then depth to receive into

	open   []byte // what the peer may read and write
	openMR *rdma.MR
}

type options struct {
	depth, slot int
	cqe         int
	random      func() uint32
	window      int
	peerTimeout time.Duration
	ackDelay    time.Duration
	open        int  // bytes that the peer may read and write
	rdAtomic    int  // READs and atomics at once, both ways
	shared      bool // receives come from a shared queue
	unsummed    bool // packets go without ICRC
	small       bool // injectors: a small net, which is made fast
}

func newNode(t testing.TB, l Link, o options) *node {
	t.Helper()
	if o.depth == 0 {
		o.depth = 64
	}
	if o.slot == 0 {
		o.slot = 4096
	}
	if o.cqe == 0 {
		o.cqe = 2 * o.depth
	}
	d := New(l, Options{random: o.random, Window: o.window, PeerTimeout: o.peerTimeout, AckDelay: o.ackDelay, Unsummed: o.unsummed})
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 2 * o.depth * o.slot, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	pd, err := d.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	mr, err := pd.RegisterMR(arena, 0)
	if err != nil {
		t.Fatal(err)
	}
	cq, err := d.CreateCQ(o.cqe)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dev: d, pd: pd, mr: mr, cq: cq, slot: o.slot, depth: o.depth, mem: arena.Bytes()}
	cfg := rdma.QPConfig{
		SendCQ: cq, RecvCQ: cq, SendWRs: o.depth, RecvWRs: o.depth, MaxRdAtomic: o.rdAtomic, MaxDestRdAtomic: o.rdAtomic,
	}
	if o.open > 0 {
		cfg.Access = rdma.RemoteRead | rdma.RemoteWrite | rdma.RemoteAtomic
		n.openMemory(t, o.open, cfg.Access)
	}
	if o.shared {
		cfg.RecvWRs = 0
		if n.srq, err = pd.CreateSRQ(rdma.SRQConfig{WRs: o.depth}); err != nil {
			t.Fatal(err)
		}
		cfg.SRQ = n.srq
	}
	n.qp, err = pd.CreateQP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// openMemory makes memory for the peer.
func (n *node) openMemory(t testing.TB, bytes int, access rdma.Access) {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: bytes, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.dev.Close(), arena.Close()); err != nil {
			t.Error(err)
		}
	})
	if n.openMR, err = n.pd.RegisterMR(arena, access); err != nil {
		t.Fatal(err)
	}
	n.open = arena.Bytes()[:bytes]
}

func (n *node) sendSlot(i int) []byte { return n.mem[i%n.depth*n.slot:][:n.slot] }
func (n *node) recvSlot(i int) []byte { return n.mem[(n.depth+i%n.depth)*n.slot:][:n.slot] }

func (n *node) remote(mtu int) rdma.Remote {
	a := n.dev.Attr()
	return rdma.Remote{Addr: a.GID, UDPPort: a.UDPPort, QPN: n.qp.Num(), StartPSN: n.qp.StartPSN(), PathMTU: mtu, MaxDestRdAtomic: n.qp.(*queuePair).answers.limit, Unsummed: n.dev.opts.Unsummed}
}

func (n *node) postRecvs(t testing.TB, count int) {
	t.Helper()
	for i := range count {
		n.postRecv(t, i)
	}
}

func (n *node) postRecv(t testing.TB, i int) {
	t.Helper()
	post := n.qp.PostRecv
	if n.srq != nil {
		post = n.srq.PostRecv
	}
	if _, err := post([]rdma.RecvWR{{ID: uint64(i), Data: n.recvSlot(i)}}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) send(t testing.TB, id int, data []byte) {
	t.Helper()
	b := n.sendSlot(id)[:len(data)]
	copy(b, data)
	if _, err := n.qp.PostSend([]rdma.SendWR{{ID: uint64(id), Data: b, Signaled: true}}); err != nil {
		t.Fatal(err)
	}
}

func (n *node) poll() (wcs []rdma.WC) {
	wcs = make([]rdma.WC, 1024)
	return wcs[:n.cq.Poll(wcs)]
}

// pair is two connected nodes on a memory net and its clock.
type pair struct {
	net  *MemoryNet
	a, b *node
}

func newPair(t testing.TB, seed uint64, f Faults, mtu int, o options) *pair {
	t.Helper()
	net := NewMemoryNet(seed, f)
	la, lb := net.Pair()
	if o.random == nil {
		o.random = rand.New(rand.NewPCG(seed, 1)).Uint32
	}
	return connect(t, net, newNode(t, la, o), newNode(t, lb, o), mtu)
}

func connect(t testing.TB, net *MemoryNet, a, b *node, mtu int) *pair {
	t.Helper()
	net.Advance(1)
	introduce(t, a, b, mtu)
	return &pair{net: net, a: a, b: b}
}

func introduce(t testing.TB, a, b *node, mtu int) {
	t.Helper()
	if err := a.qp.Connect(b.remote(mtu)); err != nil {
		t.Fatal(err)
	}
	if err := b.qp.Connect(a.remote(mtu)); err != nil {
		t.Fatal(err)
	}
}

// step runs both devices once. When neither had work the clock moves to the next
// thing that will happen, else by a microsecond.
func (p *pair) step() (idle bool) {
	now := p.net.Now()
	wa, da := p.a.dev.Progress(now)
	wb, db := p.b.dev.Progress(now)
	if wa+wb > 0 {
		p.net.Advance(now + 1000)
		return false
	}
	next := int64(0)
	for _, t := range [...]int64{da, db, p.net.Next()} {
		if t != 0 && (next == 0 || t < next) {
			next = t
		}
	}
	if next == 0 {
		p.net.Advance(now + 1000)
		return true
	}
	p.net.Advance(max(next, now+1))
	return false
}

// settle steps until nothing is left to happen, or fails after limit of virtual time.
func (p *pair) settle(t testing.TB, limit time.Duration) {
	t.Helper()
	end := p.net.Now() + int64(limit)
	for !p.step() {
		if p.net.Now() > end {
			t.Fatalf("not at rest after %v\na: %+v\nb: %+v", limit, p.a.dev.Stats(), p.b.dev.Stats())
		}
	}
}

// traffic sends messages from a to b and checks that each arrives once, in order
// and intact.
type traffic struct {
	count   int
	maxSize int
	pattern []byte
	sent    int // posted
	freed   int // send completions
	got     int
	wcs     [64]rdma.WC
}

func newTraffic(seed uint64, count, maxSize int) *traffic {
	tr := &traffic{count: count, maxSize: maxSize, pattern: make([]byte, maxSize+4099)}
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range tr.pattern {
		tr.pattern[i] = byte(rng.Uint32())
	}
	return tr
}

// message is the i-th: small ones are the most frequent, and every size class up
// to maxSize occurs.
func (tr *traffic) message(i int) []byte {
	h := uint32(i) * 2654435761
	size := 1 + int(h>>8)%tr.maxSize
	if h&3 != 0 {
		size = 1 + int(h>>8)%200
	}
	return tr.pattern[i*31%4099:][:size]
}

func (tr *traffic) pump(t testing.TB, from, to *node) {
	t.Helper()
	for tr.sent < tr.count && tr.sent-tr.freed < from.depth {
		i := tr.sent
		m := tr.message(i)
		wr := rdma.SendWR{ID: uint64(i), Data: m, Op: rdma.OpSend, Signaled: i%4 == 3 || i == tr.count-1}
		if i%2 == 0 {
			wr.Op, wr.Imm = rdma.OpSendImm, uint32(i)
		}
		if i%8 == 5 && len(m) <= MaxInline {
			wr.Inline = true
		} else {
			wr.Data = from.sendSlot(i)[:len(m)]
			copy(wr.Data, m)
		}
		if _, err := from.qp.PostSend([]rdma.SendWR{wr}); err != nil {
			t.Fatal(err)
		}
		tr.sent++
	}
	for n := from.cq.Poll(tr.wcs[:]); n > 0; n = from.cq.Poll(tr.wcs[:]) {
		for _, wc := range tr.wcs[:n] {
			if wc.Status != rdma.Success || wc.Op != rdma.WCSend || int(wc.ID) < tr.freed {
				t.Fatalf("send completion %+v after %d", wc, tr.freed)
			}
			tr.freed = int(wc.ID) + 1
		}
	}
	for n := to.cq.Poll(tr.wcs[:]); n > 0; n = to.cq.Poll(tr.wcs[:]) {
		for _, wc := range tr.wcs[:n] {
			want := tr.message(tr.got)
			data := to.recvSlot(int(wc.ID))
			if wc.Status != rdma.Success || wc.Op != rdma.WCRecv || wc.Bytes != len(want) || !bytes.Equal(data[:wc.Bytes], want) {
				t.Fatalf("message %d: %+v, want %d bytes (equal: %v)", tr.got, wc, len(want), bytes.Equal(data[:min(wc.Bytes, len(want))], want))
			}
			if wc.HasImm != (tr.got%2 == 0) || wc.HasImm && wc.Imm != uint32(tr.got) {
				t.Fatalf("message %d: immediate %+v", tr.got, wc)
			}
			tr.got++
			if _, err := to.qp.PostRecv([]rdma.RecvWR{{ID: wc.ID, Data: data}}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (tr *traffic) done() bool { return tr.got == tr.count && tr.freed == tr.count }

// run carries the whole traffic, and fails after limit of virtual time.
func (p *pair) run(t testing.TB, tr *traffic, limit time.Duration) {
	t.Helper()
	p.b.postRecvs(t, p.b.depth)
	end := p.net.Now() + int64(limit)
	for !tr.done() {
		tr.pump(t, p.a, p.b)
		p.step()
		if p.net.Now() > end {
			t.Fatalf("%d of %d messages after %v\na: %+v\nb: %+v", tr.got, tr.count, limit, p.a.dev.Stats(), p.b.dev.Stats())
		}
	}
}
