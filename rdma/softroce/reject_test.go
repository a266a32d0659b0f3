package softroce

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// injector sends hand-made packets to one node as if they came from the other.
type injector struct {
	*pair
	crc roce.ICRC
}

func newInjector(t testing.TB) *injector { return newInjectorWith(t, options{}) }

func newInjectorWith(t testing.TB, o options) *injector {
	o.depth, o.slot = 8, 1024
	f := Faults{Frames: 256}
	if o.small {
		f = Faults{Frames: 160, Queue: 64, MTU: 320}
	}
	p := newPair(t, 1, f, 256, o)
	p.b.postRecvs(t, 4)
	return &injector{pair: p, crc: roce.NewICRC(roce.AppendPseudo(nil, p.a.dev.attr.Local, p.b.dev.attr.Local))}
}

// packet is a whole and valid one to b, n bytes of payload after ext.
func (in *injector) packet(op roce.Opcode, ahead uint32, ext []byte, n int) []byte {
	pad := -n & 3
	b := make([]byte, roce.BTHLen+len(ext)+n+pad)
	(*roce.BTH)(b).Put(op, pad, in.b.qp.Num(), true, roce.PSNAdd(in.a.qp.StartPSN(), ahead))
	copy(b[roce.BTHLen:], ext)
	return b
}

func (in *injector) seal(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, in.crc.Sum(b))
}

// ack is a whole and valid acknowledgement of b's packet number ahead.
func (in *injector) ack(syn roce.Syndrome, ahead uint32) []byte {
	b := in.packet(roce.Acknowledge, 0, []byte{byte(syn), 0, 0, 0}, 0)
	(*roce.BTH)(b).Put(roce.Acknowledge, 0, in.b.qp.Num(), false, roce.PSNAdd(in.b.qp.StartPSN(), ahead))
	return in.seal(b)
}

// inject hands raw bytes to b's link and lets b take them.
func (in *injector) inject(raw []byte, src netip.AddrPort) Stats {
	in.deliverFrom(raw, src)
	in.b.dev.Progress(in.net.Now())
	return in.b.dev.Stats()
}

// deliver hands raw bytes to b's link as if they came from a.
func (in *injector) deliver(raw []byte) { in.deliverFrom(raw, in.a.dev.attr.Local) }

func (in *injector) deliverFrom(raw []byte, src netip.AddrPort) {
	n := in.net
	last := len(n.free) - 1
	i := n.free[last]
	n.free = n.free[:last]
	n.deliver(n.links[in.b.dev.attr.Local], memoryPacket{index: i, n: copy(n.frame(i), raw), src: src})
}

