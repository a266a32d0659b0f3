package softroce

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// responderTable is what a responder does with a request (IBTA vol. 1, §9.7.4 and
// tables 35, 36 and 58; the RNR rules are those of §9.7.5.2.8). Columns are states,
// or where the request's PSN lies:
//
//	idle    between messages           SEND    after a SEND_FIRST     WRITE  after a WRITE_FIRST
//	norecv  idle, no receive posted    cqfull  idle, no room for its completion
//	Snocq   in SEND, cqfull            Wnorecv in WRITE, norecv
//	dup     executed before            forgot  behind the expected PSN, but not what was executed there
//	ahead   the PSN after the expected again   likewise, and the gap was reported before
//
// ok: executed and answered; ack: acknowledged again; replay: answered again;
// rnr, seq, inv: NAK receiver not ready, PSN sequence error, invalid request;
// -: nothing. inv ends the pair, nothing else does.
const responderTable = `
                               idle  SEND  WRITE  norecv  cqfull  Snocq  Wnorecv  dup     forgot  ahead  again
RC_SEND_FIRST                  ok    inv   inv    rnr     ok      inv    inv      ack     ack     seq    -
RC_SEND_MIDDLE                 inv   ok    inv    inv     inv     ok     inv      ack     ack     seq    -
RC_SEND_LAST                   inv   ok    inv    inv     inv     rnr    inv      ack     ack     seq    -
RC_SEND_LAST_WITH_IMMEDIATE    inv   ok    inv    inv     inv     rnr    inv      ack     ack     seq    -
RC_SEND_ONLY                   ok    inv   inv    rnr     rnr     inv    inv      ack     ack     seq    -
RC_SEND_ONLY_WITH_IMMEDIATE    ok    inv   inv    rnr     rnr     inv    inv      ack     ack     seq    -
RC_RDMA_WRITE_FIRST            ok    inv   inv    ok      ok      inv    inv      ack     ack     seq    -
RC_RDMA_WRITE_MIDDLE           inv   inv   ok     inv     inv     inv    ok       ack     ack     seq    -
RC_RDMA_WRITE_LAST             inv   inv   ok     inv     inv     inv    ok       ack     ack     seq    -
RC_RDMA_WRITE_LAST_WITH_IMMEDIATE inv inv  ok     inv     inv     inv    rnr      ack     ack     seq    -
RC_RDMA_WRITE_ONLY             ok    inv   inv    ok      ok      inv    inv      ack     ack     seq    -
RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE ok inv   inv    rnr     rnr     inv    inv      ack     ack     seq    -
RC_RDMA_READ_REQUEST           ok    inv   inv    ok      ok      inv    inv      replay  -       seq    -
RC_COMPARE_SWAP                ok    inv   inv    ok      ok      inv    inv      replay  -       seq    -
RC_FETCH_ADD                   ok    inv   inv    ok      ok      inv    inv      replay  -       seq    -
`

// tableRows gives the cells of a table by row and column.
func tableRows(t *testing.T, table string, cell func(row, column, want string)) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(table), "\n")
	columns := strings.Fields(lines[0])
	for _, l := range lines[1:] {
		f := strings.Fields(l)
		if len(f) != len(columns)+1 {
			t.Fatalf("row %q has %d cells for %d columns", f[0], len(f)-1, len(columns))
		}
		for i, want := range f[1:] {
			cell(f[0], columns[i], want)
		}
	}
}

// opcodeNamed is the inverse of Opcode.String.
func opcodeNamed(t *testing.T, name string) roce.Opcode {
	t.Helper()
	for op := range roce.FetchAdd + 1 {
		if op.String() == name {
			return op
		}
	}
	t.Fatalf("no opcode is named %s", name)
	return 0
}

// sentBy records what a node sends, and loses it.
type sentBy struct {
	Link
	packets [][]byte
}

