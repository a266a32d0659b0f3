package devicetest

import (
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
)

func testRefusedPosts(t *testing.T, w *world) {
	a, b := w.connected()
	heap := make([]byte, 512)
	if n, err := a.qp.PostSend([]rdma.SendWR{{Data: heap}}); n != 0 || err == nil {
		t.Error("a send from the Go heap was taken")
	}
	if most := a.dev.Attr().MaxMsg; most < slotBytes {
		if n, err := a.qp.PostSend([]rdma.SendWR{{Data: a.big(0)[:most+1]}}); n != 0 || err == nil {
			t.Errorf("a message of %d bytes was taken; the longest is %d", most+1, most)
		}
	}
	if n, err := b.qp.PostRecv([]rdma.RecvWR{{Data: heap}}); n != 0 || err == nil {
		t.Error("a receive into the Go heap was taken")
	}
}

func testLackingOpcodes(t *testing.T, w *world) {
	a, _ := w.connected()
	for op := rdma.OpFetchAdd + 1; op < 16; op++ {
		n, err := a.qp.PostSend([]rdma.SendWR{{Op: op, Data: a.tx(0)[:8], Signaled: true}})
		if n != 0 || !errors.Is(err, rdma.ErrNotSupported) {
			t.Errorf("%v: %d posted, %v; want ErrNotSupported", op, n, err)
		}
	}
	if s := a.qp.State(); s != rdma.QPReadyToSend {
		t.Errorf("the pair is in state %d", s)
	}
}

// A sender that finds no receive waits a little and tries again.
func testReceiveIsLate(t *testing.T, w *world) {
	a, b := w.connected()
	for i := range 3 {
		a.postSend(rdma.SendWR{ID: uint64(i), Data: fill(a.tx(i)[:100], i), Signaled: true})
		w.settle()
		b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
		w.received(b, uint64(i), b.rx(i), pattern(i, 100))
		w.sent(a, uint64(i))
	}
}

// postDoomed posts n sends, the first of which is going to fail.
func (e *end) postDoomed(n, bytes int) {
	e.t.Helper()
	var wrs []rdma.SendWR
	for i := range n {
		wrs = append(wrs, rdma.SendWR{ID: uint64(i), Data: e.big(0)[:bytes], Signaled: true})
	}
	e.postSend(wrs...)
}

func testReceiveNeverComes(t *testing.T, w *world) {
	a, _ := w.connected()
	a.postDoomed(3, 10)
	w.failed(a, rdma.WCSend, 3, rdma.RNRRetryExceeded)
}

func testMessageTooLong(t *testing.T, w *world) {
	for _, over := range []int{1, w.mtu(), 3 * w.mtu()} {
		a, b := w.connected()
		b.postRecv(rdma.RecvWR{ID: 1, Data: b.rx(0)[:10]}, rdma.RecvWR{ID: 2, Data: b.rx(1)})
		fill(b.rx(0)[10:], 9)
		a.postDoomed(2, 10+over)
		// A length error of the responder's work queue, an invalid request for the
		// requester (IBTA vol. 1, §9.9.3). rdma_rxe takes the queue entry for malformed instead
		// (drivers/infiniband/sw/rxe/rxe_resp.c, send_data_in).
		w.failed(a, rdma.WCSend, 2, rdma.RemoteInvalidReq, rdma.RemoteOpError)
		w.failed(b, rdma.WCRecv, 2, rdma.LocalLengthError, rdma.LocalQPOpError)
		if string(b.rx(0)[10:]) != string(pattern(9, smallSlot-10)) {
			t.Errorf("%d bytes too many were written behind the buffer", over)
		}
	}
}

func testPeerIsGone(t *testing.T, w *world) {
	a, b := w.connected()
	if err := b.qp.Close(); err != nil {
		t.Fatal(err)
	}
	a.postDoomed(3, 100)
	start := time.Now()
	w.failed(a, rdma.WCSend, 3, rdma.RetryExceeded)
	if d := time.Since(start); d > w.deadPeer {
		t.Errorf("a dead peer was noticed after %v, more than %v", d, w.deadPeer)
	}
}
