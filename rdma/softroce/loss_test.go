package softroce

import (
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// lossyLink loses exactly the packets that lose picks.
type lossyLink struct {
	Link
	lose func(h *roce.BTH, p []byte) bool
}

func (l *lossyLink) Tx(frames []Frame) int {
	for i := range frames {
		p := frames[i].Data[:frames[i].Len]
		if l.lose((*roce.BTH)(p), p) {
			l.TxFree(frames[i : i+1])
		} else if l.Link.Tx(frames[i:i+1]) == 0 {
			return i
		}
	}
	return len(frames)
}

// first picks the first n packets of one kind.
func first(n int, is func(op roce.Opcode, syn roce.Syndrome) bool) func(*roce.BTH, []byte) bool {
	return func(h *roce.BTH, p []byte) bool {
		var syn roce.Syndrome
		if h.Opcode() == roce.Acknowledge {
			syn = (*roce.AETH)(p[roce.BTHLen:]).Syndrome()
		}
		if n > 0 && is(h.Opcode(), syn) {
			n--
			return true
		}
		return false
	}
}

func opcode(want roce.Opcode) func(roce.Opcode, roce.Syndrome) bool {
	return func(op roce.Opcode, _ roce.Syndrome) bool { return op == want }
}

func syndrome(is func(roce.Syndrome) bool) func(roce.Opcode, roce.Syndrome) bool {
	return func(op roce.Opcode, s roce.Syndrome) bool { return op == roce.Acknowledge && is(s) }
}

// TestTailLoss loses what nothing follows: only the sender's timer can find out.
func TestTailLoss(t *testing.T) {
	ms := int64(time.Millisecond)
	nothing := func(*roce.BTH, []byte) bool { return false }
	for _, c := range []struct {
		name      string
		lose      func(*roce.BTH, []byte) bool // from the sender
		loseBack  func(*roce.BTH, []byte) bool // from the receiver
		timeouts  uint64
		duplicate bool
		within    int64 // virtual time
	}{
		{"the last packet", first(1, opcode(roce.SendLast)), nothing, 1, false, 5 * ms},
		{"the last packet three times", first(3, opcode(roce.SendLast)), nothing, 3, false, (4 + 8 + 16 + 1) * ms},
		{"the acknowledgement", nothing, first(1, syndrome(roce.Syndrome.IsACK)), 1, true, 5 * ms},
		{"three acknowledgements", nothing, first(3, syndrome(roce.Syndrome.IsACK)), 3, true, (4 + 8 + 16 + 1) * ms},
		{"the first packet and the NAK", first(1, opcode(roce.SendFirst)), first(1, syndrome(roce.Syndrome.IsNAK)), 1, false, 5 * ms},
		{"the first packet", first(1, opcode(roce.SendFirst)), nothing, 0, false, ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, 1, Faults{Delay: time.Microsecond}, 256, options{})
			p.a.dev.link = &lossyLink{p.a.dev.link, c.lose}
			p.b.dev.link = &lossyLink{p.b.dev.link, c.loseBack}
			p.b.postRecvs(t, 2)
			p.a.send(t, 1, make([]byte, 1000))
			p.settle(t, time.Second)
			a, b := p.a.dev.Stats(), p.b.dev.Stats()
			if a.Timeouts != c.timeouts || (b.Duplicates > 0) != c.duplicate || b.Messages != 1 {
				t.Errorf("sender %+v\nreceiver %+v", a, b)
			}
			if wcs := p.a.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
				t.Errorf("sent: %+v", wcs)
			}
			if wcs := p.b.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success || wcs[0].Bytes != 1000 {
				t.Errorf("received: %+v", wcs)
			}
			if now := p.net.Now(); now > c.within {
				t.Errorf("took %v, want at most %v", time.Duration(now), time.Duration(c.within))
			}
			checkNothingLeft(t, p)
		})
	}
}

// TestBackoff: a peer that says nothing is asked less and less often.
func TestBackoff(t *testing.T) {
	p := newPair(t, 1, Faults{}, 1024, options{peerTimeout: 300 * time.Millisecond})
	var at []time.Duration
	p.a.dev.link = &lossyLink{p.a.dev.link, func(*roce.BTH, []byte) bool {
		at = append(at, time.Duration(p.net.Now()).Round(time.Millisecond))
		return true
	}}
	p.a.send(t, 1, []byte("anybody?"))
	p.settle(t, 2*time.Second)
	ms := time.Millisecond
	if want := []time.Duration{0, 4 * ms, 12 * ms, 28 * ms, 60 * ms, 124 * ms, 188 * ms, 252 * ms}; !slices.Equal(at, want) {
		t.Errorf("sent at %v, want %v", at, want)
	}
	if wcs := p.a.poll(); len(wcs) != 1 || wcs[0].Status != rdma.RetryExceeded {
		t.Errorf("completions %+v", wcs)
	}
}