func TestRejectedPacketsAreCounted(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(in *injector) []byte
		count func(s *Stats) *uint64
	}{
		{"empty", func(in *injector) []byte { return nil }, func(s *Stats) *uint64 { return &s.DropLength }},
		{"shorter than BTH and ICRC", func(in *injector) []byte { return make([]byte, roce.MinPacket-1) }, func(s *Stats) *uint64 { return &s.DropLength }},
		{"shorter than its immediate", func(in *injector) []byte { return in.seal(in.packet(roce.SendOnlyImm, 0, nil, 0)) }, func(s *Stats) *uint64 { return &s.DropLength }},
		{"shorter than its pad", func(in *injector) []byte {
			b := in.packet(roce.SendOnly, 0, nil, 0)
			b[1] |= 3 << 4
			return in.seal(b)
		}, func(s *Stats) *uint64 { return &s.DropLength }},
		{"ACK without AETH", func(in *injector) []byte { return in.seal(in.packet(roce.Acknowledge, 0, nil, 0)) }, func(s *Stats) *uint64 { return &s.DropLength }},
		{"transport version 1", func(in *injector) []byte {
			b := in.packet(roce.SendOnly, 0, nil, 4)
			b[1] |= 1
			return in.seal(b)
		}, func(s *Stats) *uint64 { return &s.DropVersion }},
		{"UD opcode", func(in *injector) []byte { return in.seal(in.packet(0x64, 0, nil, 4)) }, func(s *Stats) *uint64 { return &s.DropOpcode }},
		{"CNP", func(in *injector) []byte { return in.seal(in.packet(0x81, 0, nil, 16)) }, func(s *Stats) *uint64 { return &s.DropOpcode }},
		{"undefined opcode", func(in *injector) []byte { return in.seal(in.packet(0x1f, 0, nil, 4)) }, func(s *Stats) *uint64 { return &s.DropOpcode }},
		{"an answer to nothing", func(in *injector) []byte {
			return in.seal(in.packet(roce.ReadResponseOnly, 0, make([]byte, 4), 4))
		}, func(s *Stats) *uint64 { return &s.DropAck }},
		{"queue pair outside the block", func(in *injector) []byte {
			b := in.packet(roce.SendOnly, 0, nil, 4)
			b[5] ^= 0x80
			return in.seal(b)
		}, func(s *Stats) *uint64 { return &s.DropQPN }},
		{"no such queue pair", func(in *injector) []byte {
			b := in.packet(roce.SendOnly, 0, nil, 4)
			b[7] ^= 1
			return in.seal(b)
		}, func(s *Stats) *uint64 { return &s.DropQPN }},
		{"partition", func(in *injector) []byte {
			b := in.packet(roce.SendOnly, 0, nil, 4)
			b[3] = 0xfe
			return in.seal(b)
		}, func(s *Stats) *uint64 { return &s.DropPKey }},
		{"ICRC", func(in *injector) []byte {
			b := in.seal(in.packet(roce.SendOnly, 0, nil, 4))
			b[12]++
			return b
		}, func(s *Stats) *uint64 { return &s.DropICRC }},
		{"ACK of what was never sent", func(in *injector) []byte {
			return in.ack(roce.SyndromeACK, 0)
		}, func(s *Stats) *uint64 { return &s.DropAck }},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newInjector(t)
			s := in.inject(c.make(in), in.a.dev.attr.Local)
			if *c.count(&s) != 1 || s.Dropped() != 1 || s.RxPackets != 1 {
				t.Errorf("counted as %+v", s)
			}
			checkUnharmed(t, in.pair)
		})
	}
	t.Run("source", func(t *testing.T) {
		in := newInjector(t)
		src := netip.MustParseAddrPort("203.0.113.9:4791")
		in.crc = roce.NewICRC(roce.AppendPseudo(nil, src, in.b.dev.attr.Local))
		s := in.inject(in.seal(in.packet(roce.SendOnly, 0, nil, 4)), src)
		if s.DropSource != 1 || s.Dropped() != 1 {
			t.Errorf("counted as %+v", s)
		}
		checkUnharmed(t, in.pair)
	})
	t.Run("not connected", func(t *testing.T) {
		in := newInjector(t)
		qp, err := in.b.pd.CreateQP(rdma.QPConfig{SendCQ: in.b.cq, RecvCQ: in.b.cq, SendWRs: 1, RecvWRs: 1})
		if err != nil {
			t.Fatal(err)
		}
		b := in.packet(roce.SendOnly, 0, nil, 4)
		(*roce.BTH)(b).Put(roce.SendOnly, 0, qp.Num(), true, 0)
		s := in.inject(in.seal(b), in.a.dev.attr.Local)
		if s.DropState != 1 || s.Dropped() != 1 {
			t.Errorf("counted as %+v", s)
		}
		checkUnharmed(t, in.pair)
	})
}

// checkUnharmed sends a message each way.
func checkUnharmed(t *testing.T, p *pair) {
	t.Helper()
	p.a.postRecvs(t, 1)
	p.a.send(t, 0, []byte("there"))
	p.b.send(t, 0, []byte("and back"))
	p.settle(t, time.Second)
	for _, n := range []*node{p.a, p.b} {
		if wcs := n.poll(); len(wcs) != 2 || wcs[0].Status != rdma.Success || wcs[1].Status != rdma.Success {
			t.Errorf("after the bad packet: %+v", wcs)
		}
	}
}

