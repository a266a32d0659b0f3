package softroce

import (
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// ackEvery is how many packets one acknowledgement covers at most while data
// flows, and how often a sender asks for one.
const ackEvery = 16

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

// owe registers a response. Acknowledgements wait until at, or for others to join
// them; NAKs go out at the end of this Progress.
func (q *queuePair) owe(r response, at int64) {
	if r != respAck || q.resp != respAck {
		q.resp, q.ackAt = r, at
	} else if at < q.ackAt {
		q.ackAt = at
	}
	if r != respAck {
		q.dev.urgent = true
	}
	q.join()
}

// join puts the pair on the list of those that owe something.
func (q *queuePair) join() {
	if !q.inResp {
		q.inResp = true
		q.dev.resp = append(q.dev.resp, q)
	}
}

// respDue tells whether the response must be sent now.
func (q *queuePair) respDue(now int64, urgent bool) bool {
	if q.resp != respAck {
		return q.resp != respNone
	}
	return !urgent && (q.unanswered >= ackEvery || now >= q.ackAt || q.dev.flush)
}

// respond sends at most limit answers and then, if it is due, the response. left
// tells that something remains, starved that the link gave no frame for it.
func (q *queuePair) respond(limit int, due bool) (sent int, left, starved bool) {
	for !q.answers.empty() {
		if q.answers.first().mr.gone() {
			q.lostMemory()
			due = true
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
	if q.resp == respNone || !due {
		return sent, q.resp != respNone, false
	}
	f := q.dev.frame()
	if f == nil {
		return sent, true, true
	}
	q.sendResponse(f)
	return sent + 1, false, false
}

// sendResponse writes the response into f.
func (q *queuePair) sendResponse(f *Frame) {
	s := &q.dev.stats
	syn, psn := roce.SyndromeACK, q.expected
	switch q.resp {
	case respAck:
		psn = roce.PSNAdd(psn, roce.PSNMask) // the last one received
		s.AcksSent++
	case respRNR:
		syn = q.dev.rnrSyndrome
		s.RNRNAKsSent++
	default:
		syn = nakSyndromes[q.resp]
		if q.resp == respSequence {
			s.SeqNAKsSent++
		} else {
			s.ErrNAKsSent++
		}
	}
	q.resp = respNone
	q.unanswered = 0
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
		q.refuse(respInvalid, rdma.RemoteInvalidReq, now)
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
	late := (q.resp == respSequence || q.resp == respRNR) && q.nakked && roce.PSNDiff(q.ahead, q.expected) >= 0
	q.nakked = late
	q.unanswered++
	if props&roce.End != 0 {
		q.msn++
		q.dev.stats.Messages++
	}
	if late {
		q.owe(respSequence, now)
		return
	}
	if props&roce.HasPayload == 0 {
		return // its answer acknowledges it
	}
	if h.AckReq() || q.resp == respSequence || q.resp == respRNR {
		q.owe(respAck, now+q.dev.ackDelay)
	}
}

// receiveSend takes a SEND packet; false if it was answered with a NAK.
func (q *queuePair) receiveSend(p, data []byte, props roce.Props, now int64) bool {
	e := q.receive()
	if e == nil {
		q.dev.stats.NoReceive++
		q.notReady(now)
		return false
	}
	if props&roce.Start != 0 {
		q.filled = 0
	}
	if q.filled+len(data) > len(e.data) {
		q.refuse(respInvalid, rdma.LocalLengthError, now)
		return false
	}
	if e.mr.gone() {
		q.refuse(respOperational, rdma.LocalProtError, now)
		return false
	}
	if props&roce.End == 0 {
		copy(e.data[q.filled:], data)
		q.filled += len(data)
		q.inMessage = true
		return true
	}
	if q.recvCQ.full() {
		q.dev.stats.CQFull++
		q.notReady(now)
		return false
	}
	copy(e.data[q.filled:], data)
	wc := rdma.WC{ID: e.id, Op: rdma.WCRecv, QPN: q.num, Bytes: q.filled + len(data)}
	if props&roce.HasImmDt != 0 {
		wc.Imm, wc.HasImm = (*roce.ImmDt)(p[roce.BTHLen:]).Value(), true
	}
	q.recvCQ.push(wc)
	q.retire(e)
	q.inMessage = false
	return true
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
			q.owe(respAck, now)
		}
		return
	}
	s.OutOfOrder++
	if !q.nakked || roce.PSNDiff(psn, q.ahead) <= 0 {
		q.nakked = true
		q.owe(respSequence, now)
	}
	q.ahead = psn
}

// notReady answers the expected packet with an RNR NAK. What follows it in flight
// is ahead of the expected PSN and gets no NAK of its own.
func (q *queuePair) notReady(now int64) {
	q.nakked = true
	q.ahead = q.expected
	q.owe(respRNR, now)
}

// refuse answers a request that cannot be, and ends the pair.
func (q *queuePair) refuse(r response, recv rdma.Status, now int64) {
	q.dev.stats.BadRequests++
	q.fail(rdma.FlushError, recv)
	q.dev.event(rdma.Event{Kind: rdma.EventQPFatal, QPN: q.num})
	q.owe(r, now)
}
