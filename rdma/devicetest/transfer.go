package devicetest

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/millrace/millrace/rdma"
)

func testSizes(t *testing.T, w *world) {
	a, b := w.connected()
	mtu := w.mtu()
	sizes := []int{0, 1, 2, 3, 4, 5, 127, 128, 129, mtu - 1, mtu, mtu + 1, 2*mtu - 1, 2 * mtu, 3*mtu + 5, 64<<10 + 1, 1 << 20}
	for i, n := range sizes {
		if n > w.a.dev.Attr().MaxMsg {
			continue
		}
		clear(b.big(i))
		b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.big(i)})
		a.postSend(rdma.SendWR{ID: uint64(100 + i), Data: fill(a.big(i)[:n], i), Signaled: true})
		wc := w.received(b, uint64(i), b.big(i), pattern(i, n))
		if wc.HasImm {
			t.Errorf("%d bytes: an immediate value out of nowhere", n)
		}
		w.sent(a, uint64(100+i))
		if n < slotBytes && b.big(i)[n] != 0 {
			t.Errorf("%d bytes: the byte behind them was written", n)
		}
	}
}

func testImmediate(t *testing.T, w *world) {
	a, b := w.connected()
	for i, imm := range []uint32{0, 1, 0x01020304, math.MaxUint32} {
		for _, n := range []int{0, 9, 2*w.mtu() + 1} {
			b.postRecv(rdma.RecvWR{ID: 7, Data: b.big(0)})
			a.postSend(rdma.SendWR{ID: 8, Op: rdma.OpSendImm, Imm: imm, Data: fill(a.big(0)[:n], i), Signaled: true})
			wc := w.received(b, 7, b.big(0), pattern(i, n))
			if !wc.HasImm || wc.Imm != imm {
				t.Errorf("immediate value %#x arrived as %#x (%v)", imm, wc.Imm, wc.HasImm)
			}
			w.sent(a, 8)
		}
	}
}

// An inline send copies at the post: its data may lie anywhere and change at once.
func testInline(t *testing.T, w *world) {
	a, b := w.connected()
	most := a.dev.Attr().MaxInline
	if most == 0 {
		t.Skip("the device sends nothing inline")
	}
	for i, n := range []int{0, 1, most/2 + 1, most} {
		for _, heap := range []bool{true, false} {
			b.postRecv(rdma.RecvWR{ID: 1, Data: b.big(0)})
			data := a.tx(0)[:n]
			if heap {
				data = make([]byte, n)
			}
			a.postSend(rdma.SendWR{ID: 2, Data: fill(data, i), Inline: true, Signaled: true})
			clear(data)
			w.received(b, 1, b.big(0), pattern(i, n))
			w.sent(a, 2)
		}
	}
	if _, err := a.qp.PostSend([]rdma.SendWR{{Data: a.tx(0)[:most+1], Inline: true}}); err == nil {
		t.Errorf("%d bytes inline were taken; the most is %d", most+1, most)
	}
}