// TestSourcePortOfThePeer: RNICs send from a port of their own choice.
func TestSourcePortOfThePeer(t *testing.T) {
	in := newInjector(t)
	src := netip.AddrPortFrom(in.a.dev.attr.Local.Addr(), 51234)
	in.crc = roce.NewICRC(roce.AppendPseudo(nil, src, in.b.dev.attr.Local))
	s := in.inject(in.seal(in.packet(roce.SendOnly, 0, nil, 4)), src)
	if s.Messages != 1 || s.Dropped() != 0 {
		t.Errorf("%+v", s)
	}
}

// TestPseudoHeaderOfTheLink: a link that saw the IP header says what it was.
func TestPseudoHeaderOfTheLink(t *testing.T) {
	in := newInjector(t)
	b := in.packet(roce.SendOnly, 0, nil, 4)
	pseudo := roce.AppendPseudo(nil, in.a.dev.attr.Local, in.b.dev.attr.Local)
	binary.BigEndian.PutUint16(pseudo[8+4:], 0x1234) // the identification of rdma_rxe or an RNIC
	roce.PutPseudoLen(pseudo, len(b)+roce.ICRCLen)
	b = binary.LittleEndian.AppendUint32(b, roce.Sum(pseudo, b))
	f := Frame{Data: b, Len: len(b), Src: in.a.dev.attr.Local}
	in.b.dev.packet(&f, 1)
	if s := in.b.dev.Stats(); s.DropICRC != 1 {
		t.Errorf("without the header: %+v", s)
	}
	f.Pseudo = pseudo
	in.b.dev.packet(&f, 1)
	if s := in.b.dev.Stats(); s.Messages != 1 || s.DropICRC != 1 {
		t.Errorf("with the header: %+v", s)
	}
}

// TestBadRequestsEndThePair: what IBTA vol. 1, §9.7.4.1 calls an invalid request is
// answered with NAK 0x61 and ends both ends' pair.
func TestBadRequestsEndThePair(t *testing.T) {
	type pkt struct {
		op  roce.Opcode
		ext int
		n   int
	}
	for _, c := range []struct {
		name    string
		packets []pkt
		recv    rdma.Status // what the first receive completes with
	}{
		{"MIDDLE without FIRST", []pkt{{roce.SendMiddle, 0, 256}}, rdma.RemoteInvalidReq},
		{"LAST without FIRST", []pkt{{roce.SendLast, 0, 1}}, rdma.RemoteInvalidReq},
		{"FIRST within a message", []pkt{{roce.SendFirst, 0, 256}, {roce.SendFirst, 0, 256}}, rdma.RemoteInvalidReq},
		{"ONLY within a message", []pkt{{roce.SendFirst, 0, 256}, {roce.SendOnly, 0, 1}}, rdma.RemoteInvalidReq},
		{"short FIRST", []pkt{{roce.SendFirst, 0, 252}}, rdma.RemoteInvalidReq},
		{"long FIRST", []pkt{{roce.SendFirst, 0, 260}}, rdma.RemoteInvalidReq},
		{"padded FIRST", []pkt{{roce.SendFirst, 0, 255}}, rdma.RemoteInvalidReq},
		{"empty LAST", []pkt{{roce.SendFirst, 0, 256}, {roce.SendLast, 0, 0}}, rdma.RemoteInvalidReq},
		{"long LAST", []pkt{{roce.SendFirst, 0, 256}, {roce.SendLast, 0, 257}}, rdma.RemoteInvalidReq},
		{"long ONLY", []pkt{{roce.SendOnly, 0, 257}}, rdma.RemoteInvalidReq},
		{"WRITE", []pkt{{roce.WriteOnly, roce.RETHLen, 4}}, rdma.RemoteInvalidReq},
		{"READ", []pkt{{roce.ReadRequest, roce.RETHLen, 0}}, rdma.RemoteInvalidReq},
		{"FETCH_ADD", []pkt{{roce.FetchAdd, roce.AtomicETHLen, 0}}, rdma.RemoteInvalidReq},
		{"message beyond its buffer", []pkt{
			{roce.SendFirst, 0, 256}, {roce.SendMiddle, 0, 256}, {roce.SendMiddle, 0, 256}, {roce.SendMiddle, 0, 256}, {roce.SendLast, 0, 1},
		}, rdma.LocalLengthError},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newInjector(t)
			var s Stats
			for i, p := range c.packets {
				s = in.inject(in.seal(in.packet(p.op, uint32(i), make([]byte, p.ext), p.n)), in.a.dev.attr.Local)
			}
			if s.BadRequests != 1 || s.ErrNAKsSent != 1 || s.Messages != 0 || in.b.qp.State() != rdma.QPError {
				t.Errorf("state %v, %+v", in.b.qp.State(), s)
			}
			wcs := in.b.poll()
			if len(wcs) != 4 || wcs[0].Status != c.recv || wcs[1].Status != rdma.FlushError || wcs[3].Status != rdma.FlushError {
				t.Errorf("completions %+v", wcs)
			}
			// The NAK lies at a, whose pair never sent anything: make it one that had.
			q := in.a.qp.(*queuePair)
			if _, err := in.a.qp.PostSend([]rdma.SendWR{{ID: 1, Data: make([]byte, 4), Inline: true}, {ID: 2, Inline: true}}); err != nil {
				t.Fatal(err)
			}
			q.high = roce.PSNAdd(q.high, uint32(len(c.packets)))
			in.a.dev.Progress(in.net.Now())
			if st := in.a.dev.Stats(); st.ErrNAKsReceived != 1 || in.a.qp.State() != rdma.QPError {
				t.Errorf("requester: state %v, %+v", in.a.qp.State(), st)
			}
			if _, err := in.b.qp.PostRecv([]rdma.RecvWR{{}}); err != rdma.ErrQPState {
				t.Errorf("PostRecv in error: %v", err)
			}
		})
	}
}

