package softroce

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// TestForgedRequests: whole and valid packets from the peer's address, by somebody
// who guessed the queue pair number but not the PSN. They are answered as a
// confused peer would be, and change nothing.
func TestForgedRequests(t *testing.T) {
	for _, c := range []struct {
		name  string
		ahead uint32
		count func(s *Stats) uint64
	}{
		{"one ahead", 1, func(s *Stats) uint64 { return s.OutOfOrder }},
		{"far ahead", 1<<23 - 10, func(s *Stats) uint64 { return s.OutOfOrder }},
		{"just behind", roce.PSNMask - 4, func(s *Stats) uint64 { return s.Duplicates }},
		{"far behind", 1 << 23, func(s *Stats) uint64 { return s.Duplicates }},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newInjector(t)
			var s Stats
			for i := range 5 {
				s = in.inject(in.seal(in.packet(roce.SendOnly, c.ahead+uint32(i), nil, 8)), in.a.dev.attr.Local)
			}
			if c.count(&s) != 5 || s.OutOfOrder+s.Duplicates != 5 || s.Messages != 0 {
				t.Errorf("%+v", s)
			}
			if s.SeqNAKsSent > 1 {
				t.Errorf("%d NAKs for one gap", s.SeqNAKsSent)
			}
			checkUnharmed(t, in.pair)
		})
	}
}

// TestForgedAcks: acknowledgements that cannot be true are counted and dropped.
func TestForgedAcks(t *testing.T) {
	for _, c := range []struct {
		name  string
		syn   roce.Syndrome
		ahead uint32
		count func(s *Stats) *uint64
	}{
		{"ACK beyond what was sent", roce.SyndromeACK, 1, func(s *Stats) *uint64 { return &s.DropAck }},
		{"ACK far beyond", roce.SyndromeACK, 1 << 22, func(s *Stats) *uint64 { return &s.DropAck }},
		{"ACK long past", roce.SyndromeACK, roce.PSNMask, func(s *Stats) *uint64 { return &s.StaleAcks }},
		{"NAK beyond", roce.NAKSequence, 1, func(s *Stats) *uint64 { return &s.DropAck }},
		{"NAK long past", roce.NAKSequence, 1 << 23, func(s *Stats) *uint64 { return &s.StaleAcks }},
		{"RNR NAK beyond", roce.SyndromeRNR, 9, func(s *Stats) *uint64 { return &s.DropAck }},
		{"fatal NAK long past", roce.NAKInvalidRequest, roce.PSNMask, func(s *Stats) *uint64 { return &s.StaleAcks }},
		{"fatal NAK beyond", roce.NAKRemoteOperational, 1, func(s *Stats) *uint64 { return &s.DropAck }},
		{"NAK code 5", 0x65, 0, func(s *Stats) *uint64 { return &s.DropAck }},
		{"NAK of reliable datagrams, long past", roce.NAKInvalidRD, roce.PSNMask, func(s *Stats) *uint64 { return &s.StaleAcks }},
		{"NAK code 31", 0x7f, 0, func(s *Stats) *uint64 { return &s.DropAck }},
		{"reserved kind", 0x40, 0, func(s *Stats) *uint64 { return &s.DropAck }},
		{"reserved bit", 0x80, 0, func(s *Stats) *uint64 { return &s.DropAck }},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newInjector(t)
			in.a.postRecvs(t, 2)
			in.b.send(t, 1, []byte("in flight"))
			in.b.dev.Progress(in.net.Now())
			s := in.inject(in.ack(c.syn, c.ahead), in.a.dev.attr.Local)
			if *c.count(&s) != 1 || s.DropAck+s.StaleAcks != 1 || in.b.qp.State() != rdma.QPReadyToSend {
				t.Errorf("state %v, %+v", in.b.qp.State(), s)
			}
			in.settle(t, time.Second)
			if wcs := in.b.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
				t.Errorf("sent: %+v", wcs)
			}
			if s := in.b.dev.Stats(); s.Timeouts != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestForgedNAKsCostNoMessage: NAKs that could be true make the sender repeat itself;
// every message still arrives once and in order.
func TestForgedNAKsCostNoMessage(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: 3 * time.Microsecond}, 256, options{slot: 1500})
	forge := roce.NewICRC(roce.AppendPseudo(nil, p.b.dev.attr.Local, p.a.dev.attr.Local))
	in := injector{&pair{net: p.net, a: p.b, b: p.a}, forge}
	rng := rand.New(rand.NewPCG(1, 1))
	tr := newTraffic(1, 2000, 1500)
	p.b.postRecvs(t, p.b.depth)
	for !tr.done() {
		tr.pump(t, p.a, p.b)
		p.step()
		if q := p.a.qp.(*queuePair); rng.IntN(4) == 0 && q.high != q.una {
			syn := roce.NAKSequence
			if rng.IntN(2) == 0 {
				syn = roce.SyndromeRNR | 1
			}
			// Never beyond what the receiver has: that would acknowledge what it has not.
			has := roce.PSNDiff(p.b.qp.(*queuePair).expected, q.una)
			psn := roce.PSNAdd(q.una, uint32(rng.IntN(int(has)+1)))
			in.inject(in.ack(syn, (psn-q.startPSN)&roce.PSNMask), p.b.dev.attr.Local)
		}
		if p.net.Now() > int64(time.Minute) {
			t.Fatalf("%d of %d messages: %+v", tr.got, tr.count, p.a.dev.Stats())
		}
	}
	if s := p.a.dev.Stats(); s.Retransmitted == 0 || s.SeqNAKsReceived == 0 || s.RNRNAKsReceived == 0 {
		t.Errorf("no forgery took effect: %+v", s)
	}
	checkNothingLeft(t, p)
}

// TestFlood: rubbish in front of every packet disturbs nothing and keeps nothing.
func TestFlood(t *testing.T) {
	in := newInjector(t)
	rng := rand.New(rand.NewPCG(2, 2))
	for range 20_000 {
		b := make([]byte, rng.IntN(400))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if len(b) >= roce.MinPacket && rng.IntN(2) == 0 { // as far as the checks let it come without the right ICRC
			(*roce.BTH)(b).Put(roce.Opcode(rng.IntN(0x15)), 0, in.b.qp.Num(), true, rng.Uint32())
		}
		in.inject(b, in.a.dev.attr.Local)
	}
	s := in.b.dev.Stats()
	if s.Dropped() != 20_000 || s.RxPackets != 20_000 || s.TxPackets != 0 || s.DropICRC < 5000 {
		t.Errorf("%+v", s)
	}
	checkUnharmed(t, in.pair)
	checkNothingLeft(t, in.pair)
}