func (l *sentBy) Tx(frames []Frame) int {
	for i := range frames {
		l.packets = append(l.packets, append([]byte(nil), frames[i].Data[:frames[i].Len]...))
	}
	l.TxFree(frames)
	return len(frames)
}

// responderRig is a responder to which hand-made requests go.
type responderRig struct {
	*injector
	sent *sentBy
	q    *queuePair
}

func newResponderRig(t *testing.T) *responderRig {
	in := newInjectorWith(t, options{open: 4096, rdAtomic: 4, ackDelay: -1, cqe: 4})
	r := &responderRig{injector: in, sent: &sentBy{Link: in.b.dev.link}, q: in.b.qp.(*queuePair)}
	in.b.dev.link = r.sent
	return r
}

// injectTo delivers a packet and lets the responder answer.
func (r *responderRig) injectTo(raw []byte) {
	r.deliver(raw)
	for range 2 {
		r.b.dev.Progress(r.net.Now())
	}
}

const tableMTU = 256

// whole is a request as it should be, of a WRITE of three packets or a message of one.
func (r *responderRig) whole(op roce.Opcode, ahead uint32) []byte {
	props := op.Props()
	n := 0
	if props&roce.HasPayload != 0 {
		if n = 40; props&roce.End == 0 {
			n = tableMTU
		}
	}
	var ext []byte
	at := r.b.openMR.RemoteAddr(r.b.open)
	if props&roce.HasRETH != 0 {
		length := uint32(n)
		switch op {
		case roce.WriteFirst:
			length = 2*tableMTU + 40
		case roce.ReadRequest:
			length = 100
		}
		ext = make([]byte, roce.RETHLen)
		(*roce.RETH)(ext).Put(at, r.b.openMR.RKey, length)
	}
	if props&roce.HasAtomicETH != 0 {
		ext = make([]byte, roce.AtomicETHLen)
		(*roce.AtomicETH)(ext).Put(at, r.b.openMR.RKey, 5, 0)
	}
	if props&roce.HasImmDt != 0 {
		ext = append(ext, 1, 2, 3, 4)
	}
	b := r.packet(op, ahead, ext, n)
	for i := range n {
		b[roce.BTHLen+len(ext)+i] = byte(i)
	}
	return b
}

func TestResponderTable(t *testing.T) {
	tableRows(t, responderTable, func(row, column, want string) {
		t.Run(column+"/"+row, func(t *testing.T) {
			op := opcodeNamed(t, row)
			r := newResponderRig(t)
			steps := uint32(0)
			step := func(op roce.Opcode) {
				b := r.whole(op, steps)
				if op == roce.WriteFirst && opcodeNeedsFull(row) { // MIDDLE is followed by 40 bytes, LAST ends it
					(*roce.RETH)(b[roce.BTHLen:]).Put(r.b.openMR.RemoteAddr(r.b.open), r.b.openMR.RKey, tableMTU+40)
				}
				r.injectTo(r.seal(b))
				steps++
			}
			noReceive := func() { r.q.rqHead = r.q.rqTail }
			fullCQ := func() { r.q.recvCQ.tail = r.q.recvCQ.head + uint32(len(r.q.recvCQ.ring)) }
			switch column {
			case "norecv":
				noReceive()
			case "cqfull":
				fullCQ()
			case "SEND", "Snocq":
				step(roce.SendFirst)
				if column == "Snocq" {
					fullCQ()
				}
			case "WRITE", "Wnorecv":
				step(roce.WriteFirst)
				if column == "Wnorecv" {
					noReceive()
				}
			case "dup":
				switch op {
				case roce.SendMiddle, roce.SendLast, roce.SendLastImm:
					step(roce.SendFirst)
				case roce.WriteMiddle, roce.WriteLast, roce.WriteLastImm:
					step(roce.WriteFirst)
				}
				step(op)
			case "forgot":
				step(roce.SendOnly)
			case "again":
				r.injectTo(r.seal(r.whole(roce.SendOnly, 1)))
			}
			if r.q.state != rdma.QPReadyToSend || r.q.expected != roce.PSNAdd(r.a.qp.StartPSN(), steps) {
				t.Fatalf("the rig is in state %d, %d steps", r.q.state, roce.PSNDiff(r.q.expected, r.a.qp.StartPSN()))
			}
			before, was := r.q.expected, binary.NativeEndian.Uint64(r.b.open)
			r.sent.packets = nil
			at := steps
			switch column {
			case "dup", "forgot":
				at--
			case "ahead":
				at++
			case "again":
				at += 2
			}
			r.injectTo(r.seal(r.whole(op, at)))
			if got := r.action(op, before); got != want {
				t.Fatalf("%s, want %s", got, want)
			}
			if want != "ok" && binary.NativeEndian.Uint64(r.b.open) != was {
				t.Error("memory changed")
			}
		})
	})
}

