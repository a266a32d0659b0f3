package softroce

import (
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

const (
	// ackEvery is how many packets one acknowledgement covers at most while data
	// flows, and how often a sender asks for one.
	ackEvery = 16

	// rnrDelay is what an RNR NAK asks the peer to wait.
	rnrDelay = 120 * time.Microsecond
)

var rnrSyndrome = roce.RNRSyndrome(rnrDelay)

// response is the acknowledgement that a queue pair owes its peer. One is enough:
// all of them are cumulative and say where the responder stands, so a later one
// replaces an earlier one.
type response uint8

const (
	respNone response = iota
	respAck
	respSequence // NAK, PSN sequence error
	respRNR      // NAK, receiver not ready
	respInvalid  // NAK, invalid request: the pair is in error
)

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
	if !q.inResp {
		q.inResp = true
		q.dev.resp = append(q.dev.resp, q)
	}
}

// respDue tells whether the response must be sent now.
func (q *queuePair) respDue(now int64, urgent bool) bool {
	if q.resp != respAck {
		return true
	}
	return !urgent && (q.unanswered >= ackEvery || now >= q.ackAt || q.dev.flush)
}

// respond writes the response into f.
func (q *queuePair) respond(f *Frame) {
	s := &q.dev.stats
	syn, psn := roce.SyndromeACK, q.expected
	switch q.resp {
	case respAck:
		psn = roce.PSNAdd(psn, roce.PSNMask) // the last one received
		s.AcksSent++
	case respSequence:
		syn = roce.NAKSequence
		s.SeqNAKsSent++
	case respRNR:
		syn = rnrSyndrome
		s.RNRNAKsSent++
	case respInvalid:
		syn = roce.NAKInvalidRequest
		s.ErrNAKsSent++
	}
	q.resp = respNone
	q.unanswered = 0
	b := f.Data
	(*roce.BTH)(b).Put(roce.Acknowledge, 0, q.peerQPN, false, psn)
	(*roce.AETH)(b[roce.BTHLen:]).Put(syn, q.msn)
	const n = roce.BTHLen + roce.AETHLen
	roce.PutICRC(b[n:], q.txCRC.Sum(b[:n]))
	f.Len = n + roce.ICRCLen
	f.Path = &q.path
}

// request takes a request packet p that was checked; data is its payload.
func (q *queuePair) request(p, data []byte, props roce.Props, now int64) {
	s := &q.dev.stats
	h := (*roce.BTH)(p)
	psn := h.PSN()
	if psn != q.expected {
		q.unexpected(psn, now)
		return
	}
	if props&roce.IsSend == 0 || q.misplaced(props, len(data), h.Pad()) {
		s.BadRequests++
		q.refuse(rdma.RemoteInvalidReq, now)
		return
	}
	if props&roce.Start != 0 {
		if q.rqHead == q.rqTail {
			s.NoReceive++
			q.notReady(now)
			return
		}
		q.filled = 0
	}
	e := &q.rq[int(q.rqHead)&(len(q.rq)-1)]
	if q.filled+len(data) > len(e.data) {
		s.BadRequests++
		q.refuse(rdma.LocalLengthError, now)
		return
	}
	if props&roce.End != 0 {
		if q.recvCQ.full() {
			s.CQFull++
			q.notReady(now)
			return
		}
		copy(e.data[q.filled:], data)
		wc := rdma.WC{ID: e.id, Op: rdma.WCRecv, QPN: q.num, Bytes: q.filled + len(data)}
		if props&roce.HasImmDt != 0 {
			wc.Imm, wc.HasImm = (*roce.ImmDt)(p[roce.BTHLen:]).Value(), true
		}
		q.recvCQ.push(wc)
		q.inMessage = false
		e.data = nil
		q.rqHead++
		q.msn++
		s.Messages++
	} else {
		copy(e.data[q.filled:], data)
		q.filled += len(data)
		q.inMessage = true
	}
	q.expected = roce.PSNAdd(psn, 1)
	q.nakked = false
	q.unanswered++
	if h.AckReq() || q.resp == respSequence || q.resp == respRNR {
		q.owe(respAck, now+q.dev.ackDelay)
	}
}

// misplaced tells whether a SEND packet does not fit where it stands (IBTA vol. 1,
// §9.7.4.1): messages do not interleave, and every packet but the last is full.
func (q *queuePair) misplaced(props roce.Props, n, pad int) bool {
	if start := props&roce.Start != 0; start == q.inMessage {
		return true
	}
	if props&roce.End == 0 {
		return n != q.mtu || pad != 0
	}
	return n > q.mtu || n == 0 && props&roce.Start == 0
}

// unexpected takes a request with a PSN other than the expected one. Behind it: a
// duplicate, whose acknowledgement was lost. Ahead of it: something is missing,
// which one NAK reports. A second NAK follows only when the PSNs start over, for
// then the sender went back and the same packet was lost again.
func (q *queuePair) unexpected(psn uint32, now int64) {
	s := &q.dev.stats
	if roce.PSNDiff(psn, q.expected) < 0 {
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

// refuse answers a request that breaks the protocol, and ends the pair.
func (q *queuePair) refuse(recv rdma.Status, now int64) {
	q.fail(rdma.FlushError, recv)
	q.owe(respInvalid, now)
}
