package softroce

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// Lane is implemented by a Link that may be memory of its two ends: what it takes
// arrives, once and in order.
type Lane interface {
	// Place gives the n bytes of the next packet to p, to be written; nil if the link is
	// full, or frames of TxAlloc are out.
	Place(p *Path, n int) []byte
	// Publish sends what the last Place gave.
	Publish()
	// Lone is the packet that waits alone, and who sent it; nil if none does, or several,
	// or what waits is for Rx.
	Lone() (packet []byte, src netip.Addr)
	// Taken gives back what the last Lone gave: Rx is not to find it.
	Taken()
}

// laneNanos is how long a pair sends in the lane after the peer acknowledged something,
// and how long after a message in it the peer is asked whether it takes what is sent.
const laneNanos = int64(time.Second)

var _ rdma.LaneQP = (*queuePair)(nil)

// laneWord is the first 8 bytes of a BTH without pad.
func laneWord(op roce.Opcode, qpn uint32) uint64 {
	var h roce.BTH
	h.Put(op, 0, qpn, false, 0)
	return binary.LittleEndian.Uint64(h[:])
}

// lanePad covers the pad in a laneWord.
const (
	lanePad      = uint64(3) << lanePadShift
	lanePadShift = 12
)

// LaneFree implements rdma.LaneQP. Nothing may be under way the usual way, for messages
// stay in order; and the peer must have acknowledged something lately, for it drops what
// comes before it is connected.
func (q *queuePair) LaneFree(now int64) bool {
	return now < q.laneUntil && q.head == q.tail && q.una == q.high
}

// SendNow implements rdma.LaneQP.
func (q *queuePair) SendNow(data []byte, imm uint32, now int64) bool {
	d := q.dev
	if !q.LaneFree(now) || len(data) > q.mtu || d.txAlloc != 0 && !d.freeEmpty() {
		return false
	}
	d.now = now
	if q.ackJoins(now) { // in front: then the peer, answering, may use its lane
		if !q.ackNow() {
			return false
		}
	}
	start, word := roce.BTHLen, q.laneTx
	if imm != 0 {
		start, word = roce.BTHLen+roce.ImmDtLen, q.laneTxImm
	}
	end := start + len(data)
	pad := -len(data) & 3
	n := end + pad + roce.ICRCLen
	b := d.lane.Place(&q.path, n)
	if len(b) < n {
		return false
	}
	binary.LittleEndian.PutUint64(b, word|uint64(pad)<<lanePadShift)
	(*roce.BTH)(b).PutUnasked(q.next)
	if imm != 0 {
		(*roce.ImmDt)(b[roce.BTHLen:]).Put(imm)
	}
	copy(b[start:], data)
	copy(b[end:], noBytes[:pad])
	roce.PutICRC(b[end+pad:], 0)
	d.lane.Publish()
	q.next = roce.PSNAdd(q.next, 1)
	q.una, q.high, q.asked, q.postPSN = q.next, q.next, q.next, q.next
	d.stats.TxPackets++
	d.stats.TxBytes += uint64(n)
	d.stats.LaneSent++
	if q.timer == 0 {
		q.watchLane(now)
	}
	return true
}

// watchLane sees to it that a peer that stands still is found: nothing that it owes an
// acknowledgement may be under way.
func (q *queuePair) watchLane(now int64) {
	q.laneWatch, q.attempts = true, 0
	q.setTimer(now + laneNanos)
}

// checkLane is called when the timer of watchLane expires. It sends the last PSN once
// more, without data: a duplicate, which every responder acknowledges and drops.
func (q *queuePair) checkLane(now int64) {
	if q.attempts == 0 {
		q.progressAt = now
	}
	if q.givenUp(now) {
		q.dev.event(rdma.Event{Kind: rdma.EventQPFatal, QPN: q.num, Status: q.sendStatus})
		return
	}
	q.probed = roce.PSNAdd(q.una, roce.PSNMask)
	if f := q.dev.frame(); f != nil {
		(*roce.BTH)(f.Data).Put(roce.SendOnly, 0, q.peerQPN, true, q.probed)
		q.seal(f, roce.BTHLen)
	}
	q.setTimer(now + q.rto())
}

// staleAnswer takes an acknowledgement of what counts as acknowledged already.
func (q *queuePair) staleAnswer(syn roce.Syndrome, psn uint32, now int64) {
	switch {
	case !q.hasLane:
	case !syn.IsACK(): // what was sent in the lane cannot come again
		st := rdma.RetryExceeded
		if syn.IsRNR() {
			st = rdma.RNRRetryExceeded
		}
		q.fail(st, rdma.FlushError)
		q.dev.event(rdma.Event{Kind: rdma.EventQPFatal, QPN: q.num, Status: st})
	case !q.laneWatch || q.attempts == 0 || roce.PSNDiff(psn, q.probed) < 0:
	case roce.PSNAdd(psn, 1) == q.una:
		q.attempts = 0
		q.stopTimer()
	default: // it lives; but there was more
		q.watchLane(now)
	}
}