// TestRNRNAKLost: the sender's timer replaces it.
func TestRNRNAKLost(t *testing.T) {
	p := newPair(t, 1, Faults{}, 1024, options{})
	p.b.dev.link = &lossyLink{p.b.dev.link, first(1, syndrome(roce.Syndrome.IsRNR))}
	p.a.send(t, 1, []byte("x"))
	for p.b.dev.Stats().NoReceive < 2 {
		p.step()
	}
	p.b.postRecvs(t, 1)
	p.settle(t, time.Second)
	if s := p.a.dev.Stats(); s.Timeouts != 1 || s.RNRNAKsReceived != 1 {
		t.Errorf("%+v", s)
	}
	if wcs := p.b.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
		t.Errorf("received %+v", wcs)
	}
}

// TestRNRWaitsAsTold: every timer value of the NAK is kept to.
func TestRNRWaitsAsTold(t *testing.T) {
	for code := range 32 {
		in := newInjector(t)
		in.a.postRecvs(t, 1)
		in.b.send(t, 1, []byte("early"))
		in.b.dev.Progress(in.net.Now())
		syn := roce.SyndromeRNR | roce.Syndrome(code)
		in.inject(in.ack(syn, 0), in.a.dev.attr.Local)
		start := in.net.Now()
		var again int64
		in.b.dev.link = &lossyLink{in.b.dev.link, func(h *roce.BTH, _ []byte) bool {
			if h.Opcode() == roce.SendOnly && again == 0 {
				again = in.net.Now()
			}
			return false
		}}
		for again == 0 && in.net.Now()-start < int64(time.Second) {
			_, at := in.b.dev.Progress(in.net.Now())
			in.net.Advance(max(at, in.net.Now()+1))
		}
		if got, want := time.Duration(again-start), syn.RNRTime(); got < want || got > want+time.Microsecond {
			t.Errorf("timer %d: sent again after %v, want %v", code, got, want)
		}
	}
}

// TestUnsentComeBack: when a pair fails, every request comes back once, in order,
// and tells whether the peer acknowledged it. It must not touch their memory again.
func TestUnsentComeBack(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: time.Microsecond}, 256, options{depth: 32, peerTimeout: 50 * time.Millisecond})
	p.b.postRecvs(t, 32)
	p.b.dev.link = &lossyLink{p.b.dev.link, func(_ *roce.BTH, a []byte) bool {
		return (*roce.AETH)(a[roce.BTHLen:]).MSN() > 10 // the peer falls silent after ten messages
	}}
	for i := range 10 {
		p.a.send(t, i, make([]byte, 300))
		for range 20 {
			p.step()
		}
	}
	for i := 10; i < 32; i++ {
		p.a.send(t, i, make([]byte, 300))
	}
	p.settle(t, time.Second)
	wcs := p.a.poll()
	if len(wcs) != 32 {
		t.Fatalf("%d completions of 32", len(wcs))
	}
	for i, wc := range wcs {
		want := rdma.FlushError
		switch {
		case i < 10:
			want = rdma.Success
		case i == 10:
			want = rdma.RetryExceeded
		}
		if wc.ID != uint64(i) || wc.Status != want || wc.Op != rdma.WCSend {
			t.Errorf("completion %d: %+v, want %v", i, wc, want)
		}
	}
	sent := p.a.dev.Stats().TxPackets
	for range 1000 {
		p.step()
	}
	if now := p.a.dev.Stats().TxPackets; now != sent {
		t.Errorf("%d packets after the end", now-sent)
	}
}

// TestCompletionsNotPolled: a sender whose completions nobody takes stops, and goes
// on when they are taken.
func TestCompletionsNotPolled(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: time.Microsecond}, 256, options{depth: 64, cqe: 4})
	cq, err := p.b.dev.CreateCQ(64)
	if err != nil {
		t.Fatal(err)
	}
	p.b.qp.(*queuePair).recvCQ = cq.(*completionQueue)
	p.b.postRecvs(t, 64)
	sent, done := 0, 0
	for range 8 {
		p.a.send(t, sent, make([]byte, 300))
		sent++
		for range 20 {
			p.step()
		}
	}
	before := p.b.dev.Stats().Messages
	for ; sent < 40; sent++ {
		p.a.send(t, sent, make([]byte, 300))
	}
	for range 1000 {
		p.step()
	}
	if after := p.b.dev.Stats().Messages; before < 4 || after != before {
		t.Errorf("%d messages before and %d after the queue was full", before, after)
	}
	for range 1000 {
		for _, wc := range p.a.poll() {
			if wc.Status != rdma.Success || int(wc.ID) != done {
				t.Fatalf("completion %d: %+v", done, wc)
			}
			done++
		}
		p.step()
	}
	if done != 40 {
		t.Errorf("%d of 40 completions", done)
	}
}
