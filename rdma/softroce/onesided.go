package softroce

import (
	"encoding/binary"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// executed is a READ or atomic that the pair remembers in case its answer is lost.
type executed struct {
	op       roce.Opcode
	psn, end uint32 // of its answer
	msn      uint32
	rkey     uint32
	bytes    uint32 // READ
	va       uint64
	orig     uint64 // atomics: the value found
	args     [2]uint64
}

// answer is what is left to be sent of an answer.
type answer struct {
	psn, msn uint32
	mr       *region
	data     []byte // READ
	orig     uint64 // atomics
	atomic   bool
	begun    bool
	fresh    bool // not a replay
}

// answerQueue holds the answers to be sent, in order. A requester has at most
// MaxDestRdAtomic requests without a whole answer, so there are at most that many
// fresh ones; as many again may be asked for twice.
type answerQueue struct {
	ring       []answer
	head, tail uint32 // free running
	fresh      int    // of those in the queue
	limit      int    // of fresh ones
}

func (a *answerQueue) init(limit int) {
	a.ring, a.limit = make([]answer, ringSize(2*limit)), limit
}

func (a *answerQueue) empty() bool { return a.head == a.tail }

func (a *answerQueue) full() bool { return int(a.tail-a.head) == len(a.ring) }

func (a *answerQueue) first() *answer { return &a.ring[int(a.head)&(len(a.ring)-1)] }

// queueAnswer adds an answer, which acknowledges everything before it.
func (q *queuePair) queueAnswer(w answer) {
	a := &q.answers
	a.ring[int(a.tail)&(len(a.ring)-1)] = w
	a.tail++
	if w.fresh {
		a.fresh++
	}
	q.dev.urgent = true
	q.hasten()
}

// dropFirst takes the first answer out of the queue.
func (a *answerQueue) dropFirst() {
	w := a.first()
	if w.fresh {
		a.fresh--
	}
	*w = answer{}
	a.head++
}

// receiveWrite takes a WRITE packet; false if it was answered with a NAK.
func (q *queuePair) receiveWrite(p, data []byte, props roce.Props, now int64) bool {
	ext := p[roce.BTHLen:]
	target, mr := q.target, q.writeMR
	if props&roce.Start != 0 {
		h := (*roce.RETH)(ext)
		ext = ext[roce.RETHLen:]
		if h.DMALen() > MaxMessage {
			q.refuse(respInvalid, rdma.RemoteInvalidReq)
			return false
		}
		var ok bool
		if target, mr, ok = q.remote(h.RKey(), h.VA(), h.DMALen(), rdma.RemoteWrite); !ok {
			q.refuse(respAccess, rdma.RemoteAccessError)
			return false
		}
		q.filled = 0
	}
	left := len(target) - q.filled - len(data)
	if left < 0 || (left == 0) != (props&roce.End != 0) {
		q.refuse(respInvalid, rdma.RemoteInvalidReq)
		return false
	}
	if mr.gone() {
		q.refuse(respAccess, rdma.RemoteAccessError)
		return false
	}
	if props&roce.HasImmDt != 0 {
		e := q.receive()
		if e == nil {
			q.dev.stats.NoReceive++
			q.notReady()
			return false
		}
		if q.recvCQ.full() {
			q.dev.stats.CQFull++
			q.notReady()
			return false
		}
		q.recvCQ.push(rdma.WC{
			ID: e.id, Op: rdma.WCRecvWriteImm, QPN: q.num, Bytes: len(target), Imm: (*roce.ImmDt)(ext).Value(), HasImm: true,
		})
		q.retire(e)
	}
	copy(target[q.filled:], data)
	if props&roce.End != 0 {
		q.inMessage, q.writing, q.target, q.writeMR = false, false, nil, nil
	} else {
		q.inMessage, q.writing, q.target, q.writeMR = true, true, target, mr
		q.filled += len(data)
	}
	return true
}

// execute takes a READ request or an atomic, and gives how many PSNs it takes; 0 if
// it was answered with a NAK.
func (q *queuePair) execute(p []byte, psn uint32, now int64) uint32 {
	a := &q.answers
	if a.fresh == a.limit || a.full() { // more than the peer was told to have under way (IBTA vol. 1, §9.7.4.1.4)
		q.refuse(respInvalid, rdma.RemoteInvalidReq)
		return 0
	}
	x := described(p, psn)
	want, n := rdma.RemoteRead, x.bytes
	if x.op != roce.ReadRequest {
		want, n = rdma.RemoteAtomic, 8
		if x.va%8 != 0 {
			q.refuse(respInvalid, rdma.RemoteInvalidReq)
			return 0
		}
	}
	if n > MaxMessage {
		q.refuse(respInvalid, rdma.RemoteInvalidReq)
		return 0
	}
	mem, mr, ok := q.remote(x.rkey, x.va, n, want)
	if !ok {
		q.refuse(respAccess, rdma.RemoteAccessError)
		return 0
	}
	psns := uint32(1)
	w := answer{psn: psn, msn: q.msn + 1, mr: mr, fresh: true}
	if x.op == roce.ReadRequest {
		psns = max(1, uint32(int(n)+q.mtu-1)>>q.mtuShift)
		w.data = mem
	} else {
		x.orig = binary.NativeEndian.Uint64(mem)
		switch {
		case x.op == roce.FetchAdd:
			binary.NativeEndian.PutUint64(mem, x.orig+x.args[0])
		case x.orig == x.args[1]:
			binary.NativeEndian.PutUint64(mem, x.args[0])
		}
		w.atomic, w.orig, w.mr = true, x.orig, nil
	}
	x.end, x.msn = roce.PSNAdd(psn, psns), w.msn
	q.done[q.doneCount%uint32(len(q.done))] = x
	q.doneCount++
	if q.resp != respNone { // the answer says it, too
		q.resp, q.unanswered = respNone, 0
	}
	q.queueAnswer(w)
	return psns
}

// described is what a READ request or atomic asks for.
func described(p []byte, psn uint32) executed {
	op := (*roce.BTH)(p).Opcode()
	if op == roce.ReadRequest {
		h := (*roce.RETH)(p[roce.BTHLen:])
		return executed{op: op, psn: psn, rkey: h.RKey(), va: h.VA(), bytes: h.DMALen()}
	}
	h := (*roce.AtomicETH)(p[roce.BTHLen:])
	return executed{op: op, psn: psn, rkey: h.RKey(), va: h.VA(), args: [2]uint64{h.SwapAdd(), h.Compare()}}
}

// replay answers a READ or atomic again (IBTA vol. 1, §9.7.5.1.4). A READ may be asked
// for from the middle; an atomic is not executed twice. What the pair does not
// remember, or not so, is not answered: the peer has its answer, or is none.
func (q *queuePair) replay(p []byte, psn uint32) {
	s := &q.dev.stats
	y := described(p, psn)
	x := q.remembered(&y)
	if x == nil {
		s.DropReplay++
		return
	}
	s.Duplicates++
	if x.op != roce.ReadRequest {
		q.again(answer{psn: psn, msn: x.msn, atomic: true, orig: x.orig})
		return
	}
	if mem, mr, ok := q.remote(y.rkey, y.va, y.bytes, rdma.RemoteRead); ok {
		q.again(answer{psn: psn, msn: x.msn, mr: mr, data: mem})
	}
}

// remembered is the request executed before of which y is a part.
func (q *queuePair) remembered(y *executed) *executed {
	for i := range min(q.doneCount, uint32(len(q.done))) {
		x := &q.done[(q.doneCount-1-i)%uint32(len(q.done))]
		at := roce.PSNDiff(y.psn, x.psn)
		if at < 0 || roce.PSNDiff(y.psn, x.end) >= 0 {
			continue
		}
		off := uint64(at) << q.mtuShift
		if x.op != y.op || x.rkey != y.rkey || x.args != y.args || y.va != x.va+off || uint64(y.bytes)+off > uint64(x.bytes) {
			return nil
		}
		return x
	}
	return nil
}

// again queues a replay, unless there is no room or the same answer waits already.
// One that waits before the replay of something earlier does not count: the peer has
// gone back and will not take it.
func (q *queuePair) again(w answer) {
	a := &q.answers
	if a.full() {
		return
	}
	for i := a.tail; i != a.head; i-- {
		v := &a.ring[int(i-1)&(len(a.ring)-1)]
		if roce.PSNDiff(v.psn, w.psn) < 0 {
			break
		}
		if v.psn == w.psn && !v.begun {
			return
		}
	}
	q.queueAnswer(w)
}

// lostMemory drops the answers: the memory of the first one was deregistered. The pair
// ends there.
func (q *queuePair) lostMemory() {
	q.expected = q.answers.first().psn // of the NAK
	for !q.answers.empty() {
		q.answers.dropFirst()
	}
	q.refuse(respAccess, rdma.RemoteAccessError)
}

// sendAnswer writes the next packet of the first answer into f.
func (q *queuePair) sendAnswer(f *Frame) {
	w := q.answers.first()
	b := f.Data
	op, n, last := roce.AtomicAcknowledge, roce.BTHLen+roce.AETHLen, true
	var data []byte
	switch {
	case w.atomic:
		(*roce.AtomicAckETH)(b[n:]).Put(w.orig)
		n += roce.AtomicAckETHLen
	default:
		data = w.data
		if last = len(data) <= q.mtu; !last {
			data = data[:q.mtu]
		}
		switch {
		case !w.begun && !last:
			op = roce.ReadResponseFirst
		case !w.begun:
			op = roce.ReadResponseOnly
		case last:
			op = roce.ReadResponseLast
		default:
			op, n = roce.ReadResponseMiddle, roce.BTHLen
		}
		w.data = w.data[len(data):]
	}
	pad := -len(data) & 3
	(*roce.BTH)(b).Put(op, pad, q.peerQPN, false, w.psn)
	if op != roce.ReadResponseMiddle {
		(*roce.AETH)(b[roce.BTHLen:]).Put(roce.SyndromeACK, w.msn)
	}
	q.sealWith(f, n, data, pad)
	q.dev.stats.AnswersSent++
	if last {
		q.answers.dropFirst()
		return
	}
	w.begun = true
	w.psn = roce.PSNAdd(w.psn, 1)
}