// opcodeNeedsFull tells which WRITE packets follow a FIRST and end the message.
func opcodeNeedsFull(name string) bool { return strings.HasPrefix(name, "RC_RDMA_WRITE_LAST") }

// action says what the responder did with a request of op at PSN expected.
func (r *responderRig) action(op roce.Opcode, expected uint32) string {
	moved := roce.PSNDiff(r.q.expected, expected)
	failed := r.q.state == rdma.QPError
	var events [4]rdma.Event
	fatal := r.b.dev.PollEvents(events[:]) == 1 && events[0].Kind == rdma.EventQPFatal
	if len(r.sent.packets) == 0 && moved == 0 && !failed {
		return "-"
	}
	if len(r.sent.packets) != 1 {
		return fmt.Sprintf("%d packets, expected PSN %+d, failed %v", len(r.sent.packets), moved, failed)
	}
	p := r.sent.packets[0]
	h := (*roce.BTH)(p)
	syn := (*roce.AETH)(p[roce.BTHLen:]).Syndrome()
	psn := roce.PSNDiff(h.PSN(), expected)
	is := func(answer roce.Opcode, s roce.Syndrome, at, move int32, fails bool) bool {
		return h.Opcode() == answer && syn == s && psn == at && moved == move && failed == fails && fatal == fails
	}
	answer := roce.Acknowledge
	switch op {
	case roce.ReadRequest:
		answer = roce.ReadResponseOnly
	case roce.CompareSwap, roce.FetchAdd:
		answer = roce.AtomicAcknowledge
	}
	switch {
	case is(answer, roce.SyndromeACK, 0, 1, false):
		return "ok"
	case answer != roce.Acknowledge && is(answer, roce.SyndromeACK, -1, 0, false):
		return "replay"
	case is(roce.Acknowledge, roce.SyndromeACK, -1, 0, false):
		return "ack"
	case is(roce.Acknowledge, r.b.dev.rnrSyndrome, 0, 0, false):
		return "rnr"
	case is(roce.Acknowledge, roce.NAKSequence, 0, 0, false):
		return "seq"
	case is(roce.Acknowledge, roce.NAKInvalidRequest, 0, 0, true):
		return "inv"
	case is(roce.Acknowledge, roce.NAKRemoteAccess, 0, 0, true):
		return "acc"
	case is(roce.Acknowledge, roce.NAKRemoteOperational, 0, 0, true):
		return "op"
	}
	return fmt.Sprintf("%v %v at %+d, expected PSN %+d, failed %v, event %v", h.Opcode(), syn, psn, moved, failed, fatal)
}