// TestMessageTooLong runs both ends: the receiver's buffer is too small.
func TestMessageTooLong(t *testing.T) {
	p := newPair(t, 1, Faults{Delay: time.Microsecond}, 256, options{depth: 4, slot: 2048})
	for i := range 2 {
		if _, err := p.b.qp.PostRecv([]rdma.RecvWR{{ID: uint64(i), Data: p.b.recvSlot(i)[:1000]}}); err != nil {
			t.Fatal(err)
		}
	}
	p.a.send(t, 1, make([]byte, 1000))
	p.a.send(t, 2, make([]byte, 1001))
	p.a.send(t, 3, make([]byte, 1))
	p.settle(t, time.Second)
	a, b := p.a.poll(), p.b.poll()
	if len(a) != 3 || a[0].Status != rdma.Success || a[1].Status != rdma.RemoteInvalidReq || a[2].Status != rdma.FlushError {
		t.Errorf("sender: %+v", a)
	}
	if len(b) != 2 || b[0].Status != rdma.Success || b[0].Bytes != 1000 || b[1].Status != rdma.LocalLengthError {
		t.Errorf("receiver: %+v", b)
	}
	if p.a.qp.State() != rdma.QPError || p.b.qp.State() != rdma.QPError {
		t.Errorf("states %v and %v", p.a.qp.State(), p.b.qp.State())
	}
}

// TestErrorNAKs gives a requester every NAK that ends its pair.
func TestErrorNAKs(t *testing.T) {
	for syn, want := range map[roce.Syndrome]rdma.Status{
		roce.NAKInvalidRequest: rdma.RemoteInvalidReq, roce.NAKRemoteAccess: rdma.RemoteAccessError, roce.NAKRemoteOperational: rdma.RemoteOpError,
		roce.NAKInvalidRD: rdma.RemoteInvalidRD,
	} {
		in := newInjector(t)
		in.b.send(t, 1, []byte("fine"))
		in.b.send(t, 2, []byte("refused"))
		in.b.send(t, 3, []byte("after it"))
		in.b.dev.Progress(in.net.Now())
		in.inject(in.ack(syn, 1), in.a.dev.attr.Local)
		wcs := in.b.poll()
		if len(wcs) != 7 || wcs[0].Status != rdma.Success || wcs[1].Status != want || wcs[2].Status != rdma.FlushError || wcs[3].Op != rdma.WCRecv {
			t.Errorf("%v: %+v", syn, wcs)
		}
	}
}

