package devicetest

import (
	"errors"
	"testing"

	"github.com/millrace/millrace/rdma"
)

func (n *node) newSRQ(wrs int) rdma.SRQ {
	n.t.Helper()
	srq, err := n.pd.CreateSRQ(rdma.SRQConfig{WRs: wrs})
	if err != nil {
		n.t.Fatal(err)
	}
	return srq
}

// sharing gives connections whose passive ends take receives from one queue, and
// complete on one.
func (w *world) sharing(pairs, wrs int) (as, bs []*end, srq rdma.SRQ) {
	w.t.Helper()
	w.need(rdma.CapSRQ, "a shared receive queue")
	srq = w.b.newSRQ(wrs)
	cq := w.b.newCQ(pairs*depth + wrs)
	for range pairs {
		a := w.a.newEnd(depth, depth)
		b := w.b.newEndWith(rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: depth, SRQ: srq})
		w.connect(a, b)
		as, bs = append(as, a), append(bs, b)
	}
	return as, bs, srq
}

func (n *node) postShared(srq rdma.SRQ, ids ...int) {
	n.t.Helper()
	for _, id := range ids {
		if _, err := srq.PostRecv([]rdma.RecvWR{{ID: uint64(id), Data: n.rx(id)}}); err != nil {
			n.t.Fatal(err)
		}
	}
}

