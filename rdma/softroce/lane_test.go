package softroce

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// laneLink makes a link of a net without faults one that is memory of its ends.
type laneLink struct {
	Link
	frame [1]Frame
	full  bool
	rx    [2]Frame // looked at by Lone, and not taken
	held  int
}

func (l *laneLink) Place(p *Path, n int) []byte {
	if l.full || l.TxAlloc(l.frame[:]) == 0 {
		return nil
	}
	l.frame[0].Len, l.frame[0].Path = n, p
	return l.frame[0].Data[:n]
}

func (l *laneLink) Publish() { l.Tx(l.frame[:]) }

func (l *laneLink) Lone() ([]byte, netip.Addr) {
	if l.held == 0 {
		l.held = l.Link.Rx(l.rx[:])
	}
	if l.held != 1 {
		return nil, netip.Addr{}
	}
	return l.rx[0].Data[:l.rx[0].Len], l.rx[0].Src.Addr()
}

func (l *laneLink) Taken() {
	l.Link.RxFree(l.rx[:1])
	l.held = 0
}

func (l *laneLink) Rx(frames []Frame) int {
	if l.held == 0 {
		return l.Link.Rx(frames)
	}
	n := copy(frames, l.rx[:l.held])
	l.held = 0
	return n
}

// took is a message that a taker took.
type took struct {
	data string
	imm  uint32
}

type taker struct {
	got    []took
	refuse func() bool // nil: never
}

func (k *taker) Take(data []byte, imm uint32) bool {
	if k.refuse != nil && k.refuse() {
		return false
	}
	k.got = append(k.got, took{string(data), imm})
	return true
}

func (k *taker) Hand(data []byte, imm uint32) bool { return k.Take(data, imm) }

func newLanePair(t testing.TB, o options) (p *pair, links [2]*laneLink, at *taker) {
	net := NewMemoryNet(1, Faults{})
	la, lb := net.Pair()
	links = [2]*laneLink{{Link: la}, {Link: lb}}
	p = connect(t, net, newNode(t, links[0], o), newNode(t, links[1], o), 1024)
	at = &taker{}
	p.b.qp.(rdma.LaneQP).SetTaker(at)
	return p, links, at
}

// ask sends a message the usual way, which b acknowledges.
func (p *pair) ask(t *testing.T) {
	t.Helper()
	p.a.send(t, 0, []byte("usual"))
	p.settle(t, time.Second)
	if wcs := p.a.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
		t.Fatalf("completions %+v", wcs)
	}
	p.b.poll()
}

// Messages in the lane and beside it stay in order, across the end of the sequence
// numbers, whether the receiving end takes them or lets them fill a receive.
func TestLaneOrder(t *testing.T) {
	const count = 5000
	p, _, at := newLanePair(t, options{unsummed: true, random: func() uint32 { return roce.PSNMask - 100 }})
	rng := rand.New(rand.NewPCG(5, 5))
	at.refuse = func() bool { return rng.IntN(5) == 0 }
	a := p.a.qp.(rdma.LaneQP)
	p.b.postRecvs(t, p.b.depth)
	next, sent, lone := 0, 0, 0
	check := func(data string, imm uint32) {
		t.Helper()
		if len(data) < 4 || binary.LittleEndian.Uint32([]byte(data)) != uint32(next) || len(data) != 4+next%500 || imm != uint32(next%3) {
			t.Fatalf("message %d: %d bytes, immediate %d", next, len(data), imm)
		}
		next++
	}
	for next < count {
		for range rng.IntN(4) {
			if sent == count || sent-next >= p.a.depth/2 {
				break
			}
			data := make([]byte, 4+sent%500)
			binary.LittleEndian.PutUint32(data, uint32(sent))
			imm := uint32(sent % 3)
			if !a.SendNow(data, imm, p.net.Now()) {
				b := p.a.sendSlot(sent)[:len(data)]
				copy(b, data)
				wr := rdma.SendWR{ID: uint64(sent), Data: b, Signaled: true}
				if imm != 0 {
					wr.Op, wr.Imm = rdma.OpSendImm, imm
				}
				if _, err := p.a.qp.PostSend([]rdma.SendWR{wr}); err != nil {
					t.Fatal(err)
				}
			}
			sent++
		}
		if rng.IntN(2) == 0 && p.b.dev.Lone(p.net.Now()) {
			lone++
		}
		p.step()
		p.a.poll()
		for _, m := range at.got {
			check(m.data, m.imm)
		}
		at.got = at.got[:0]
		for _, wc := range p.b.poll() {
			if wc.Status != rdma.Success {
				t.Fatalf("%+v", wc)
			}
			check(string(p.b.recvSlot(int(wc.ID))[:wc.Bytes]), wc.Imm)
			p.b.postRecv(t, int(wc.ID))
		}
	}
	p.settle(t, time.Second)
	if s := p.a.dev.Stats(); s.LaneSent < count/8 || s.LaneSent == count || s.Retransmitted > 0 {
		t.Errorf("%d of %d in the lane, %d sent again", s.LaneSent, count, s.Retransmitted)
	}
	if lone < count/200 {
		t.Errorf("%d were handed over alone", lone)
	}
	if next != sent || len(at.got) > 0 {
		t.Errorf("%d sent, %d came, %d more", sent, next, len(at.got))
	}
}