func TestPostErrors(t *testing.T) {
	in := newInjector(t)
	foreign := make([]byte, 64)
	big := make([]byte, MaxMessage+1)
	for name, wr := range map[string]rdma.SendWR{
		"not registered": {Data: foreign}, "inline too long": {Data: make([]byte, MaxInline+1), Inline: true},
		"too long": {Data: big}, "opcode": {Op: 9, Inline: true},
	} {
		if n, err := in.a.qp.PostSend([]rdma.SendWR{{Inline: true}, wr, {Inline: true}}); n != 1 || err == nil {
			t.Errorf("%s: posted %d, %v", name, n, err)
		}
	}
	for range 4 {
		in.a.qp.PostSend([]rdma.SendWR{{Inline: true}})
	}
	if n, err := in.a.qp.PostSend([]rdma.SendWR{{Inline: true}}); n != 0 || err != rdma.ErrQueueFull {
		t.Errorf("ninth of eight sends: %d, %v", n, err)
	}
	if n, err := in.a.qp.PostRecv([]rdma.RecvWR{{}, {Data: foreign}}); n != 1 || err == nil {
		t.Errorf("foreign receive buffer: %d, %v", n, err)
	}
	if n, err := in.a.qp.PostRecv(make([]rdma.RecvWR, 9)); n != 7 || err != rdma.ErrQueueFull {
		t.Errorf("nine more of eight receives: %d, %v", n, err)
	}
	for name, r := range map[string]rdma.Remote{
		"MTU":    {Addr: netip.MustParseAddr("192.0.2.1"), UDPPort: 1, PathMTU: 1500},
		"family": {Addr: netip.MustParseAddr("2001:db8::1"), UDPPort: 1, PathMTU: 256},
		"port":   {Addr: netip.MustParseAddr("192.0.2.1"), PathMTU: 256},
		"QPN":    {Addr: netip.MustParseAddr("192.0.2.1"), UDPPort: 1, PathMTU: 256, QPN: 1 << 24},
		"none":   {UDPPort: 1, PathMTU: 256},
		"ICRC":   {Addr: netip.MustParseAddr("192.0.2.1"), UDPPort: 1, PathMTU: 256, QPN: 2, Unsummed: true},
	} {
		qp, err := in.a.pd.CreateQP(rdma.QPConfig{SendCQ: in.a.cq, RecvCQ: in.a.cq, SendWRs: 1, RecvWRs: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := qp.Connect(r); err == nil {
			t.Errorf("%s: connected", name)
		}
		if _, err := qp.PostSend([]rdma.SendWR{{Inline: true}}); err != rdma.ErrQPState {
			t.Errorf("%s: PostSend in INIT: %v", name, err)
		}
	}
	if err := in.a.qp.Connect(in.b.remote(256)); err != rdma.ErrQPState {
		t.Errorf("second Connect: %v", err)
	}
	if err := in.a.cq.Close(); err == nil {
		t.Error("a completion queue in use was closed")
	}
}

func TestQueuePairNumbers(t *testing.T) {
	net := NewMemoryNet(1, Faults{})
	la, _ := net.Pair()
	d := New(la, Options{})
	defer d.Close()
	cq, err := d.CreateCQ(1)
	if err != nil {
		t.Fatal(err)
	}
	pd, err := d.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	cfg := rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: 1, RecvWRs: 1}
	seen := map[uint32]bool{}
	var first rdma.QP
	for range MaxQPs {
		qp, err := pd.CreateQP(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = qp
		}
		if n := qp.Num(); seen[n] || n < qpnBlock || n >= 0xfff000 || n&^(qpnBlock-1) != d.QPNBlock() {
			t.Fatalf("number %#x in block %#x", n, d.QPNBlock())
		} else {
			seen[n] = true
		}
	}
	if _, err := pd.CreateQP(cfg); err != ErrTooManyQPs {
		t.Errorf("one more: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if qp, err := pd.CreateQP(cfg); err != nil || qp.Num() != first.Num() {
		t.Errorf("after a close: %v", err)
	}
}