// Any pair takes the next receive, in the order of the messages.
func testSharedReceives(t *testing.T, w *world) {
	as, bs, srq := w.sharing(3, 8)
	for round := range 10 {
		for i := range 8 {
			w.b.postShared(srq, i)
		}
		if n, err := srq.PostRecv([]rdma.RecvWR{{ID: 9, Data: w.b.rx(9)}}); n != 0 || !errors.Is(err, rdma.ErrQueueFull) {
			t.Fatalf("a ninth receive: %d, %v", n, err)
		}
		for i := range 8 {
			k := (i + round) % 3
			n := min(smallSlot, 1+i*w.mtu()/3)
			as[k].postSend(rdma.SendWR{ID: uint64(i), Data: fill(as[k].tx(i)[:n], i), Signaled: true})
			wc := w.received(&end{node: w.b, qp: bs[k].qp, cq: bs[0].cq}, uint64(i), w.b.rx(i), pattern(i, n))
			if wc.QPN != bs[k].qp.Num() {
				t.Fatalf("completion %+v, sent to queue pair %d", wc, bs[k].qp.Num())
			}
			w.sent(as[k], uint64(i))
		}
	}
	if n, err := bs[0].qp.PostRecv([]rdma.RecvWR{{ID: 1, Data: w.b.rx(1)}}); n != 0 || err == nil {
		t.Error("a pair with a shared queue took a receive of its own")
	}
	if n, err := srq.PostRecv([]rdma.RecvWR{{ID: 1, Data: make([]byte, 64)}}); n != 0 || err == nil {
		t.Error("a receive into the Go heap was taken")
	}
	if err := srq.Close(); err == nil {
		t.Error("the shared queue closed under its queue pairs")
	}
	for _, b := range bs {
		if err := b.qp.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := srq.Close(); err != nil {
		t.Error(err)
	}
	if _, err := srq.PostRecv([]rdma.RecvWR{{ID: 1, Data: w.b.rx(1)}}); err == nil {
		t.Error("a closed queue took a receive")
	}
}

// A queue that is empty makes senders wait; one event tells that it runs low.
func testSharedLimit(t *testing.T, w *world) {
	as, bs, srq := w.sharing(2, 8)
	var events [4]rdma.Event
	for w.b.dev.PollEvents(events[:]) > 0 { // those of the connections, if any
	}
	for round := range 3 {
		for i := range 6 {
			w.b.postShared(srq, i)
		}
		if err := srq.SetLimit(3); err != nil {
			t.Fatal(err)
		}
		for i := range 6 {
			as[i%2].postSend(rdma.SendWR{ID: uint64(i), Data: fill(as[i%2].tx(i)[:20], i), Signaled: true})
			w.received(&end{node: w.b, qp: bs[i%2].qp, cq: bs[0].cq}, uint64(i), w.b.rx(i), pattern(i, 20))
			w.sent(as[i%2], uint64(i))
			if i == 2 { // three are left, not fewer
				w.noEvent(w.b, rdma.EventSRQLimit)
			}
		}
		if e := w.event(w.b, rdma.EventSRQLimit); e.SRQ != srq {
			t.Errorf("round %d: event %+v of another queue", round, e)
		}
		w.noEvent(w.b, rdma.EventSRQLimit)
	}
	as[0].postSend(rdma.SendWR{ID: 9, Data: fill(as[0].tx(0)[:30], 9), Signaled: true})
	w.settle()
	w.b.postShared(srq, 5)
	w.received(&end{node: w.b, qp: bs[0].qp, cq: bs[0].cq}, 5, w.b.rx(5), pattern(9, 30))
	w.sent(as[0], 9)
	for _, limit := range []int{-1, 9} {
		if err := srq.SetLimit(limit); err == nil {
			t.Errorf("limit %d of 8 was taken", limit)
		}
	}
}

// A pair in error takes no more, says so, and leaves the others what is posted.
func testSharedFailure(t *testing.T, w *world) {
	as, bs, srq := w.sharing(2, 8)
	if _, err := srq.PostRecv([]rdma.RecvWR{{ID: 0, Data: w.b.rx(0)[:16]}}); err != nil {
		t.Fatal(err)
	}
	w.b.postShared(srq, 1)
	as[0].postDoomed(2, 17+w.mtu())
	w.failed(as[0], rdma.WCSend, 2, rdma.RemoteInvalidReq, rdma.RemoteOpError)
	w.failed(&end{node: w.b, qp: bs[0].qp, cq: bs[0].cq}, rdma.WCRecv, 1, rdma.LocalLengthError, rdma.LocalQPOpError)
	if e := w.event(w.b, rdma.EventLastWQE); e.QPN != bs[0].qp.Num() {
		t.Errorf("event %+v, want queue pair %d", e, bs[0].qp.Num())
	}
	as[1].postSend(rdma.SendWR{ID: 3, Data: fill(as[1].tx(0)[:40], 3), Signaled: true})
	w.received(&end{node: w.b, qp: bs[1].qp, cq: bs[0].cq}, 1, w.b.rx(1), pattern(3, 40))
	w.sent(as[1], 3)
}

func testSharedConfigs(t *testing.T, w *world) {
	w.need(rdma.CapSRQ, "a shared receive queue")
	most := w.a.dev.Attr().MaxSRQWR
	if most < depth {
		t.Errorf("MaxSRQWR is %d", most)
	}
	for _, n := range []int{-1, 0, most + 1} {
		if _, err := w.a.pd.CreateSRQ(rdma.SRQConfig{WRs: n}); err == nil {
			t.Errorf("a shared queue of %d receives was made", n)
		}
	}
	srq, foreign, cq := w.a.newSRQ(4), w.b.newSRQ(4), w.a.newCQ(8)
	for name, cfg := range map[string]rdma.QPConfig{
		"two receive queues": {SendCQ: cq, RecvCQ: cq, SendWRs: 1, RecvWRs: 1, SRQ: srq},
		"a foreign queue":    {SendCQ: cq, RecvCQ: cq, SendWRs: 1, SRQ: foreign},
	} {
		if _, err := w.a.pd.CreateQP(cfg); err == nil {
			t.Errorf("%s: a queue pair was made", name)
		}
	}
	if err := w.a.pd.Close(); err == nil {
		t.Error("a protection domain closed with a queue in it")
	}
	if err := srq.Close(); err != nil {
		t.Error(err)
	}
}

// event waits for an event of the kind; others may come before it.
func (w *world) event(n *node, kind rdma.EventKind) rdma.Event {
	w.t.Helper()
	var events [1]rdma.Event
	w.until(kind.String(), func() bool {
		for n.dev.PollEvents(events[:]) == 1 {
			if events[0].Kind == kind {
				return true
			}
		}
		return false
	})
	return events[0]
}

// noEvent checks that none of the kind comes.
func (w *world) noEvent(n *node, kind rdma.EventKind) {
	w.t.Helper()
	w.settle()
	var events [4]rdma.Event
	for k := n.dev.PollEvents(events[:]); k > 0; k = n.dev.PollEvents(events[:]) {
		for _, e := range events[:k] {
			if e.Kind == kind {
				w.t.Fatalf("unexpected event %+v", e)
			}
		}
	}
}
