package softroce

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// TestExactlyOnceInOrder is the promise of a reliable connection, on a bad network.
func TestExactlyOnceInOrder(t *testing.T) {
	count := 20_000
	if testing.Short() || raceDetector {
		count = 5_000
	}
	exactlyOnce(t, count)
}

func exactlyOnce(t *testing.T, count int) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := newPair(t, seed, Faults{
				Loss: 0.01, Duplicate: 0.005, Corrupt: 0.002, Reorder: 0.01, ReorderBy: 30 * time.Microsecond, Delay: 5 * time.Microsecond,
			}, 512, options{slot: 2048})
			p.run(t, newTraffic(seed, count, 2048), 10*time.Minute)
			checkNothingLeft(t, p)
			a, b := p.a.dev.Stats(), p.b.dev.Stats()
			t.Logf("%v of virtual time, %d packets lost, %d retransmitted, %d time-outs, %d duplicates, %d bad ICRC",
				time.Duration(p.net.Now()), p.net.Lost(), a.Retransmitted, a.Timeouts, b.Duplicates, b.DropICRC)
			if b.DropICRC == 0 || b.Duplicates == 0 || a.Retransmitted == 0 || p.net.Lost() == 0 {
				t.Error("the net made no faults")
			}
			if b.Messages != uint64(count) {
				t.Errorf("%d messages received, want %d", b.Messages, count)
			}
		})
	}
}

// checkNothingLeft waits for the net to come to rest and accounts for its frames.
func checkNothingLeft(t *testing.T, p *pair) {
	t.Helper()
	p.settle(t, time.Minute)
	held := 0
	for _, d := range []*Device{p.a.dev, p.b.dev} {
		if d.armed != 0 || d.txHead != d.txFill || len(d.due) != 0 {
			t.Errorf("at rest with %d timers, %d frames to send, %d responses", d.armed, d.txFill-d.txHead, len(d.due))
		}
		held += d.txAlloc - d.txHead
	}
	if free := p.net.FreeFrames(); free+held != p.net.faults.Frames {
		t.Errorf("%d frames free and %d held of %d", free, held, p.net.faults.Frames)
	}
}

func TestLossTable(t *testing.T) {
	for _, loss := range []float64{0, 0.001, 0.01, 0.05, 0.2} {
		for _, mtu := range []int{256, 4096} {
			t.Run(fmt.Sprintf("%g%% mtu %d", loss*100, mtu), func(t *testing.T) {
				p := newPair(t, 7, Faults{Loss: loss, Delay: 10 * time.Microsecond}, mtu, options{slot: 3 * 4096, depth: 32})
				p.run(t, newTraffic(7, 3000, 3*4096), 10*time.Minute)
				checkNothingLeft(t, p)
				s := p.a.dev.Stats()
				t.Logf("%v, %d packets, %d retransmitted, %d time-outs, %d NAKs", time.Duration(p.net.Now()), s.TxPackets, s.Retransmitted, s.Timeouts, s.SeqNAKsReceived)
				if loss == 0 && (s.Retransmitted != 0 || s.Timeouts != 0) {
					t.Errorf("retransmissions without loss: %+v", s)
				}
			})
		}
	}
}

func TestBothWaysUnderLoss(t *testing.T) {
	p := newPair(t, 3, Faults{Loss: 0.02, Reorder: 0.02, ReorderBy: 20 * time.Microsecond, Delay: 3 * time.Microsecond}, 512, options{slot: 2000})
	// Each direction has completions of its own here, since traffic polls by node.
	ab, ba := newTraffic(3, 5000, 2000), newTraffic(4, 5000, 2000)
	split := func(n *node) *node {
		cq, err := n.dev.CreateCQ(256)
		if err != nil {
			t.Fatal(err)
		}
		q := n.qp.(*queuePair)
		q.recvCQ.qps--
		q.recvCQ = cq.(*completionQueue)
		q.recvCQ.qps++
		r := *n
		r.cq = cq
		return &r
	}
	ra, rb := split(p.a), split(p.b)
	ra.postRecvs(t, ra.depth)
	rb.postRecvs(t, rb.depth)
	for !ab.done() || !ba.done() {
		ab.pump(t, p.a, rb)
		ba.pump(t, p.b, ra)
		p.step()
		if p.net.Now() > int64(10*time.Minute) {
			t.Fatalf("%d and %d messages", ab.got, ba.got)
		}
	}
	checkNothingLeft(t, p)
}