// When a pair may send in the lane.
func TestLaneFree(t *testing.T) {
	p, links, at := newLanePair(t, options{unsummed: true})
	a := p.a.qp.(*queuePair)
	p.b.postRecvs(t, 8)
	no := func(when string) {
		t.Helper()
		if a.SendNow([]byte("no"), 0, p.net.Now()) {
			t.Fatalf("a message %s", when)
		}
	}
	yes := func(data string) {
		t.Helper()
		at.got = nil
		if !a.SendNow([]byte(data), 0, p.net.Now()) {
			t.Fatal("no message in the lane")
		}
		p.net.Advance(p.net.Now() + 1000)
		p.b.dev.Progress(p.net.Now())
		if len(at.got) != 1 || at.got[0].data != data {
			t.Fatalf("got %v", at.got)
		}
	}
	no("before the peer has acknowledged anything")
	p.ask(t)
	yes("after that")
	yes("")
	if a.SendNow(make([]byte, 1025), 0, p.net.Now()) {
		t.Fatal("a message longer than a packet")
	}
	links[0].full = true
	no("into a full link")
	links[0].full = false
	p.a.send(t, 0, []byte("before it"))
	no("before one that is not sent")
	p.a.dev.Progress(p.net.Now())
	no("before one that is not acknowledged")
	p.settle(t, time.Second)
	p.a.poll()
	p.b.poll()
	yes("behind it")
	p.net.Advance(p.net.Now() + laneNanos)
	p.a.dev.Progress(p.net.Now())
	no("when nothing was acknowledged for a second")
	p.ask(t)
	yes("at last")
	if s := p.b.dev.Stats(); s.NoReceive > 0 || s.Dropped() > 0 {
		t.Errorf("%+v", s)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	no("from a closed pair")
}

// Without the agreement there is no lane.
func TestNoLane(t *testing.T) {
	p, _, at := newLanePair(t, options{})
	p.b.postRecvs(t, 8)
	p.ask(t)
	if a := p.a.qp.(rdma.LaneQP); a.LaneFree(p.net.Now()) || a.SendNow([]byte("no"), 0, p.net.Now()) || len(at.got) > 0 {
		t.Error("a message in the lane")
	}
}

// What is pending goes in front of a message in the lane: the peer, answering, finds
// its own lane free.
func TestLaneAcknowledges(t *testing.T) {
	p, _, _ := newLanePair(t, options{unsummed: true})
	a, b := p.a.qp.(*queuePair), p.b.qp.(*queuePair)
	p.a.postRecvs(t, 8)
	p.b.postRecvs(t, 8)
	p.ask(t)
	p.b.send(t, 0, []byte("usual"))
	p.settle(t, time.Second)
	p.net.Advance(p.net.Now() + int64(time.Millisecond))
	p.a.send(t, 0, []byte("request"))
	p.a.dev.Progress(p.net.Now())
	p.b.dev.Progress(p.net.Now())
	if a.LaneFree(p.net.Now()) || !b.SendNow([]byte("answer"), 0, p.net.Now()) {
		t.Fatal("no answer in the lane")
	}
	p.a.dev.Progress(p.net.Now())
	if !a.LaneFree(p.net.Now()) {
		t.Error("the answer did not acknowledge its request")
	}
}

// A message in the lane cannot come again: where a peer, against the message
// protocol, has no receive for it, the pair fails, and does not wait for ever.
func TestLaneRefused(t *testing.T) {
	p, _, at := newLanePair(t, options{unsummed: true})
	at.refuse = func() bool { return true }
	p.b.postRecvs(t, 1)
	p.ask(t)
	if !p.a.qp.(rdma.LaneQP).SendNow([]byte("nobody wants it"), 0, p.net.Now()) {
		t.Fatal("no message in the lane")
	}
	p.settle(t, time.Second)
	if st := p.a.qp.State(); st != rdma.QPError {
		t.Errorf("state %d", st)
	}
	p.a.fatal(t, rdma.RNRRetryExceeded)
}

// fatal expects the event that tells why the pair failed, for no completion does.
func (n *node) fatal(t *testing.T, want rdma.Status) {
	t.Helper()
	var events [4]rdma.Event
	for _, e := range events[:n.dev.PollEvents(events[:])] {
		if e.Kind == rdma.EventQPFatal && e.QPN == n.qp.Num() && e.Status == want {
			return
		}
	}
	t.Errorf("no event of a queue pair that failed with %v among %+v", want, events)
}

// A peer that stands still is found, though it owes no acknowledgement of what is sent
// in the lane; one that works and has nothing to say is not taken for it.
func TestLaneStandsStill(t *testing.T) {
	p, _, at := newLanePair(t, options{unsummed: true})
	a := p.a.qp.(*queuePair)
	p.b.postRecvs(t, 8)
	send := func() {
		t.Helper()
		if !a.SendNow([]byte("one way"), 0, p.net.Now()) {
			t.Fatal("no message in the lane")
		}
	}
	run := func(d time.Duration, nodes ...*node) {
		for end := p.net.Now() + int64(d); p.net.Now() < end; p.net.Advance(p.net.Now() + int64(10*time.Millisecond)) {
			for _, n := range nodes {
				n.dev.Progress(p.net.Now())
			}
		}
	}
	for range 3 {
		p.ask(t)
		send()
		run(10*time.Millisecond, p.a, p.b)
		send()
		run(5*time.Second, p.a, p.b)
		if a.state != rdma.QPReadyToSend || a.timer != 0 {
			t.Fatalf("state %d, timer %d: a peer that only listens", a.state, a.timer)
		}
	}
	if len(at.got) != 9 {
		t.Fatalf("%d messages, want 9", len(at.got))
	}
	p.ask(t)
	send()
	run(3*time.Second, p.a)
	if a.state != rdma.QPReadyToSend {
		t.Fatal("given up too early")
	}
	run(2*time.Second, p.a)
	if a.state != rdma.QPError {
		t.Fatal("a peer that stands still")
	}
	p.a.fatal(t, rdma.RetryExceeded)
}

// The usual way takes the timer over from the lane.
func TestLaneThenLoss(t *testing.T) {
	p, _, _ := newLanePair(t, options{unsummed: true})
	a := p.a.qp.(*queuePair)
	p.b.postRecvs(t, 8)
	p.ask(t)
	if !a.SendNow([]byte("first"), 0, p.net.Now()) || !a.laneWatch {
		t.Fatal("no message in the lane")
	}
	p.a.send(t, 0, []byte("second"))
	p.a.dev.Progress(p.net.Now())
	if a.laneWatch || a.timer > p.net.Now()+rtoFirst {
		t.Errorf("the timer expires %v from now", time.Duration(a.timer-p.net.Now()))
	}
	p.settle(t, time.Second)
	if wcs := p.a.poll(); len(wcs) != 1 || a.timer != 0 {
		t.Errorf("completions %+v, timer %d", wcs, a.timer)
	}
}

// Who closes need not wait for what was posted Late.
func TestLaneAsk(t *testing.T) {
	for _, sent := range []bool{false, true} {
		p, _, _ := newLanePair(t, options{unsummed: true})
		a := p.a.qp.(*queuePair)
		p.b.postRecvs(t, 8)
		p.ask(t)
		a.Ask() // of nothing
		if _, err := a.PostSend([]rdma.SendWR{{Data: p.a.sendSlot(0)[:100], Signaled: true, Late: true}}); err != nil {
			t.Fatal(err)
		}
		if sent {
			p.a.dev.Progress(p.net.Now())
		}
		a.Ask()
		start := p.net.Now()
		for len(p.a.poll()) == 0 {
			p.step()
			if p.net.Now()-start > int64(2*time.Millisecond) {
				t.Fatalf("sent %v: not acknowledged at once", sent)
			}
		}
	}
}

// FuzzLane gives the same packets, as FuzzReceive makes them, to a device with a lane and
// to one without: they must deliver the same, and stand where the other does.
func FuzzLane(f *testing.F) {
	packet := func(op roce.Opcode, psn byte, rest ...byte) []byte {
		b := append([]byte{0, 3, byte(op), 0x40, 0xff, 0xff, 0, 0, 0, 0, 0x40, 0, 0, psn}, rest...)
		b[0] = byte(len(b) - 2)
		return b
	}
	only := packet(roce.SendOnly, 0, 'd', 'a', 't', 'a', 0, 0, 0, 0)
	imm := packet(roce.SendOnlyImm, 0, 0, 0, 0, 9, 'd', 'a', 't', 'a', 0, 0, 0, 0)
	f.Add(append(only, imm...))
	for i := range imm[2:] { // every byte of the headers
		b := append([]byte(nil), imm...)
		b[2+i] ^= 0x11
		f.Add(append(b, imm...))
	}
	f.Add(append(packet(roce.SendFirst, 0, make([]byte, 4)...), only...))
	f.Fuzz(func(t *testing.T, data []byte) {
		lane := newInjectorWith(t, options{small: true, unsummed: true})
		plain := newInjectorWith(t, options{small: true, unsummed: true})
		ql, qp := lane.b.qp.(*queuePair), plain.b.qp.(*queuePair)
		k := &taker{}
		lane.b.dev.lane = &laneLink{Link: lane.b.dev.link}
		ql.openLane()
		ql.SetTaker(k)
		for len(data) > 1 {
			n := min(int(data[0]), len(data)-2)
			how, raw := data[1], data[2:2+n]
			data = data[2+n:]
			var got [2][]took
			stale := plain.b.dev.Stats().StaleAcks
			for i, in := range []*injector{lane, plain} {
				b, q := append([]byte(nil), raw...), in.b.qp.(*queuePair)
				if how&1 != 0 && len(b) >= roce.BTHLen {
					copy(b[5:8], []byte{byte(q.num >> 16), byte(q.num >> 8), byte(q.num)})
				}
				if how&2 != 0 && len(b) >= roce.BTHLen {
					psn := roce.PSNAdd(q.expected, uint32(int32(int8(b[11]))))
					copy(b[9:12], []byte{byte(psn >> 16), byte(psn >> 8), byte(psn)})
				}
				src := in.a.dev.attr.Local
				if how&4 != 0 {
					src = in.b.dev.attr.Local
				}
				if len(b) > 0 {
					in.inject(b, src)
				}
				if in == lane {
					got[i], k.got = k.got, nil
				}
				for _, wc := range in.b.poll() {
					if wc.Status == rdma.Success {
						got[i] = append(got[i], took{string(in.b.recvSlot(int(wc.ID))[:wc.Bytes]), wc.Imm})
						in.b.postRecv(t, int(wc.ID))
					}
				}
			}
			if len(got[0]) != len(got[1]) || len(got[0]) == 1 && got[0][0] != got[1][0] || len(got[0]) > 1 {
				t.Fatalf("with a lane %v, without %v", got[0], got[1])
			}
			sl, sp := lane.b.dev.Stats(), plain.b.dev.Stats()
			if ql.state == rdma.QPError && sl.StaleAcks > stale && sp.StaleAcks > stale {
				return // a NAK of what may have been sent in the lane ends that pair alone
			}
			if ql.state != qp.state || ql.nakked != qp.nakked || ql.msn != qp.msn ||
				roce.PSNDiff(ql.expected, lane.a.qp.StartPSN()) != roce.PSNDiff(qp.expected, plain.a.qp.StartPSN()) ||
				sl.Messages != sp.Messages || sl.Dropped() != sp.Dropped() || sl.BadRequests != sp.BadRequests || sl.RxPackets != sp.RxPackets {
				t.Fatalf("with a lane %+v, without %+v", sl, sp)
			}
		}
	})
}
