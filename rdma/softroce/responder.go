package softroce

import (
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

const (
	// ackEvery is how many packets an acknowledgement that was asked for, or that can
	// go along with data, waits for at most.
	ackEvery = 16

	// One that goes along with data is a packet more behind an answer that somebody waits
	// for. Where joinDense messages of a packet each, or more, come within
	// Options.AckDelay, it waits for joinEvery of them, at most joinDelays times as long;
	// not where the peer may have a lane, for which nothing may be unacknowledged.
	joinDense  = 8
	joinEvery  = 64
	joinDelays = 5

	// lateAck is how long an acknowledgement that was not asked for waits for data to
	// go along with: at 500 messages a second and more it costs no wake-up of its own.
	lateAck = int64(4 * time.Millisecond)
	// memoryLateAck is that between ends that share memory. Nothing is lost there, so
	// nobody waits for it, and a loop that blocks would set a timer for it each time,
	// which on a virtual machine costs as much as a wake-up.
	memoryLateAck = 15 * lateAck

	// ackSlack is how much too early an acknowledgement may go, so that many of them
	// are looked for together.
	ackSlack = int64(50 * time.Microsecond)
)

// response is the acknowledgement that a queue pair owes its peer, after the
// answers that it owes. One is enough: all of them are cumulative and say where the
// responder stands, so a later one replaces an earlier one.
type response uint8

const (
	respNone response = iota
	respAck
	respRNR         // NAK, receiver not ready
	respSequence    // NAK, PSN sequence error
	respInvalid     // NAK, invalid request: the pair is in error
	respAccess      // NAK, remote access error: likewise
	respOperational // NAK, remote operational error: likewise
)

var nakSyndromes = [...]roce.Syndrome{
	respSequence: roce.NAKSequence, respInvalid: roce.NAKInvalidRequest,
	respAccess: roce.NAKRemoteAccess, respOperational: roce.NAKRemoteOperational,
}

// oweNAK registers a response that goes out at the end of this Progress.
func (q *queuePair) oweNAK(r response) {
	q.resp = r
	q.dev.urgent = true
	q.hasten()
}

// oweAck registers an acknowledgement, which waits for others to join it, and for
// data to go along with. If it was asked for it goes before the loop sleeps.
func (q *queuePair) oweAck(now int64, asked bool) {
	d := q.dev
	if q.resp != respAck {
		q.resp, q.askedBack = respAck, false
		q.ackAt = now + q.lateAck()
	} else if !asked {
		return
	}
	if asked && !q.askedBack {
		q.askedBack, d.flushable = true, true
		q.ackAt = min(q.ackAt, now+d.ackDelay)
	}
	if asked && q.unanswered >= ackEvery {
		q.ackAt = now
	}
	if q.ackAt <= now {
		q.hasten()
		return
	}
	d.laterAt = min(d.laterAt, q.ackAt)
	if !q.inLater {
		q.inLater = true
		d.later = append(d.later, q)
	}
}

// lateAck is how long an acknowledgement that was not asked for waits.
func (q *queuePair) lateAck() int64 {
	if q.unsummed {
		return memoryLateAck
	}
	return lateAck
}

// oweAckNow registers an acknowledgement that waits for nothing.
func (q *queuePair) oweAckNow(now int64) {
	q.resp, q.ackAt = respAck, now
	q.hasten()
}

// hasten puts the pair on the list of those that owe something now.
func (q *queuePair) hasten() {
	if !q.inDue {
		q.inDue = true
		q.dev.due = append(q.dev.due, q)
	}
}

// respond sends at most limit answers and then the response. left tells that
// something remains, starved that the link gave no frame for it.
func (q *queuePair) respond(limit int) (sent int, left, starved bool) {
	for !q.answers.empty() {
		if q.answers.first().mr.gone() {
			q.lostMemory()
			break
		}
		if sent >= limit {
			return sent, true, false
		}
		f := q.dev.frame()
		if f == nil {
			return sent, true, true
		}
		q.sendAnswer(f)
		sent++
	}
	if q.resp == respNone {
		return sent, false, false
	}
	if q.resp == respSequence && q.unanswered > 0 {
		// A NAK would do, but rdma_rxe, once it went back, does so again only after an
		// acknowledgement, or when its timer expires.
		f := q.dev.frame()
		if f == nil {
			return sent, true, true
		}
		q.sendResponse(f, respAck)
		sent++
	}
	f := q.dev.frame()
	if f == nil {
		return sent, true, true
	}
	q.sendResponse(f, q.resp)
	q.resp = respNone
	return sent + 1, false, false
}

// sendResponse writes r into f.
func (q *queuePair) sendResponse(f *Frame, r response) {
	s := &q.dev.stats
	syn, psn := roce.SyndromeACK, q.expected
	switch r {
	case respAck:
		psn = roce.PSNAdd(psn, roce.PSNMask) // the last one received
		s.AcksSent++
	case respRNR:
		syn = q.dev.rnrSyndrome
		s.RNRNAKsSent++
	default:
		syn = nakSyndromes[r]
		if r == respSequence {
			s.SeqNAKsSent++
		} else {
			s.ErrNAKsSent++
		}
	}
	q.unanswered, q.answeredAt, q.answeredMSN = 0, q.dev.now, q.msn
	b := f.Data
	(*roce.BTH)(b).Put(roce.Acknowledge, 0, q.peerQPN, false, psn)
	(*roce.AETH)(b[roce.BTHLen:]).Put(syn, q.msn)
	q.seal(f, roce.BTHLen+roce.AETHLen)
}

// request takes a request packet p that was checked; data is its payload.
func (q *queuePair) request(p, data []byte, props roce.Props, now int64) {
	h := (*roce.BTH)(p)
	psn := h.PSN()
	if psn != q.expected {
		q.unexpected(p, psn, now)
		return
	}
	if q.misplaced(props, len(data), h.Pad()) {
		q.refuse(respInvalid, rdma.RemoteInvalidReq)
		return
	}
	psns := uint32(1)
	switch {
	case props&roce.IsSend != 0:
		if !q.receiveSend(p, data, props, now) {
			return
		}
	case props&roce.HasPayload != 0:
		if !q.receiveWrite(p, data, props, now) {
			return
		}
	default:
		if psns = q.execute(p, psn, now); psns == 0 {
			return
		}
	}
	q.expected = roce.PSNAdd(psn, psns)
	// The packet came late, and those behind it that were dropped meanwhile were not
	// reported: now they are.
	closes := q.nakked
	late := closes && (q.resp == respSequence || q.resp == respRNR) && roce.PSNDiff(q.ahead, q.expected) >= 0
	q.nakked = late
	q.unanswered++
	if props&roce.End != 0 {
		q.msn++
		q.dev.stats.Messages++
	}
	if late {
		q.oweNAK(respSequence)
		return
	}
	if props&roce.HasPayload == 0 {
		return // its answer acknowledges it
	}
	if closes { // before there can be another gap: see respond
		q.oweAckNow(now)
		return
	}
	q.oweAck(now, h.AckReq())
}

// receiveSend takes a SEND packet; false if it was answered with a NAK.
func (q *queuePair) receiveSend(p, data []byte, props roce.Props, now int64) bool {
	e := q.receive()
	if e == nil {
		q.dev.stats.NoReceive++
		q.notReady()
		return false
	}
	if props&roce.Start != 0 {
		q.filled = 0
	}
	if q.filled+len(data) > len(e.data) {
		q.refuse(respInvalid, rdma.LocalLengthError)
		return false
	}
	if e.mr.gone() {
		q.refuse(respOperational, rdma.LocalProtError)
		return false
	}
	if props&roce.End == 0 {
		place(e.data[q.filled:], data)
		q.filled += len(data)
		q.inMessage = true
		return true
	}
	if q.recvCQ.full() {
		q.dev.stats.CQFull++
		q.notReady()
		return false
	}
	place(e.data[q.filled:], data)
	wc := rdma.WC{ID: e.id, Op: rdma.WCRecv, QPN: q.num, Bytes: q.filled + len(data)}
	if props&roce.HasImmDt != 0 {
		wc.Imm, wc.HasImm = (*roce.ImmDt)(p[roce.BTHLen:]).Value(), true
	}
	q.recvCQ.push(wc)
	q.retire(e)
	q.inMessage = false
	return true
}

// place copies data to dst, unless the check of the ICRC did so already.
func place(dst, data []byte) {
	if len(data) > 0 && &dst[0] != &data[0] {
		copy(dst, data)
	}
}

// landing is where the n bytes of a SEND packet will lie if it is the one expected and
// proves intact; nil if the pair will not take it. Nobody reads a posted receive before
// it completes, so what turns out damaged does no harm there.
func (q *queuePair) landing(props roce.Props, n int) []byte {
	start := props&roce.Start != 0
	if start == q.inMessage || !start && q.writing {
		return nil
	}
	e, at := q.nextReceive(), q.filled
	if start {
		at = 0
	}
	if e == nil || e.mr.gone() || n > len(e.data)-at {
		return nil
	}
	return e.data[at:][:n]
}

// nextReceive is what receive will be, left where it is.
func (q *queuePair) nextReceive() *recvWQE {
	switch {
	case q.holds:
		return &q.held
	case q.srq != nil:
		return q.srq.first()
	case q.rqHead == q.rqTail:
		return nil
	}
	return &q.rq[int(q.rqHead)&(len(q.rq)-1)]
}

// misplaced tells whether a request does not fit where it stands (IBTA vol. 1,
// §9.7.4.1): messages do not interleave, and every packet but the last is full.
func (q *queuePair) misplaced(props roce.Props, n, pad int) bool {
	if start := props&roce.Start != 0; start == q.inMessage || !start && q.writing != (props&roce.IsSend == 0) {
		return true
	}
	if props&roce.HasPayload == 0 {
		return n != 0 || pad != 0
	}
	if props&roce.End == 0 {
		return n != q.mtu || pad != 0
	}
	return n > q.mtu || n == 0 && props&roce.Start == 0
}

// unexpected takes a request with a PSN other than the expected one. Behind it: a
// duplicate, whose acknowledgement or answer was lost. Ahead of it: something is
// missing, which one NAK reports. A second NAK follows only when the PSNs start
// over, for then the sender went back and the same packet was lost again.
func (q *queuePair) unexpected(p []byte, psn uint32, now int64) {
	s := &q.dev.stats
	if roce.PSNDiff(psn, q.expected) < 0 {
		op := (*roce.BTH)(p).Opcode()
		if op == roce.ReadRequest || op == roce.CompareSwap || op == roce.FetchAdd {
			q.replay(p, psn)
			return
		}
		s.Duplicates++
		if q.resp == respNone || q.resp == respAck {
			q.oweAckNow(now)
		}
		return
	}
	s.OutOfOrder++
	if !q.nakked || roce.PSNDiff(psn, q.ahead) <= 0 {
		q.nakked = true
		q.oweNAK(respSequence)
	}
	q.ahead = psn
}

// notReady answers the expected packet with an RNR NAK. What follows it in flight
// is ahead of the expected PSN and gets no NAK of its own.
func (q *queuePair) notReady() {
	q.nakked = true
	q.ahead = q.expected
	q.oweNAK(respRNR)
}

// refuse answers a request that cannot be, and ends the pair.
func (q *queuePair) refuse(r response, recv rdma.Status) {
	q.dev.stats.BadRequests++
	q.fail(rdma.FlushError, recv)
	q.dev.event(rdma.Event{Kind: rdma.EventQPFatal, QPN: q.num})
	q.oweNAK(r)
}