// A signalled completion stands for all sends before it.
func testSelectiveSignalling(t *testing.T, w *world) {
	a, b := w.connected()
	for round := range 20 {
		var sends []rdma.SendWR
		var recvs []rdma.RecvWR
		for i := range depth {
			recvs = append(recvs, rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
			sends = append(sends, rdma.SendWR{ID: uint64(round<<8 | i), Data: fill(a.tx(i)[:100+i], round+i), Signaled: i == depth/2 || i == depth-1})
		}
		b.postRecv(recvs...)
		a.postSend(sends...)
		for i := range depth {
			w.received(b, uint64(i), b.rx(i), pattern(round+i, 100+i))
		}
		w.sent(a, uint64(round<<8|depth/2))
		w.sent(a, uint64(round<<8|(depth-1)))
	}
	w.nothing(a)
}

// A list is posted in order, whole or up to what is wrong with it.
func testPostLists(t *testing.T, w *world) {
	a, b := w.connected()
	foreign := make([]byte, 64)
	recvs := []rdma.RecvWR{{ID: 1, Data: b.rx(1)}, {ID: 2, Data: b.rx(2)}, {ID: 3, Data: foreign}, {ID: 4, Data: b.rx(4)}}
	if n, err := b.qp.PostRecv(recvs); n != 2 || err == nil {
		t.Fatalf("posted %d receives of 2 good ones before a bad one: %v", n, err)
	}
	sends := []rdma.SendWR{
		{ID: 1, Data: fill(a.tx(1)[:10], 1)}, {ID: 2, Data: fill(a.tx(2)[:20], 2), Signaled: true},
		{ID: 3, Data: foreign, Signaled: true}, {ID: 4, Data: a.tx(4)[:10], Signaled: true},
	}
	if n, err := a.qp.PostSend(sends); n != 2 || err == nil {
		t.Fatalf("posted %d sends of 2 good ones before a bad one: %v", n, err)
	}
	w.received(b, 1, b.rx(1), pattern(1, 10))
	w.received(b, 2, b.rx(2), pattern(2, 20))
	w.sent(a, 2)
	w.nothing(a)
	w.nothing(b)
	if n, err := a.qp.PostSend(nil); n != 0 || err != nil {
		t.Errorf("an empty list of sends: %d, %v", n, err)
	}
	if n, err := b.qp.PostRecv(nil); n != 0 || err != nil {
		t.Errorf("an empty list of receives: %d, %v", n, err)
	}
}

// Poll gives as many as asked for, and keeps the rest in order.
func testPollBursts(t *testing.T, w *world) {
	a, b := w.connected()
	var wcs [depth]rdma.WC
	if n := b.cq.Poll(nil); n != 0 {
		t.Errorf("polled %d into nothing", n)
	}
	for i := range depth {
		b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
		a.postSend(rdma.SendWR{ID: uint64(i), Data: fill(a.tx(i)[:50], i), Signaled: i == depth-1})
	}
	w.sent(a, depth-1) // so all have arrived
	next := 0
	for _, burst := range []int{1, 3, 1, 0, 7, depth} {
		n := 0
		w.until("a burst", func() bool { n = b.cq.Poll(wcs[:burst]); return n > 0 || burst == 0 })
		for _, wc := range wcs[:n] {
			if int(wc.ID) != next {
				t.Fatalf("completion %d came as %d", next, wc.ID)
			}
			next++
		}
	}
	for ; next < depth; next++ {
		w.received(b, uint64(next), b.rx(next), pattern(next, 50))
	}
}

// Completions tell whose they are.
func testManyPairs(t *testing.T, w *world) {
	const pairs, each = 10, 20
	acq, bcq := w.a.newCQ(pairs*8), w.b.newCQ(pairs*8)
	var as, bs []*end
	for range pairs {
		a, b := w.a.newEndOn(acq, 4, 4), w.b.newEndOn(bcq, 4, 4)
		w.connect(a, b)
		as, bs = append(as, a), append(bs, b)
	}
	byNum := map[uint32]int{}
	for i, b := range bs {
		byNum[b.qp.Num()] = i
	}
	if len(byNum) != pairs {
		t.Fatalf("%d pairs have %d numbers", pairs, len(byNum))
	}
	for round := range each {
		for i := range pairs {
			bs[i].postRecv(rdma.RecvWR{ID: uint64(i), Data: bs[i].rx(i)})
			as[i].postSend(rdma.SendWR{ID: uint64(i), Data: fill(as[i].tx(i)[:200], round+i), Signaled: true})
		}
		for _, wc := range w.poll(bs[0], pairs) {
			i, ok := byNum[wc.QPN]
			if !ok || wc.ID != uint64(i) || wc.Status != rdma.Success || wc.Op != rdma.WCRecv {
				t.Fatalf("completion %+v", wc)
			}
			if !slices.Equal(bs[i].rx(i)[:wc.Bytes], pattern(round+i, 200)) {
				t.Fatalf("pair %d has other bytes", i)
			}
		}
		for _, wc := range w.poll(as[0], pairs) {
			if int(wc.ID) >= pairs || wc.QPN != as[wc.ID].qp.Num() || wc.Status != rdma.Success || wc.Op != rdma.WCSend {
				t.Fatalf("completion %+v", wc)
			}
		}
	}
}

// flow is traffic one way.
type flow struct {
	from, to             *end
	posted, sent, got, n int
	sizes                []int
}

func newFlow(from, to *end, n int, seed uint64, mtu int) *flow {
	rng := rand.New(rand.NewPCG(seed, 1))
	f := &flow{from: from, to: to, n: n}
	for i := range n {
		size := rng.IntN(200)
		if i%7 == 0 {
			size = min(smallSlot, rng.IntN(3*mtu))
		}
		f.sizes = append(f.sizes, size)
	}
	for i := range depth {
		to.postRecv(rdma.RecvWR{ID: uint64(i), Data: to.rx(i)})
	}
	return f
}

func (f *flow) post() {
	for f.posted < f.n && f.posted-f.sent < depth {
		i := f.posted
		f.from.postSend(rdma.SendWR{ID: uint64(i), Data: fill(f.from.tx(i)[:f.sizes[i]], i), Signaled: i%8 == 7 || i == f.n-1})
		f.posted++
	}
}

func (f *flow) complete(t *testing.T, wc *rdma.WC) {
	if wc.Status != rdma.Success {
		t.Fatalf("completion %+v", wc)
	}
	if wc.Op == rdma.WCSend {
		f.sent = int(wc.ID) + 1
		return
	}
	data := f.to.rx(f.got)
	if wc.ID != uint64(f.got%depth) || !slices.Equal(data[:wc.Bytes], pattern(f.got, f.sizes[f.got])) {
		t.Fatalf("message %d: completion %+v or its bytes differ", f.got, wc)
	}
	f.to.postRecv(rdma.RecvWR{ID: wc.ID, Data: data})
	f.got++
}

// Traffic in both directions at once: all of it arrives, once, in order, intact.
func testBothWays(t *testing.T, w *world) {
	a, b := w.connected()
	const n = 1500
	fs := [...]*flow{newFlow(a, b, n, 1, w.mtu()), newFlow(b, a, n, 2, w.mtu())}
	var wcs [16]rdma.WC
	w.until("the traffic", func() bool {
		for _, f := range fs {
			f.post()
		}
		for i, e := range [...]*end{a, b} {
			for k := range e.cq.Poll(wcs[:]) {
				f := fs[i] // what e sends
				if wcs[k].Op == rdma.WCRecv {
					f = fs[1-i]
				}
				f.complete(t, &wcs[k])
			}
		}
		return fs[0].got == n && fs[1].got == n && fs[0].sent == n && fs[1].sent == n
	})
}