// TestPSNWrap starts just below 2^24 on both sides, in all distances to a packet.
func TestPSNWrap(t *testing.T) {
	for back := range uint32(8) {
		net := NewMemoryNet(1, Faults{Loss: 0.02, Delay: time.Microsecond})
		la, lb := net.Pair()
		o := options{slot: 1500}
		p := &pair{net: net}
		for _, n := range []struct {
			at **node
			l  Link
		}{{&p.a, la}, {&p.b, lb}} {
			*n.at = newNode(t, n.l, o)
			q := (*n.at).qp.(*queuePair)
			psn := uint32(roce.PSNMask - back)
			q.startPSN, q.una, q.next, q.high, q.postPSN = psn, psn, psn, psn, psn
		}
		net.Advance(1)
		if err := p.a.qp.Connect(p.b.remote(256)); err != nil {
			t.Fatal(err)
		}
		if err := p.b.qp.Connect(p.a.remote(256)); err != nil {
			t.Fatal(err)
		}
		p.run(t, newTraffic(uint64(back), 500, 1500), time.Minute)
		if q := p.a.qp.(*queuePair); q.una > 1<<20 {
			t.Errorf("una is %#x: no wrap happened", q.una)
		}
	}
}

func TestReceiverNotReady(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: time.Microsecond}, 1024, options{})
	p.a.send(t, 1, []byte("one"))
	p.a.send(t, 2, make([]byte, 3000))
	for range 2000 {
		p.step()
	}
	if s := p.b.dev.Stats(); s.RNRNAKsSent == 0 || s.NoReceive == 0 {
		t.Fatalf("no RNR NAK: %+v", s)
	}
	if wcs := p.a.poll(); len(wcs) != 0 {
		t.Fatalf("completed without a receive: %+v", wcs)
	}
	p.b.postRecvs(t, 2)
	p.settle(t, time.Second)
	if wcs := p.b.poll(); len(wcs) != 2 || wcs[0].Bytes != 3 || wcs[1].Bytes != 3000 {
		t.Fatalf("received %+v", wcs)
	}
	if wcs := p.a.poll(); len(wcs) != 2 || wcs[0].Status != rdma.Success || wcs[1].Status != rdma.Success {
		t.Fatalf("sent %+v", wcs)
	}
	if s := p.b.dev.Stats(); s.SeqNAKsSent != 0 {
		t.Errorf("%d sequence NAKs on a net without loss", s.SeqNAKsSent)
	}
}

func TestReceiverNeverReady(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: time.Microsecond}, 1024, options{peerTimeout: 50 * time.Millisecond})
	p.a.send(t, 1, []byte("one"))
	p.a.send(t, 2, []byte("two"))
	p.settle(t, time.Second)
	wcs := p.a.poll()
	if len(wcs) != 2 || wcs[0].Status != rdma.RNRRetryExceeded || wcs[1].Status != rdma.FlushError {
		t.Fatalf("completions %+v", wcs)
	}
}

func TestPeerDies(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: time.Microsecond}, 1024, options{peerTimeout: 100 * time.Millisecond})
	p.a.postRecvs(t, 2)
	p.b.postRecvs(t, 2)
	p.a.send(t, 1, []byte("alive"))
	p.settle(t, time.Second)
	if wcs := p.a.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
		t.Fatalf("completions %+v", wcs)
	}
	if err := p.b.qp.Close(); err != nil {
		t.Fatal(err)
	}
	start := p.net.Now()
	p.a.send(t, 2, []byte("to nobody"))
	p.a.send(t, 3, []byte("nor this"))
	p.settle(t, time.Second)
	wcs := p.a.poll()
	if len(wcs) != 4 || wcs[0].Status != rdma.RetryExceeded || wcs[0].ID != 2 || wcs[1].Status != rdma.FlushError ||
		wcs[2].Status != rdma.FlushError || wcs[2].Op != rdma.WCRecv {
		t.Fatalf("completions %+v", wcs)
	}
	if d := time.Duration(p.net.Now() - start); d < 100*time.Millisecond || d > 400*time.Millisecond {
		t.Errorf("the peer counted as dead after %v, want 100 ms and one time-out at most", d)
	}
	if p.a.qp.State() != rdma.QPError {
		t.Errorf("state %v", p.a.qp.State())
	}
	if _, err := p.a.qp.PostSend([]rdma.SendWR{{}}); err != rdma.ErrQPState {
		t.Errorf("PostSend in error: %v", err)
	}
	if s := p.b.dev.Stats(); s.DropQPN == 0 {
		t.Errorf("no packet for the closed pair was counted: %+v", s)
	}
}

// shyLink passes over some looks, as one over UDP may before the loop sleeps.
type shyLink struct {
	Link
	skip int
}

func (l *shyLink) Rx(frames []Frame) int {
	if l.skip > 0 {
		l.skip--
		return 0
	}
	return l.Link.Rx(frames)
}

