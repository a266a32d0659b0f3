package softroce

import (
	"math"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

const (
	// minWindow is the least window after losses, packets. It is not below
	// ackEvery, so that a full window is acknowledged at once.
	minWindow = ackEvery

	// The retransmission timer: the smoothed round trip plus four deviations (RFC
	// 6298), at least rtoMin, or rtoLates times what the peer may let an acknowledgement
	// wait while none was asked for. Each expiry doubles it up to rtoBackoff. The
	// floor is above what a busy machine keeps a polling process off its CPU.
	rtoFirst   = int64(4 * time.Millisecond)
	rtoMin     = int64(2 * time.Millisecond)
	rtoLates   = 3
	rtoBackoff = int64(64 * time.Millisecond)

	minAttempts = 4 // before a peer counts as dead

	// wary is how many late requests ask for their acknowledgement after the timer had
	// to: packets get lost, or the peer (rdma_rxe, RNICs) acknowledges only what asks.
	wary = 1024
)

// transmit sends at most limit packets. more tells that the pair still has packets
// that may be sent now.
func (q *queuePair) transmit(now int64, limit int) (sent int, more bool) {
	// While completions wait for room nothing new is sent: what is acknowledged and
	// not reported must not grow with what the peer takes.
	if q.state != rdma.QPReadyToSend || q.waitRNR || q.blocked {
		return 0, false
	}
	for q.cur != q.tail {
		inFlight := roce.PSNDiff(q.next, q.una)
		if inFlight >= q.window {
			return sent, false
		}
		e := &q.sq[int(q.cur)&(len(q.sq)-1)]
		if e.mr.gone() {
			if q.cur == q.head { // what is before it shall complete first
				q.fail(rdma.LocalProtError, rdma.FlushError)
			}
			return sent, false
		}
		if e.answered() && !q.mayAsk(e, inFlight) {
			return sent, false
		}
		if sent == limit {
			return sent, true
		}
		f := q.dev.frame()
		if f == nil {
			if q.timer == 0 { // a link that refuses frames for good counts as a dead peer
				q.startTimer(now)
			}
			return sent, true
		}
		if e.answered() {
			q.ask(e, f, now)
		} else {
			q.emit(e, f, now, inFlight+1 >= q.window)
		}
		sent++
	}
	return sent, false
}

// ackJoins tells whether joinData has something to send.
func (q *queuePair) ackJoins(now int64) bool {
	if q.resp != respAck || !q.answers.empty() {
		return false
	}
	n, since := q.unanswered, now-q.answeredAt
	if n >= joinDense && !q.hasLane && roce.PSNDiff(q.msn, q.answeredMSN) == n { // messages of one packet each
		return n >= joinEvery || since >= joinDelays*q.dev.ackDelay
	}
	return n >= ackEvery || since >= q.dev.ackDelay
}

// joinData sends the acknowledgement that is pending behind data that was just
// written, unless another went shortly before: the two cost one system call and wake
// the peer once. An answer so acknowledges its request, but in dense traffic.
func (q *queuePair) joinData(now int64) {
	if !q.ackJoins(now) {
		return
	}
	if f := q.dev.frame(); f != nil {
		q.sendResponse(f, respAck)
		q.resp = respNone
	}
}

// Bits of a packet's position in its message, and the opcodes by position.
const (
	posFirst = 1 << iota
	posLast
	posImm
	posWrite
)

var ops = [16]roce.Opcode{
	roce.SendMiddle, roce.SendFirst, roce.SendLast, roce.SendOnly,
	roce.SendMiddle, roce.SendFirst, roce.SendLastImm, roce.SendOnlyImm,
	roce.WriteMiddle, roce.WriteFirst, roce.WriteLast, roce.WriteOnly,
	roce.WriteMiddle, roce.WriteFirst, roce.WriteLastImm, roce.WriteOnlyImm,
}

// opBits is what an operation adds to the position: posImm counts with the last packet.
var opBits = [...]int{rdma.OpSend: 0, rdma.OpSendImm: posImm, rdma.OpWrite: posWrite, rdma.OpWriteImm: posWrite | posImm}

// emit writes packet next of the SEND or WRITE e into f. An acknowledgement is
// asked for where the sender would otherwise wait for one: at the end of the window
// and in its middle, when a quarter of the send queue waits, and, unless it may come
// late, at the end of what is posted. ask asks in any case.
func (q *queuePair) emit(e *sendWQE, f *Frame, now int64, ask bool) {
	index := (q.next - e.psn) & roce.PSNMask
	data := e.data[int(index)<<q.mtuShift:]
	slot := int(q.cur) & (len(q.sq) - 1)
	pos := opBits[e.op]
	if index == 0 {
		pos |= posFirst
	}
	ask = ask || 2*(q.unasked()+1) >= q.window
	if len(data) <= q.mtu {
		pos |= posLast
		q.cur++
		q.requests++
		ask = ask || 4*min(q.requests, q.cur-q.head) >= q.sqDepth || q.cur == q.tail && q.asksAtEnd(e)
	} else {
		data = data[:q.mtu]
	}
	pad := -len(data) & 3
	b := f.Data
	(*roce.BTH)(b).Put(ops[pos], pad, q.peerQPN, ask, q.next)
	n := roce.BTHLen
	if pos&(posWrite|posFirst) == posWrite|posFirst {
		r := &q.remotes[slot]
		(*roce.RETH)(b[n:]).Put(r.va, r.rkey, uint32(len(e.data)))
		n += roce.RETHLen
	}
	if pos&(posImm|posLast) == posImm|posLast {
		(*roce.ImmDt)(b[n:]).Put(e.imm)
		n += roce.ImmDtLen
	}
	q.sealWith(f, n, data, pad)
	q.sentPSNs(1, ask, now)
}

// unasked is how many packets are in flight behind the last one that asked.
func (q *queuePair) unasked() int32 {
	return min(roce.PSNDiff(q.next, q.asked), roce.PSNDiff(q.next, q.una))
}

// asksAtEnd tells whether e, the last request posted, asks for its acknowledgement.
func (q *queuePair) asksAtEnd(e *sendWQE) bool {
	if !e.late {
		return true
	}
	if q.askTails > 0 {
		q.askTails--
		return true
	}
	return false
}

// seal finishes the packet of n bytes in f.
func (q *queuePair) seal(f *Frame, n int) {
	sum := uint32(0)
	if !q.unsummed {
		sum = q.txCRC.Sum(f.Data[:n])
	}
	roce.PutICRC(f.Data[n:], sum)
	f.Len = n + roce.ICRCLen
	f.Path = &q.path
}

// fuseMin is from where on a payload is copied and summed in one pass, bytes.
const fuseMin = 512

var noBytes [3]byte // a pad

// sealWith finishes the packet in f that has n bytes of headers with a copy of data.
func (q *queuePair) sealWith(f *Frame, n int, data []byte, pad int) {
	end := n + len(data)
	copy(f.Data[end:], noBytes[:pad])
	if len(data) < fuseMin || q.unsummed {
		copy(f.Data[n:], data)
		q.seal(f, end+pad)
		return
	}
	roce.PutICRC(f.Data[end+pad:], q.txCRC.SumCopy(f.Data[:n], f.Data[n:end], data, noBytes[:pad]))
	f.Len = end + pad + roce.ICRCLen
	f.Path = &q.path
}

// sentPSNs counts a packet that takes n PSNs from next on.
func (q *queuePair) sentPSNs(n uint32, asks bool, now int64) {
	if q.next == q.high {
		if asks && !q.timing {
			q.timing, q.rttPSN, q.rttAt = true, q.next, now
		}
		q.high = roce.PSNAdd(q.high, n)
	} else {
		q.dev.stats.Retransmitted++
	}
	q.next = roce.PSNAdd(q.next, n)
	if asks {
		late := roce.PSNDiff(q.asked, q.una) <= 0
		q.asked, q.requests = q.next, 0
		if late && q.timer != 0 { // it runs for what did not ask
			q.setTimer(min(q.timer, now+q.rto()))
		}
	}
	if q.timer == 0 || q.laneWatch {
		q.laneWatch, q.attempts = false, 0
		q.startTimer(now)
	}
}

// startTimer arms the retransmission timer for the first packet in flight.
func (q *queuePair) startTimer(now int64) {
	q.progressAt = now
	q.setTimer(now + q.rto())
}

func (q *queuePair) setTimer(at int64) {
	if q.timer == 0 {
		q.dev.armed++
	}
	q.timer = at
	q.dev.nextTimer = min(q.dev.nextTimer, at)
}

func (q *queuePair) stopTimer() {
	q.laneWatch = false
	if q.timer != 0 {
		q.timer = 0
		if q.dev.armed--; q.dev.armed == 0 {
			q.dev.nextTimer = math.MaxInt64
		}
	}
}

func (q *queuePair) rto() int64 {
	t := rtoFirst
	if q.srtt != 0 {
		t = max(q.srtt+4*q.rttvar, rtoMin)
	}
	if roce.PSNDiff(q.asked, q.una) <= 0 {
		t = max(t, rtoLates*q.lateAck())
	}
	return max(t, min(t<<q.backoff, rtoBackoff))
}

// acknowledge takes an ACK or NAK whose packet was checked.
func (q *queuePair) acknowledge(a *roce.AETH, psn uint32, now int64) {
	s := &q.dev.stats
	syn := a.Syndrome()
	if roce.PSNDiff(psn, q.una) < 0 {
		s.StaleAcks++
		q.staleAnswer(syn, psn, now)
		return
	}
	if roce.PSNDiff(psn, q.high) >= 0 {
		s.DropAck++
		return
	}
	// What to acknowledges: everything before it, but never an answer that did not
	// come. lost tells that one must have been lost on its way.
	to := psn
	if syn.IsACK() {
		to = roce.PSNAdd(psn, 1)
	}
	lost := false
	if q.reads > 0 {
		if e, at := q.awaited(); e != nil && roce.PSNDiff(to, at) > 0 {
			to, lost = at, true
		}
	}
	switch {
	case syn.IsACK():
		s.AcksReceived++
		if lost {
			q.missing(to, now)
			return
		}
		q.advance(to, now)
	case syn.IsRNR():
		s.RNRNAKsReceived++
		q.advance(to, now)
		q.sawRNR = true
		q.rnrs++
		if q.givenUp(now) {
			return
		}
		q.goBack()
		q.waitRNR = true
		q.setTimer(now + int64(syn.RNRTime()))
	case syn == roce.NAKSequence:
		s.SeqNAKsReceived++
		q.advance(to, now)
		q.shrink(q.window / 2)
		q.goBack()
	case syn >= roce.NAKInvalidRequest && syn <= roce.NAKInvalidRD:
		s.ErrNAKsReceived++
		q.advance(to, now)
		q.fail(nakStatus[syn-roce.NAKInvalidRequest], rdma.FlushError)
	default:
		s.DropAck++
	}
}

// nakStatus is what the NAK codes from NAKInvalidRequest on mean for the request.
var nakStatus = [...]rdma.Status{rdma.RemoteInvalidReq, rdma.RemoteAccessError, rdma.RemoteOpError, rdma.RemoteInvalidRD}

// advance takes everything before psn as acknowledged; psn is within una … high.
func (q *queuePair) advance(psn uint32, now int64) {
	moved := roce.PSNDiff(psn, q.una)
	if moved == 0 {
		return
	}
	q.una = psn
	q.backoff, q.attempts, q.rnrs = 0, 0, 0
	q.wentBack = false
	q.sawRNR = false
	q.waitRNR = false
	q.progressAt = now
	if q.hasLane {
		q.laneUntil = now + laneNanos
	}
	if q.timing && roce.PSNDiff(psn, q.rttPSN) > 0 {
		q.timing = false
		q.sample(now - q.rttAt)
	}
	if limit := int32(q.dev.opts.Window); q.window < limit {
		if q.windowCredit += moved; q.windowCredit >= q.window {
			q.windowCredit = 0
			q.window++
		}
	}
	if roce.PSNDiff(q.next, psn) < 0 { // what was to be sent again arrived after all
		q.seek(psn)
	}
	if q.una == q.high {
		q.stopTimer()
	} else {
		q.setTimer(now + q.rto())
	}
	q.drain()
	if q.cur != q.tail {
		q.dev.active.add(q)
	}
}

// sample feeds one round trip into the retransmission timer (RFC 6298, §2).
func (q *queuePair) sample(rtt int64) {
	rtt = max(rtt, 1)
	if q.srtt == 0 {
		q.srtt, q.rttvar = rtt, rtt/2
		return
	}
	diff := q.srtt - rtt
	if diff < 0 {
		diff = -diff
	}
	q.rttvar += (diff - q.rttvar) / 4
	q.srtt += (rtt - q.srtt) / 8
}

// shrink makes the window smaller: a full buffer is the likeliest cause of a loss. It
// grows again by one packet per window acknowledged.
func (q *queuePair) shrink(window int32) {
	q.window = max(window, minWindow)
	q.windowCredit = 0
}

// goBack sends again from the first packet that is not acknowledged.
func (q *queuePair) goBack() {
	q.timing = false // a round trip of a packet sent twice means nothing (Karn)
	q.askTails = wary
	q.seek(q.una)
	if q.cur != q.tail {
		q.dev.active.add(q)
	}
}

// seek makes psn, within una … high, the next packet to send.
func (q *queuePair) seek(psn uint32) {
	q.next = psn
	q.asked, q.requests, q.rdOut = psn, 0, 0 // what was asked for is asked for again
	for q.cur = q.head; q.cur != q.tail; q.cur++ {
		if roce.PSNDiff(psn, q.sq[int(q.cur)&(len(q.sq)-1)].end) < 0 {
			return
		}
	}
}

// expired is called when the timer's time has come.
func (q *queuePair) expired(now int64) {
	if q.laneWatch {
		q.checkLane(now)
		return
	}
	if q.waitRNR {
		q.waitRNR = false
		q.setTimer(now + q.rto())
		q.goBack()
		return
	}
	q.dev.stats.Timeouts++
	if q.givenUp(now) {
		return
	}
	if q.rto() < rtoBackoff {
		q.backoff++
	}
	if q.attempts > 1 || q.next != q.high || q.reads > 0 {
		q.shrink(minWindow)
		q.goBack()
	} else {
		q.probe(now)
	}
	q.setTimer(now + q.rto())
}

// probe sends the last packet again, and asks for an acknowledgement. Often nothing
// was lost, or just that: the peer was off its CPU, or does not acknowledge what does
// not ask. Otherwise its NAK says where to go on.
func (q *queuePair) probe(now int64) {
	f := q.dev.frame()
	if f == nil {
		return
	}
	q.timing = false
	q.askTails = wary
	q.seek(roce.PSNAdd(q.high, roce.PSNMask))
	q.emit(&q.sq[int(q.cur)&(len(q.sq)-1)], f, now, true)
}

// givenUp counts an attempt without progress and fails the pair when the peer's
// time is up. Several attempts must have been made as well: after this process was
// stopped for a while, the clock alone says nothing about the peer.
func (q *queuePair) givenUp(now int64) bool {
	q.attempts = min(q.attempts+1, minAttempts)
	if limit := q.dev.opts.RNRRetries; (limit == 0 || q.rnrs <= limit) &&
		(q.attempts < minAttempts || now-q.progressAt < q.dev.peerDelay) {
		return false
	}
	st := rdma.RetryExceeded
	if q.sawRNR {
		st = rdma.RNRRetryExceeded
	}
	q.fail(st, rdma.FlushError)
	return true
}