// ackNow sends the acknowledgement that is pending.
func (q *queuePair) ackNow() bool {
	f := Frame{Data: q.dev.lane.Place(&q.path, roce.BTHLen+roce.AETHLen+roce.ICRCLen)}
	if f.Data == nil {
		return false
	}
	q.sendResponse(&f, respAck)
	q.resp = respNone
	q.dev.lane.Publish()
	q.dev.stats.TxPackets++
	q.dev.stats.TxBytes += uint64(f.Len)
	return true
}

// Ask implements rdma.LaneQP.
func (q *queuePair) Ask() {
	switch {
	case q.state != rdma.QPReadyToSend || q.waitRNR || q.blocked:
	case q.cur != q.tail:
		q.sq[int(q.tail-1)&(len(q.sq)-1)].late = false
	case q.unasked() > 0:
		q.probe(q.dev.now)
	}
}

// SetTaker implements rdma.LaneQP.
func (q *queuePair) SetTaker(t rdma.Taker) { q.taker = t }

// openLane prepares a pair that just connected.
func (q *queuePair) openLane() {
	if !q.unsummed || q.dev.lane == nil {
		return
	}
	q.hasLane = true
	q.laneTx, q.laneTxImm = laneWord(roce.SendOnly, q.peerQPN), laneWord(roce.SendOnlyImm, q.peerQPN)
	q.laneRx, q.laneRxImm = laneWord(roce.SendOnly, q.num), laneWord(roce.SendOnlyImm, q.num)
}

// closeLane is for a pair that fails or closes.
func (q *queuePair) closeLane() {
	q.hasLane, q.laneUntil, q.taker = false, 0, nil
	q.laneRx, q.laneRxImm = 0, 0
}

// freeEmpty gives the frames back that wait to be filled; false if others wait for the
// link.
func (d *Device) freeEmpty() bool {
	if d.txHead != d.txFill {
		return false
	}
	d.link.TxFree(d.tx[d.txFill:d.txAlloc])
	d.txHead, d.txFill, d.txAlloc = 0, 0, 0
	return true
}

// Lone implements rdma.Loner.
func (d *Device) Lone(now int64) bool {
	if d.lane == nil || d.closed || now >= d.nextTimer || now >= d.laterAt || len(d.due) > 0 || d.active.first != nil || d.txHead != d.txFill {
		return false
	}
	p, src := d.lane.Lone()
	if len(p) < roce.MinPacket || len(p) > frameBytes {
		return false
	}
	d.now = now
	q, data, imm := d.laneMessage(p, src)
	if q == nil || !q.taker.Hand(data, imm) {
		return false
	}
	q.tookMessage((*roce.BTH)(p), now)
	d.lane.Taken()
	d.stats.RxPackets++
	d.stats.RxBytes += uint64(len(p))
	return true
}

// takeLane offers the packet p of src to the one who takes whole messages. Its
// reference is the rest of packet, which takes what it leaves. p is a MinPacket at least.
func (d *Device) takeLane(p []byte, src netip.Addr, now int64) bool {
	q, data, imm := d.laneMessage(p, src)
	if q == nil || !q.taker.Take(data, imm) {
		return false
	}
	q.tookMessage((*roce.BTH)(p), now)
	return true
}

// laneMessage is the message in packet p of src, if that is the next SEND of one packet
// to a pair with a lane, and nothing is unusual about it; else q is nil.
func (d *Device) laneMessage(p []byte, src netip.Addr) (q *queuePair, data []byte, imm uint32) {
	q = d.table[binary.BigEndian.Uint16(p[6:])&(qpnBlock-1)]
	if q == nil {
		return nil, nil, 0
	}
	start := roce.BTHLen
	switch binary.LittleEndian.Uint64(p) &^ lanePad {
	case q.laneRx:
	case q.laneRxImm:
		start += roce.ImmDtLen
		imm = (*roce.ImmDt)(p[roce.BTHLen:]).Value()
	default:
		return nil, nil, 0
	}
	h := (*roce.BTH)(p)
	end := len(p) - roce.ICRCLen - h.Pad()
	if q.taker == nil || h.PSN() != q.expected || q.inMessage || q.nakked || q.recvCQ.head != q.recvCQ.tail ||
		end < start || end-start > q.mtu || src != q.peerAddr {
		return nil, nil, 0
	}
	return q, p[start:end], imm
}

// tookMessage is what is left to do when the message of h was taken.
func (q *queuePair) tookMessage(h *roce.BTH, now int64) {
	q.expected = roce.PSNAdd(q.expected, 1)
	q.msn++
	q.dev.stats.Messages++
	if !h.Unasked() {
		q.unanswered++
		q.oweAck(now, h.AckReq())
	}
}