// TestStoppedProcess: this process stands still for longer than the peer's time-out
// while the acknowledgement lies in its socket.
func TestStoppedProcess(t *testing.T) {
	for skip := range 2 {
		net := NewMemoryNet(1, Faults{})
		la, lb := net.Pair()
		link := &shyLink{Link: la}
		p := connect(t, net, newNode(t, link, options{ackDelay: -1}), newNode(t, lb, options{ackDelay: -1}), 1024)
		p.b.postRecvs(t, 1)
		p.a.send(t, 1, []byte("x"))
		now := p.net.Now()
		p.a.dev.Progress(now)
		p.b.dev.Progress(now)
		p.b.dev.Progress(now)
		now += int64(time.Minute)
		p.net.Advance(now)
		link.skip = skip
		p.a.dev.Progress(now)
		p.settle(t, time.Second)
		if wcs := p.a.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
			t.Fatalf("completions %+v", wcs)
		}
		if s := p.a.dev.Stats(); s.Timeouts != 0 {
			t.Errorf("looks passed over: %d: the timer came before the acknowledgement that was there: %+v", skip, s)
		}
	}
}

func TestFlowsShareFairly(t *testing.T) {
	const flows = 8
	net := NewMemoryNet(1, Faults{})
	la, lb := net.Pair()
	a, b := newNode(t, la, options{slot: 256}), newNode(t, lb, options{slot: 256})
	net.Advance(1)
	counts := map[uint32]int{}
	for range flows {
		qa, err := a.pd.CreateQP(rdma.QPConfig{SendCQ: a.cq, RecvCQ: a.cq, SendWRs: 64, RecvWRs: 1})
		if err != nil {
			t.Fatal(err)
		}
		qb, err := b.pd.CreateQP(rdma.QPConfig{SendCQ: b.cq, RecvCQ: b.cq, SendWRs: 1, RecvWRs: 64})
		if err != nil {
			t.Fatal(err)
		}
		da, db := a.dev.Attr(), b.dev.Attr()
		if err := qa.Connect(rdma.Remote{Addr: db.GID, UDPPort: db.UDPPort, QPN: qb.Num(), StartPSN: qb.StartPSN(), PathMTU: 256}); err != nil {
			t.Fatal(err)
		}
		if err := qb.Connect(rdma.Remote{Addr: da.GID, UDPPort: da.UDPPort, QPN: qa.Num(), StartPSN: qa.StartPSN(), PathMTU: 256}); err != nil {
			t.Fatal(err)
		}
		for i := range 64 {
			if _, err := qb.PostRecv([]rdma.RecvWR{{ID: uint64(i), Data: b.recvSlot(i)}}); err != nil {
				t.Fatal(err)
			}
			if _, err := qa.PostSend([]rdma.SendWR{{Data: a.sendSlot(i)[:100], Inline: true}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Eight flows with 64 messages each: after half the bursts all are equally far.
	now := net.Now()
	for range flows / 2 {
		now += 1000
		net.Advance(now)
		a.dev.Progress(now)
		b.dev.Progress(now)
		for _, wc := range b.poll() {
			counts[wc.QPN]++
		}
	}
	for qpn, n := range counts {
		if n != 32 {
			t.Errorf("queue pair %#x got %d messages, want 32", qpn, n)
		}
	}
	if len(counts) != flows {
		t.Errorf("%d of %d flows had a turn", len(counts), flows)
	}
}

// TestCompletionQueueFull shows that a full queue delays completions and loses none.
func TestCompletionQueueFull(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: time.Microsecond}, 1024, options{depth: 16, cqe: 4})
	p.b.postRecvs(t, 16)
	for i := range 16 {
		p.a.send(t, i, []byte{byte(i)})
	}
	sent, got := 0, 0
	for range 10_000 {
		for range 3 {
			p.step()
		}
		for _, wc := range p.a.poll() {
			if int(wc.ID) != sent || wc.Status != rdma.Success {
				t.Fatalf("send %d: %+v", sent, wc)
			}
			sent++
		}
		for _, wc := range p.b.poll() {
			if p.b.recvSlot(int(wc.ID))[0] != byte(got) {
				t.Fatalf("receive %d: %+v", got, wc)
			}
			got++
		}
		if sent == 16 && got == 16 {
			break
		}
	}
	if sent != 16 || got != 16 {
		t.Fatalf("%d sent, %d received of 16", sent, got)
	}
	if s := p.b.dev.Stats(); s.CQFull == 0 {
		t.Error("the queue never was full")
	}
}

// TestLinkRefuses runs on a net with so few frames that links refuse all the time.
func TestLinkRefuses(t *testing.T) {
	p := newPair(t, 5, Faults{Frames: 70, Loss: 0.01, Delay: 2 * time.Microsecond}, 256, options{slot: 3000})
	p.run(t, newTraffic(5, 3000, 3000), time.Minute)
	checkNothingLeft(t, p)
	if s := p.a.dev.Stats(); s.TxRefused == 0 {
		t.Error("the link never refused")
	}
}
