package softroce

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// sleeper runs a pair of programs as a loop does that sleeps whenever it finds
// nothing to do, and counts what wakes it: packets, and deadlines.
type sleeper struct {
	p     *pair
	wakes [2]int
	due   [2]int64 // deadlines; 0: none
}

func (s *sleeper) node(i int) *node { return [...]*node{s.p.a, s.p.b}[i] }

// wake runs one end until it sleeps again; handle is called after each Progress.
func (s *sleeper) wake(i int, handle func()) {
	s.wakes[i]++
	n := s.node(i)
	for {
		now := s.p.net.Now()
		w, _ := n.dev.Progress(now)
		handle()
		n.dev.Transmit(now)
		if w > 0 {
			continue
		}
		if n.cq.Arm() != nil {
			panic("cannot arm")
		}
		if w, s.due[i] = n.dev.Progress(now); w == 0 {
			return
		}
	}
}

// TestRequestsAndAnswersWakeOnce: where requests follow each other within the time
// that an acknowledgement may wait, a request and its answer wake each end once:
// acknowledgements go along.
func TestRequestsAndAnswersWakeOnce(t *testing.T) {
	const rounds = 1000
	p := newPair(t, 1, Faults{Delay: 10 * time.Microsecond}, 1024, options{})
	s := &sleeper{p: p}
	p.a.postRecvs(t, p.a.depth)
	p.b.postRecvs(t, p.b.depth)
	answers, doneA, doneB := 0, 0, 0
	post := func(n *node) {
		wr := rdma.SendWR{Data: n.sendSlot(0)[:128], Signaled: true, Late: true}
		if _, err := n.qp.PostSend([]rdma.SendWR{wr}); err != nil {
			t.Fatal(err)
		}
	}
	take := func(n *node, done *int) (got int) {
		for _, wc := range n.poll() {
			if wc.Status != rdma.Success {
				t.Fatalf("completion %+v", wc)
			}
			if wc.Op == rdma.WCSend {
				*done++
			} else {
				got++
				n.postRecv(t, int(wc.ID))
			}
		}
		return got
	}
	handleA := func() { answers += take(p.a, &doneA) }
	handleB := func() {
		for range take(p.b, &doneB) {
			post(p.b)
		}
	}
	// until lets both ends sleep and wake until the time at.
	until := func(at int64) {
		for {
			next := at
			for _, d := range [...]int64{s.due[0], s.due[1], p.net.Next()} {
				if d != 0 && d < next {
					next = d
				}
			}
			if p.net.Advance(next); next == at {
				return
			}
			if l := p.b.dev.link.(*memoryLink); l.head != l.tail || s.due[1] != 0 && next >= s.due[1] {
				s.wake(1, handleB)
			}
			if l := p.a.dev.link.(*memoryLink); l.head != l.tail || s.due[0] != 0 && next >= s.due[0] {
				s.wake(0, handleA)
			}
		}
	}
	for range rounds {
		post(p.a)
		s.wake(0, handleA)
		until(p.net.Now() + int64(500*time.Microsecond))
	}
	if answers != rounds {
		t.Fatalf("%d answers to %d requests", answers, rounds)
	}
	a, b := p.a.dev.Stats(), p.b.dev.Stats()
	t.Logf("per request: %.2f wake-ups of the asking end, its own included, %.2f of the other; %.2f packets there, %.2f back",
		float64(s.wakes[0])/rounds, float64(s.wakes[1])/rounds, float64(a.TxPackets)/rounds, float64(b.TxPackets)/rounds)
	if s.wakes[0] > 2*rounds+10 || s.wakes[1] > rounds+10 || a.Timeouts+b.Timeouts != 0 {
		t.Errorf("woken %v times; %d and %d time-outs", s.wakes, a.Timeouts, b.Timeouts)
	}
	// And nothing stays unacknowledged.
	until(p.net.Now() + int64(20*time.Millisecond))
	if doneA != rounds || doneB != rounds || p.a.dev.armed+p.b.dev.armed != 0 {
		t.Errorf("%d and %d sends completed of %d; %d timers run", doneA, doneB, rounds, p.a.dev.armed+p.b.dev.armed)
	}
	if a, b := p.a.dev.Stats(), p.b.dev.Stats(); a.Retransmitted+b.Retransmitted != 0 {
		t.Errorf("sent again: %d and %d packets", a.Retransmitted, b.Retransmitted)
	}
}

