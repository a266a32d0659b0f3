package softroce

import (
	"encoding/binary"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// readChunk is how many packets one READ request on the wire asks for at most. A
// longer READ is cut up, so that the window bounds what is on its way here, too.
// Chunks end where they would if nothing were lost: a responder knows again what it
// is asked for again.
const readChunk = minWindow

// chunk is how many packets there are from index to the end of its chunk.
func (e *sendWQE) chunk(index uint32) uint32 {
	return min(readChunk-index%readChunk, (e.end-e.psn)&roce.PSNMask-index)
}

// mayAsk tells whether the READ or atomic e may be asked for now.
func (q *queuePair) mayAsk(e *sendWQE, inFlight int32) bool {
	n := int32(e.chunk((q.next - e.psn) & roce.PSNMask))
	return q.rdOut < q.maxRdAtomic && (inFlight == 0 || inFlight+n <= q.window)
}

// ask writes the request for the answer at next into f: one of e's chunks, or the
// atomic e.
func (q *queuePair) ask(e *sendWQE, f *Frame, now int64) {
	r := &q.remotes[int(q.cur)&(len(q.sq)-1)]
	b := f.Data
	n, psns := roce.BTHLen, uint32(1)
	op := roce.ReadRequest
	if e.op == rdma.OpRead {
		index := (q.next - e.psn) & roce.PSNMask
		psns = e.chunk(index)
		off := int(index) << q.mtuShift
		(*roce.RETH)(b[n:]).Put(r.va+uint64(off), r.rkey, uint32(min(len(e.data)-off, int(psns)<<q.mtuShift)))
		n += roce.RETHLen
	} else {
		if op = roce.FetchAdd; e.op == rdma.OpCompareSwap {
			op = roce.CompareSwap
		}
		(*roce.AtomicETH)(b[n:]).Put(r.va, r.rkey, r.swapAdd, r.compare)
		n += roce.AtomicETHLen
	}
	(*roce.BTH)(b).Put(op, 0, q.peerQPN, true, q.next)
	q.seal(f, n)
	q.rdOut++
	q.sentPSNs(psns, true, now)
	if q.next == e.end {
		q.cur++
	}
}

// awaited is the first request whose answer did not come whole, and the PSN at which
// the answer goes on; nil if none was sent.
func (q *queuePair) awaited() (*sendWQE, uint32) {
	if int32(q.head-q.rd) > 0 {
		q.rd = q.head
	}
	for ; q.rd != q.tail; q.rd++ {
		e := &q.sq[int(q.rd)&(len(q.sq)-1)]
		if roce.PSNDiff(e.psn, q.high) >= 0 {
			break
		}
		if e.answered() && roce.PSNDiff(q.una, e.end) < 0 {
			if roce.PSNDiff(q.una, e.psn) > 0 {
				return e, q.una
			}
			return e, e.psn
		}
	}
	return nil, 0
}

// answer takes a READ response or atomic acknowledgement whose packet p was checked.
// It acknowledges everything before it.
func (q *queuePair) answer(p, data []byte, props roce.Props, now int64) {
	s := &q.dev.stats
	h := (*roce.BTH)(p)
	psn := h.PSN()
	if roce.PSNDiff(psn, q.una) < 0 {
		s.StaleAcks++
		return
	}
	e, at := q.awaited()
	if e == nil || roce.PSNDiff(psn, at) < 0 || roce.PSNDiff(psn, q.high) >= 0 {
		s.DropAck++
		return
	}
	if psn != at {
		q.missing(at, now)
		return
	}
	q.advance(at, now)
	if e.mr.gone() {
		q.fail(rdma.LocalProtError, rdma.FlushError)
		return
	}
	if !q.fits(e, h.Opcode(), props, p, (psn-e.psn)&roce.PSNMask, len(data)) {
		s.BadResponses++
		q.fail(rdma.BadResponse, rdma.FlushError)
		return
	}
	if e.op == rdma.OpRead {
		copy(e.data[int((psn-e.psn)&roce.PSNMask)<<q.mtuShift:], data)
		q.inRead = props&roce.End == 0
	} else {
		binary.NativeEndian.PutUint64(e.data, (*roce.AtomicAckETH)(p[roce.BTHLen+roce.AETHLen:]).Orig())
	}
	if props&roce.End != 0 && q.rdOut > 0 {
		q.rdOut--
	}
	q.advance(roce.PSNAdd(psn, 1), now)
}

// fits tells whether the response p with n bytes of data is what e needs at index
// (IBTA vol. 1, §9.7.5.1.7 and table 54: anything else is a bad response).
func (q *queuePair) fits(e *sendWQE, op roce.Opcode, props roce.Props, p []byte, index uint32, n int) bool {
	if props&roce.HasAETH != 0 && !(*roce.AETH)(p[roce.BTHLen:]).Syndrome().IsACK() {
		return false
	}
	if e.op != rdma.OpRead || op == roce.AtomicAcknowledge {
		return e.op != rdma.OpRead && op == roce.AtomicAcknowledge
	}
	if props&roce.Start == 0 && !q.inRead || (props&roce.End != 0) != (e.chunk(index) == 1) {
		return false
	}
	return n == min(q.mtu, len(e.data)-int(index)<<q.mtuShift)
}

// missing is called when what came shows that the answer at PSN at was lost: it is
// asked for again. Once: what was under way behind it shows the same.
func (q *queuePair) missing(at uint32, now int64) {
	q.advance(at, now)
	if q.wentBack {
		return
	}
	q.wentBack = true
	q.dev.stats.ImpliedNAKs++
	q.shrink(q.window / 2)
	q.goBack()
}