// TestResponderRules: what a request must be beside coming in turn, one rule broken
// at a time (IBTA vol. 1, §9.7.4.1.3 to §9.7.4.1.7).
func TestResponderRules(t *testing.T) {
	for _, c := range []struct {
		rule  string
		op    roce.Opcode
		after roce.Opcode // a request before it; SendOnly: none
		ext   func(r *responderRig) []byte
		n     int
		want  string
	}{
		{"FIRST carries the path MTU: less", roce.WriteFirst, roce.SendOnly, reth(0, 600), 252, "inv"},
		{"FIRST carries the path MTU: more", roce.WriteFirst, roce.SendOnly, reth(0, 600), 260, "inv"},
		{"FIRST is not padded", roce.WriteFirst, roce.SendOnly, reth(0, 600), 255, "inv"},
		{"LAST carries something", roce.WriteLast, roce.WriteFirst, none, 0, "inv"},
		{"LAST carries the path MTU at most", roce.WriteLast, roce.WriteFirst, none, 257, "inv"},
		{"ONLY carries the path MTU at most", roce.WriteOnly, roce.SendOnly, reth(0, 300), 300, "inv"},
		{"ONLY may be empty", roce.WriteOnly, roce.SendOnly, reth(0, 0), 0, "ok"},
		{"an empty WRITE needs no key", roce.WriteOnly, roce.SendOnly, anyReth(1<<40, 1, 0), 0, "ok"},
		{"an empty READ needs no key", roce.ReadRequest, roce.SendOnly, anyReth(1<<40, 1, 0), 0, "ok"},
		{"WRITE brings what it announced: less", roce.WriteOnly, roce.SendOnly, reth(0, 50), 49, "inv"},
		{"WRITE brings what it announced: more", roce.WriteOnly, roce.SendOnly, reth(0, 50), 51, "inv"},
		{"WRITE brings what it announced: LAST too short", roce.WriteLast, roce.WriteFirst, none, 100, "inv"},
		{"WRITE brings what it announced: LAST too long", roce.WriteLast, roce.WriteMiddle, none, 41, "inv"},
		{"WRITE brings what it announced: MIDDLE ends it", roce.WriteMiddle, roce.WriteMiddle, none, 256, "inv"},
		{"a WRITE is within the limit", roce.WriteFirst, roce.SendOnly, reth(0, MaxMessage+1), 256, "inv"},
		{"a READ is within the limit", roce.ReadRequest, roce.SendOnly, reth(0, MaxMessage+1), 0, "inv"},
		{"a READ has no payload", roce.ReadRequest, roce.SendOnly, reth(0, 100), 4, "inv"},
		{"an atomic has no payload", roce.FetchAdd, roce.SendOnly, atomicETH(0), 4, "inv"},
		{"an atomic is aligned", roce.FetchAdd, roce.SendOnly, atomicETH(4), 0, "inv"},
		{"an atomic is aligned", roce.CompareSwap, roce.SendOnly, atomicETH(1), 0, "inv"},
		{"within the memory: WRITE", roce.WriteOnly, roce.SendOnly, reth(4096-3, 4), 4, "acc"},
		{"within the memory: WRITE's first packet tells", roce.WriteFirst, roce.SendOnly, reth(4096-300, 301), 256, "acc"},
		{"within the memory: READ", roce.ReadRequest, roce.SendOnly, reth(4096, 1), 0, "acc"},
		{"within the memory: to the last byte", roce.ReadRequest, roce.SendOnly, reth(4095, 1), 0, "ok"},
		{"within the memory: atomic", roce.FetchAdd, roce.SendOnly, atomicETH(4096), 0, "acc"},
		{"within the memory: addresses do not wrap", roce.ReadRequest, roce.SendOnly, reth(-1, 2), 0, "acc"},
		{"the key is known: WRITE", roce.WriteOnly, roce.SendOnly, anyReth(0, 1, 4), 4, "acc"},
		{"the key is known: READ", roce.ReadRequest, roce.SendOnly, anyReth(0, 1, 4), 0, "acc"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			r := newResponderRig(t)
			steps := uint32(0)
			for _, op := range map[roce.Opcode][]roce.Opcode{
				roce.WriteFirst: {roce.WriteFirst}, roce.WriteMiddle: {roce.WriteFirst, roce.WriteMiddle},
			}[c.after] {
				r.injectTo(r.seal(r.whole(op, steps)))
				steps++
			}
			r.sent.packets = nil
			expected := r.q.expected
			r.injectTo(r.seal(r.packet(c.op, steps, c.ext(r), c.n)))
			if got := r.action(c.op, expected); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			for i, b := range r.b.open[3*tableMTU:] {
				if b != 0 {
					t.Fatalf("byte %d was written", 3*tableMTU+i)
				}
			}
		})
	}
}