// TestLateSendNeverAcknowledgedUnasked: a peer that acknowledges only what asks, as
// rdma_rxe does, is asked after one time-out, and from then on at once.
func TestLateSendNeverAcknowledgedUnasked(t *testing.T) {
	in := newInjector(t)
	send := func(id int) int64 {
		wr := rdma.SendWR{ID: uint64(id), Data: in.b.sendSlot(id)[:100], Signaled: true, Late: true}
		if _, err := in.b.qp.PostSend([]rdma.SendWR{wr}); err != nil {
			t.Fatal(err)
		}
		start := in.net.Now()
		for asked := uint64(0); ; in.net.Advance(in.net.Now() + int64(100*time.Microsecond)) {
			in.b.dev.Progress(in.net.Now())
			q := in.b.qp.(*queuePair)
			if asked == 0 && q.asked == q.next { // the last packet asked: the peer answers
				asked = 1
				in.inject(in.ack(0x1f, q.next-q.startPSN-1&0xffffff), in.a.dev.attr.Local)
			}
			if wcs := in.b.poll(); len(wcs) == 1 && wcs[0].Status == rdma.Success {
				return in.net.Now() - start
			}
			if in.net.Now()-start > int64(time.Second) {
				t.Fatalf("message %d is not acknowledged: %+v", id, in.b.dev.Stats())
			}
		}
	}
	const rtoLate = rtoLates * lateAck
	if took := send(1); took < rtoLate || took > rtoLate+int64(time.Millisecond) {
		t.Errorf("asked after %v, want %v", time.Duration(took), time.Duration(rtoLate))
	}
	for i := range 10 {
		if took := send(2 + i); took > int64(time.Millisecond) {
			t.Errorf("then after %v, want at once", time.Duration(took))
		}
	}
	if s := in.b.dev.Stats(); s.Timeouts != 1 || s.Retransmitted != 1 {
		t.Errorf("%d time-outs, %d packets sent again, want one: %+v", s.Timeouts, s.Retransmitted, s)
	}
}

// TestEachGapIsReportedBehindAnAcknowledgement: rdma_rxe goes back for a NAK, and for
// another one only if an acknowledgement came between them; else it waits for its timer.
// So whatever was accepted since the last NAK is acknowledged before the next, although
// nothing asked.
func TestEachGapIsReportedBehindAnAcknowledgement(t *testing.T) {
	for _, c := range []struct {
		name   string
		bursts [][]uint32 // PSNs that come together
		want   []string   // what goes back after each
	}{
		{"after going back", [][]uint32{{1, 2}, {0}, {1}, {3, 4}, {2}}, []string{"nak 0", "ack 0", "", "ack 1, nak 2", "ack 2"}},
		{"going back to the next gap", [][]uint32{{1, 2}, {0, 2, 3}, {1, 3}, {2}}, []string{"nak 0", "ack 0, nak 1", "ack 1, nak 2", "ack 2"}},
		{"the first gap", [][]uint32{{0}, {1, 3}, {2}}, []string{"", "ack 1, nak 2", "ack 2"}},
		{"missing again", [][]uint32{{0, 2, 3}, {2}, {3}, {2}, {1}}, []string{"ack 0, nak 1", "nak 1", "", "nak 1", "ack 1"}},
		{"the NAK was lost", [][]uint32{{0, 2, 3}, {0}, {1}}, []string{"ack 0, nak 1", "ack 0", "ack 1"}},
		{"overtaken", [][]uint32{{1, 0}, {1}}, []string{"ack 0, nak 1", "ack 1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newResponderRig(t)
			for i, burst := range c.bursts {
				r.sent.packets = nil
				for _, psn := range burst {
					b := r.whole(roce.WriteOnly, psn)
					h := (*roce.BTH)(b)
					h.Put(h.Opcode(), h.Pad(), r.b.qp.Num(), false, h.PSN())
					r.deliver(r.seal(b))
				}
				for range 2 {
					r.b.dev.Progress(r.net.Now())
				}
				var got []string
				for _, p := range r.sent.packets {
					what := "ack"
					if syn := (*roce.AETH)(p[roce.BTHLen:]).Syndrome(); syn == roce.NAKSequence {
						what = "nak"
					} else if !syn.IsACK() {
						what = fmt.Sprint(syn)
					}
					got = append(got, fmt.Sprint(what, " ", roce.PSNDiff((*roce.BTH)(p).PSN(), r.a.qp.StartPSN())))
				}
				if s := strings.Join(got, ", "); s != c.want[i] {
					t.Fatalf("after %v: %q, want %q", burst, s, c.want[i])
				}
			}
		})
	}
}

// TestDenseAnswersSeldomAcknowledge: in dense ping-pong hardly an answer has an
// acknowledgement behind it, and none comes by itself but what was asked for. Messages of
// many packets are acknowledged as often as before.
func TestDenseAnswersSeldomAcknowledge(t *testing.T) {
	const rounds = 1024
	for _, c := range []struct {
		name  string
		bytes int
		every int64 // time between requests, ns
		most  uint64
	}{
		{"dense", 128, 10_000, rounds / 24},
		{"sparse", 128, 100_000, rounds/2 + 1},
		{"several packets", 4000, 10_000, rounds/4 + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, 1, Faults{}, 1024, options{depth: 128})
			p.a.postRecvs(t, p.a.depth)
			p.b.postRecvs(t, p.b.depth)
			p.net.Advance(int64(time.Second))
			sent, answers := 0, 0
			take := func(n *node, got func()) {
				n.dev.Progress(p.net.Now())
				for _, wc := range n.poll() {
					if wc.Status != rdma.Success {
						t.Fatalf("completion %+v", wc)
					}
					if wc.Op == rdma.WCSend {
						sent++
						continue
					}
					got()
					n.postRecv(t, int(wc.ID))
				}
			}
			post := func(n *node, bytes int) {
				wr := rdma.SendWR{Data: n.sendSlot(0)[:bytes], Signaled: true, Late: true}
				if _, err := n.qp.PostSend([]rdma.SendWR{wr}); err != nil {
					t.Fatal(err)
				}
				n.dev.Transmit(p.net.Now())
			}
			for range rounds {
				post(p.a, c.bytes)
				p.net.Advance(p.net.Now() + c.every/2)
				take(p.b, func() { post(p.b, 128) })
				p.net.Advance(p.net.Now() + c.every - c.every/2)
				take(p.a, func() { answers++ })
			}
			if acks := p.b.dev.Stats().AcksSent; answers != rounds || acks > c.most {
				t.Errorf("%d answers to %d requests, %d acknowledgements, want at most %d", answers, rounds, acks, c.most)
			} else {
				t.Logf("%d acknowledgements", acks)
			}
			for range 100 {
				p.net.Advance(p.net.Now() + int64(100*time.Microsecond))
				take(p.a, func() {})
				take(p.b, func() {})
			}
			if a, b := p.a.dev.Stats(), p.b.dev.Stats(); sent != 2*rounds || a.Retransmitted+b.Retransmitted != 0 {
				t.Errorf("%d sends completed of %d, %d and %d packets sent again", sent, 2*rounds, a.Retransmitted, b.Retransmitted)
			}
		})
	}
}

// TestAnswerAcknowledgesItsRequest: who closes when the answer has come has nothing
// under way any more. In dense traffic one acknowledgement stands for several requests.
func TestAnswerAcknowledgesItsRequest(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: 10 * time.Microsecond}, 1024, options{})
	p.a.postRecvs(t, 4)
	p.b.postRecvs(t, 4)
	post := func(n *node) {
		wr := rdma.SendWR{Op: rdma.OpSend, Data: n.sendSlot(0)[:128], Signaled: true, Late: true}
		if _, err := n.qp.PostSend([]rdma.SendWR{wr}); err != nil {
			t.Fatal(err)
		}
		n.dev.Transmit(p.net.Now())
	}
	// ask returns what has completed at the asking end when the answer is there.
	ask := func() (ops []rdma.WCOpcode) {
		post(p.a)
		p.net.Advance(p.net.Now() + int64(10*time.Microsecond))
		p.b.dev.Progress(p.net.Now())
		post(p.b)
		p.net.Advance(p.net.Now() + int64(10*time.Microsecond))
		p.a.dev.Progress(p.net.Now())
		for _, wc := range p.a.poll() {
			if wc.Status != rdma.Success {
				t.Fatalf("completion %+v", wc)
			}
			ops = append(ops, wc.Op)
		}
		return ops
	}
	p.net.Advance(int64(time.Second))
	for _, want := range []int{2, 1} {
		if ops := ask(); len(ops) != want || !slices.Contains(ops, rdma.WCRecv) {
			t.Errorf("completions of kinds %v with the answer, want %d", ops, want)
		}
	}
	p.net.Advance(p.net.Now() + int64(200*time.Microsecond))
	if ops := ask(); len(ops) != 3 {
		t.Errorf("completions of kinds %v with the third answer, want its receive and two sends", ops)
	}
}

// What nobody asked for is acknowledged late, and later where nothing can get lost, but
// before the sender's timer asks.
func TestUnaskedAcknowledgementIsLate(t *testing.T) {
	for _, tc := range []struct {
		name     string
		unsummed bool
		want     int64
	}{{"network", false, lateAck}, {"memory", true, memoryLateAck}} {
		t.Run(tc.name, func(t *testing.T) {
			net := NewMemoryNet(1, Faults{})
			la, lb := net.Pair()
			o := options{slot: 4096, unsummed: tc.unsummed}
			p := connect(t, net, newNode(t, la, o), newNode(t, lb, o), 4096)
			p.b.postRecv(t, 0)
			start := net.Now()
			if _, err := p.a.qp.PostSend([]rdma.SendWR{{Data: p.a.sendSlot(0)[:100], Signaled: true, Late: true}}); err != nil {
				t.Fatal(err)
			}
			for done := false; !done; net.Advance(net.Now() + int64(100*time.Microsecond)) {
				p.a.dev.Progress(net.Now())
				p.b.dev.Progress(net.Now())
				for _, wc := range p.a.poll() {
					done = done || wc.Status == rdma.Success
				}
				if net.Now()-start > int64(time.Second) {
					t.Fatalf("not acknowledged: %+v", p.b.dev.Stats())
				}
			}
			took := net.Now() - start
			if slack := int64(time.Millisecond); took < tc.want-slack || took > tc.want+slack {
				t.Errorf("acknowledged after %v, want %v", time.Duration(took), time.Duration(tc.want))
			}
			if s := p.a.dev.Stats(); s.Timeouts != 0 {
				t.Errorf("the sender asked %d times", s.Timeouts)
			}
		})
	}
}