func none(*responderRig) []byte { return nil }

func anyReth(va uint64, key, bytes uint32) func(*responderRig) []byte {
	return func(*responderRig) []byte {
		b := make([]byte, roce.RETHLen)
		(*roce.RETH)(b).Put(va, key, bytes)
		return b
	}
}

// reth names bytes of the open memory from off on. An arena has whole pages, so that
// its end is where the memory ends.
func reth(off int, bytes uint32) func(*responderRig) []byte {
	return func(r *responderRig) []byte {
		return anyReth(r.b.openMR.RemoteAddr(r.b.open)+uint64(off), r.b.openMR.RKey, bytes)(r)
	}
}

func atomicETH(off int) func(*responderRig) []byte {
	return func(r *responderRig) []byte {
		b := make([]byte, roce.AtomicETHLen)
		(*roce.AtomicETH)(b).Put(r.b.openMR.RemoteAddr(r.b.open)+uint64(off), r.b.openMR.RKey, 1, 0)
		return b
	}
}

// TestMoreReadsThanAgreed: a requester that has more under way than the responder
// accepts breaks the agreement. All come in one burst, so that no answer is out.
func TestMoreReadsThanAgreed(t *testing.T) {
	for _, op := range []roce.Opcode{roce.ReadRequest, roce.FetchAdd} {
		r := newResponderRig(t)
		for i := range uint32(5) {
			r.deliver(r.seal(r.whole(op, i)))
		}
		r.b.dev.Progress(r.net.Now())
		if s := r.b.dev.Stats(); r.q.state != rdma.QPError || s.Messages != 4 || s.BadRequests != 1 || len(r.sent.packets) != 5 {
			t.Errorf("%v: state %d, %d packets sent, %+v", op, r.q.state, len(r.sent.packets), s)
		}
	}
}

// Packets that overtook another are dropped. When that other one arrives before the
// gap was reported, they are asked for by name: the sender would wait for its timer
// if they were the last.
func TestOvertakenPacketArrives(t *testing.T) {
	r := newResponderRig(t)
	var p [3][]byte
	for i := range p {
		p[i] = r.seal(r.whole(roce.SendOnly, uint32(i)))
	}
	r.deliver(p[1])
	r.deliver(p[2])
	r.injectTo(p[0])
	if n := len(r.sent.packets); n != 2 {
		t.Fatalf("%d packets were sent, want an acknowledgement and a NAK", n)
	}
	h := (*roce.BTH)(r.sent.packets[1])
	syn := (*roce.AETH)(r.sent.packets[1][roce.BTHLen:]).Syndrome()
	if want := roce.PSNAdd(r.a.qp.StartPSN(), 1); h.Opcode() != roce.Acknowledge || syn != roce.NAKSequence || h.PSN() != want {
		t.Errorf("%v %#x PSN %d, want a sequence NAK of %d", h.Opcode(), syn, h.PSN(), want)
	}
	r.sent.packets = nil
	r.deliver(p[1])
	r.injectTo(p[2])
	if s := r.b.dev.Stats(); s.Messages != 3 || s.SeqNAKsSent != 1 || len(r.sent.packets) != 1 {
		t.Errorf("%d messages, %d NAKs, then %d packets", s.Messages, s.SeqNAKsSent, len(r.sent.packets))
	}
}
