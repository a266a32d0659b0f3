package softroce

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// sendWQE is a posted send request. What only one-sided operations have lies in
// queuePair.remotes.
type sendWQE struct {
	id       uint64
	data     []byte
	mr       *region // of data; nil if inline or empty
	psn      uint32  // of its first packet
	end      uint32  // the PSN after its last packet, for READ after the last response
	imm      uint32
	op       rdma.Opcode
	signaled bool
	late     bool
}

// answered tells whether the request ends with a response of its own.
func (e *sendWQE) answered() bool { return e.op >= rdma.OpRead }

// remoteArgs is what a one-sided operation does to the peer's memory.
type remoteArgs struct {
	va               uint64
	compare, swapAdd uint64
	rkey             uint32
}

// recvWQE is a posted receive.
type recvWQE struct {
	id   uint64
	data []byte
	mr   *region // of data; nil if empty
}

// queuePair is a reliable-connected queue pair: a requester (requester.go,
// answers.go), which sends requests and awaits their acknowledgement, and a
// responder (responder.go, onesided.go).
type queuePair struct {
	dev        *Device
	pd         *domain
	num        uint32
	startPSN   uint32
	state      rdma.QPState
	closed     bool
	active     bool // in dev.active
	inDue      bool // in dev.due
	inLater    bool // in dev.later
	blocked    bool // a completion waits for room; dev.blocked is set too
	nextActive *queuePair

	// the connection
	peerQPN  uint32
	mtu      int
	mtuShift uint8
	unsummed bool // both ends agreed to leave the ICRC out
	hasLane  bool // see lane.go, as for what follows
	taker    rdma.Taker
	// The first bytes of lane packets to the peer and from it; until when to send some.
	laneTx, laneTxImm, laneRx, laneRxImm uint64
	laneUntil                            int64
	laneWatch                            bool   // the timer is watchLane's
	probed                               uint32 // the PSN that checkLane sent last
	rxPort                               uint16 // the peer's source port, which rxCRC covers
	txCRC                                roce.ICRC
	rxCRC                                roce.ICRC
	peerAddr                             netip.Addr
	path                                 Path

	// Requester. The ring sq holds the requests head … tail-1 (free running); cur is
	// the one to send from next. The PSNs una … high-1 were sent and are not
	// acknowledged; next, within una … high, is the one to send next.
	sq              []sendWQE
	sendCQ          *completionQueue
	sqDepth         uint32
	head, cur, tail uint32
	una, next, high uint32
	postPSN         uint32 // PSN of the first packet of the next request to be posted
	window          int32  // packets that may be in flight now
	windowCredit    int32  // packets acknowledged towards one more
	asked           uint32 // the PSN behind the last packet that asked for an acknowledgement
	requests        uint32 // requests sent whole since then
	askTails        uint16 // late requests that will ask at their end all the same
	backoff         uint8  // expiries without progress
	attempts        uint8  // expiries and RNR NAKs without progress, up to minAttempts
	rnrs            int    // RNR NAKs without progress
	waitRNR         bool   // the peer has no receive posted: the timer says when to try again
	sawRNR          bool   // the peer's last word was RNR
	timing          bool   // rttPSN is being timed
	rttPSN          uint32
	rttAt           int64
	srtt, rttvar    int64
	timer           int64 // when it expires; 0 while it does not run
	progressAt      int64 // when una last moved, or the first packet in flight was sent
	inline          []byte

	// Requester, READs and atomics. They are answered in order, each at its PSNs.
	remotes     []remoteArgs // by slot of sq; made with the first one-sided operation
	reads       int          // posted and not retired
	rd          uint32       // none before it awaits an answer
	rdOut       int          // READ requests and atomics in flight
	maxRdAtomic int          // rdOut at most
	inRead      bool         // a READ response has begun and not ended
	wentBack    bool         // for a lost answer, and una did not move since

	// Responder. The ring rq holds the receives rqHead … rqTail-1; the first one is
	// being filled while a SEND is under way. A pair with an srq holds the one that it
	// took from there instead.
	rq             []recvWQE
	srq            *sharedQueue
	held           recvWQE
	holds          bool // held is valid
	recvCQ         *completionQueue
	rqDepth        uint32
	rqHead, rqTail uint32
	access         rdma.Access
	expected       uint32 // PSN
	msn            uint32
	filled         int // bytes of the message received so far
	ahead          uint32
	nakked         bool // one NAK was sent for expected; ahead is the last PSN that came instead
	inMessage      bool
	writing        bool   // the message under way is a WRITE: target of writeMR is being filled
	target         []byte // of a WRITE
	writeMR        *region
	lastMR         *region // of the last remote key
	resp           response
	unanswered     int32  // packets received since the last response
	askedBack      bool   // the peer asked for the acknowledgement that is pending
	answeredAt     int64  // when the last response was sent
	answeredMSN    uint32 // and the MSN in it
	ackAt          int64  // when it goes by itself
	told           bool   // EventCommEstablished was raised
	done           []executed
	doneCount      uint32 // READs and atomics executed; done holds the last ones
	answers        answerQueue

	// What the first request of either queue completes with once the pair is in
	// error; the others are flushed.
	sendStatus, recvStatus rdma.Status
}

var _ rdma.QP = (*queuePair)(nil)

func newQP(p *domain, num, psn uint32, cfg rdma.QPConfig, scq, rcq *completionQueue) *queuePair {
	q := &queuePair{
		dev: p.dev, pd: p, num: num, startPSN: psn, sendCQ: scq, recvCQ: rcq,
		sq: make([]sendWQE, ringSize(cfg.SendWRs)), sqDepth: uint32(cfg.SendWRs), access: cfg.Access, maxRdAtomic: cfg.MaxRdAtomic,
		una: psn, next: psn, high: psn, asked: psn, postPSN: psn,
		sendStatus: rdma.FlushError, recvStatus: rdma.FlushError,
	}
	if cfg.SRQ == nil {
		q.rq, q.rqDepth = make([]recvWQE, ringSize(cfg.RecvWRs)), uint32(cfg.RecvWRs)
	}
	if n := cfg.MaxDestRdAtomic; n > 0 {
		q.done = make([]executed, n)
		q.answers.init(n)
	}
	return q
}

// Num implements rdma.QP.
func (q *queuePair) Num() uint32 { return q.num }

// StartPSN implements rdma.QP.
func (q *queuePair) StartPSN() uint32 { return q.startPSN }

// State implements rdma.QP.
func (q *queuePair) State() rdma.QPState { return q.state }

// Connect implements rdma.QP.
func (q *queuePair) Connect(r rdma.Remote) error {
	switch {
	case q.closed:
		return ErrClosed
	case q.state != rdma.QPInit:
		return rdma.ErrQPState
	case !roce.ValidPathMTU(r.PathMTU) || r.PathMTU > q.dev.pathMTU:
		return fmt.Errorf("softroce: path MTU of %d bytes; %s carries 256, 512, … %d", r.PathMTU, q.dev.attr.Name, q.dev.pathMTU)
	case r.QPN < 2 || r.QPN >= roce.MaxQPN || r.StartPSN > roce.PSNMask:
		return fmt.Errorf("softroce: remote queue pair %#x with start PSN %#x: both have 24 bits, and the numbers 0, 1 and 0xffffff are reserved", r.QPN, r.StartPSN)
	case r.Unsummed && !q.dev.opts.Unsummed:
		return fmt.Errorf("softroce: a remote without ICRC; %s checks it", q.dev.attr.Name)
	case r.UDPPort == 0:
		return fmt.Errorf("softroce: the remote device at %v has no UDP port", r.Addr)
	}
	local := q.dev.attr.Local
	addr := r.Addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
		return fmt.Errorf("softroce: remote address %v is not that of a device", r.Addr)
	}
	if addr.Is4() != local.Addr().Unmap().Is4() {
		return fmt.Errorf("softroce: remote address %v; %s is on %v and reaches only its own family", r.Addr, q.dev.attr.Name, local.Addr())
	}
	dst := netip.AddrPortFrom(addr, r.UDPPort)
	path, err := q.dev.link.Path(dst)
	if err != nil {
		return fmt.Errorf("softroce: path to %v: %w", dst, err)
	}
	q.path, q.unsummed = path, r.Unsummed
	q.peerAddr, q.peerQPN = addr, r.QPN
	q.mtu, q.mtuShift = r.PathMTU, uint8(bits.TrailingZeros(uint(r.PathMTU)))
	q.txCRC = roce.NewICRC(path.Pseudo)
	q.setRxPort(r.UDPPort)
	q.expected = r.StartPSN
	q.window = int32(q.dev.opts.Window)
	q.maxRdAtomic = min(q.maxRdAtomic, max(0, r.MaxDestRdAtomic))
	q.state = rdma.QPReadyToSend
	q.openLane()
	return nil
}

// setRxPort computes what the ICRC of received packets covers before the BTH. The
// source port is the peer's choice: a queue pair of an RNIC keeps one, and not
// that to which it wants to be sent.
func (q *queuePair) setRxPort(port uint16) {
	var b [56]byte
	q.rxPort = port
	q.rxCRC = roce.NewICRC(roce.AppendPseudo(b[:0], netip.AddrPortFrom(q.peerAddr, port), q.dev.attr.Local))
}

// PostSend implements rdma.QP. Besides the errors of the interface it refuses data
// outside registered memory and messages beyond MaxMessage.
func (q *queuePair) PostSend(wrs []rdma.SendWR) (n int, err error) {
	if q.state != rdma.QPReadyToSend || q.closed {
		return 0, rdma.ErrQPState
	}
	for n = range wrs {
		w := &wrs[n]
		if q.tail-q.head == q.sqDepth {
			err = rdma.ErrQueueFull
			break
		}
		var mr *region
		if mr, err = q.checkSend(w); err != nil {
			break
		}
		data := w.Data
		slot := int(q.tail) & (len(q.sq) - 1)
		if w.Inline {
			data, mr = q.copyInline(slot, data), nil
		}
		if w.Op >= rdma.OpWrite {
			q.postRemote(slot, w)
		}
		packets := max(1, uint32(len(data)+q.mtu-1)>>q.mtuShift)
		end := roce.PSNAdd(q.postPSN, packets)
		q.sq[slot] = sendWQE{
			id: w.ID, data: data, mr: mr, psn: q.postPSN, end: end, imm: w.Imm, op: w.Op, signaled: w.Signaled, late: w.Late,
		}
		q.postPSN = end
		q.tail++
	}
	if err == nil {
		n = len(wrs)
	}
	if q.cur != q.tail {
		q.dev.active.add(q)
	}
	return n, err
}

// postRemote keeps what w does to the peer's memory. The room for all slots is
// made with the first: many queue pairs never have one.
func (q *queuePair) postRemote(slot int, w *rdma.SendWR) {
	if q.remotes == nil {
		q.remotes = make([]remoteArgs, len(q.sq))
	}
	q.remotes[slot] = remoteArgs{va: w.RemoteAddr, rkey: w.RKey, compare: w.Compare, swapAdd: w.SwapAdd}
	if w.Op >= rdma.OpRead {
		q.reads++
	}
}

// checkSend gives the registered memory of the request's data.
func (q *queuePair) checkSend(w *rdma.SendWR) (*region, error) {
	if w.Op >= rdma.OpRead {
		if err := q.checkAnswered(w); err != nil {
			return nil, err
		}
	}
	switch {
	case w.Inline:
		if len(w.Data) > MaxInline {
			return nil, fmt.Errorf("softroce: %d bytes inline; at most %d are", len(w.Data), MaxInline)
		}
		return nil, nil
	case len(w.Data) > MaxMessage:
		return nil, fmt.Errorf("softroce: message of %d bytes; the largest is %d", len(w.Data), MaxMessage)
	case len(w.Data) == 0:
		return nil, nil
	}
	r := q.pd.region(w.Data)
	if r == nil {
		return nil, fmt.Errorf("softroce: the %d bytes of the %v are not in memory registered in the queue pair's domain; register their arena, or send them inline", len(w.Data), w.Op)
	}
	return r, nil
}

// checkAnswered checks what READ and atomics need beyond the others.
func (q *queuePair) checkAnswered(w *rdma.SendWR) error {
	switch {
	case w.Op > rdma.OpFetchAdd:
		return &rdma.NotSupportedError{Device: q.dev.attr.Name, Feature: w.Op.String()}
	case q.maxRdAtomic == 0:
		return fmt.Errorf("softroce: %v on a queue pair that has none under way: give it MaxRdAtomic, and the remote's MaxDestRdAtomic", w.Op)
	case w.Inline:
		return fmt.Errorf("softroce: %v inline: its data comes from the peer", w.Op)
	case w.Op == rdma.OpRead:
		return nil
	case len(w.Data) != 8:
		return fmt.Errorf("softroce: %v with %d bytes for the old value, which has 8", w.Op, len(w.Data))
	case w.RemoteAddr%8 != 0:
		return fmt.Errorf("softroce: %v at remote address %#x, which is no multiple of 8", w.Op, w.RemoteAddr)
	}
	return nil
}

// copyInline keeps data in the slot's own place. The room for all slots is made
// with the first inline send: many queue pairs never have one.
func (q *queuePair) copyInline(slot int, data []byte) []byte {
	if q.inline == nil {
		q.inline = make([]byte, len(q.sq)*MaxInline)
	}
	b := q.inline[slot*MaxInline:][:len(data):MaxInline]
	copy(b, data)
	return b
}

// PostRecv implements rdma.QP. Besides the errors of the interface it refuses
// buffers outside registered memory.
func (q *queuePair) PostRecv(wrs []rdma.RecvWR) (n int, err error) {
	if q.state == rdma.QPError || q.closed {
		return 0, rdma.ErrQPState
	}
	if q.srq != nil {
		return 0, errors.New("softroce: the queue pair takes its receives from a shared receive queue: post them there")
	}
	for n = range wrs {
		if q.rqTail-q.rqHead == q.rqDepth {
			return n, rdma.ErrQueueFull
		}
		e := &q.rq[int(q.rqTail)&(len(q.rq)-1)]
		if err := q.pd.receive(&wrs[n], e); err != nil {
			return n, err
		}
		q.rqTail++
	}
	return len(wrs), nil
}

// receive is the receive for the next or present message; nil if none is posted.
func (q *queuePair) receive() *recvWQE {
	if q.srq == nil {
		if q.rqHead == q.rqTail {
			return nil
		}
		return &q.rq[int(q.rqHead)&(len(q.rq)-1)]
	}
	if !q.holds {
		if q.holds = q.srq.take(&q.held); !q.holds {
			return nil
		}
	}
	return &q.held
}

// retire takes the receive that completed out of its queue.
func (q *queuePair) retire(e *recvWQE) {
	e.data, e.mr = nil, nil
	if q.srq == nil {
		q.rqHead++
	} else {
		q.holds = false
		q.srq.held--
	}
}

// fail takes the pair to the error state: the first request of either queue
// completes with the status given, all others are flushed.
func (q *queuePair) fail(send, recv rdma.Status) {
	q.state = rdma.QPError
	q.dev.failed = true
	q.sendStatus, q.recvStatus = send, recv
	q.waitRNR = false
	q.closeLane()
	q.target, q.writeMR, q.lastMR = nil, nil, nil
	q.stopTimer()
	q.drain()
	if q.srq != nil {
		q.dev.event(rdma.Event{Kind: rdma.EventLastWQE, QPN: q.num})
	}
}

// wcOps is what the operations complete as.
var wcOps = [...]rdma.WCOpcode{
	rdma.OpSend: rdma.WCSend, rdma.OpSendImm: rdma.WCSend, rdma.OpWrite: rdma.WCWrite, rdma.OpWriteImm: rdma.WCWrite,
	rdma.OpRead: rdma.WCRead, rdma.OpCompareSwap: rdma.WCCompareSwap, rdma.OpFetchAdd: rdma.WCFetchAdd,
}

// drain retires the sends that are acknowledged, in the error state every request,
// as far as the completion queues have room. It returns how many completions it
// made.
func (q *queuePair) drain() (made int) {
	q.blocked = false
	failed := q.state == rdma.QPError
	for q.head != q.tail {
		e := &q.sq[int(q.head)&(len(q.sq)-1)]
		done := roce.PSNDiff(q.una, e.end) >= 0
		if !done && !failed {
			break
		}
		if !done || e.signaled {
			if q.sendCQ.full() {
				q.block()
				return made
			}
			st := rdma.Success
			if !done {
				st, q.sendStatus = q.sendStatus, rdma.FlushError
			}
			q.sendCQ.push(rdma.WC{ID: e.id, Op: wcOps[e.op], Status: st, QPN: q.num, Bytes: len(e.data)})
			made++
		}
		if e.answered() {
			q.reads--
		}
		e.data, e.mr = nil, nil
		q.head++
	}
	for failed && (q.rqHead != q.rqTail || q.holds) {
		if q.recvCQ.full() {
			q.block()
			return made
		}
		e := q.receive()
		q.recvCQ.push(rdma.WC{ID: e.id, Op: rdma.WCRecv, Status: q.recvStatus, QPN: q.num})
		q.recvStatus = rdma.FlushError
		made++
		q.retire(e)
	}
	return made
}

func (q *queuePair) block() { q.blocked, q.dev.blocked = true, true }

// Close implements rdma.QP. An acknowledgement that is due goes out first, so that
// the peer does not wait for it in vain.
func (q *queuePair) Close() error {
	if q.closed {
		return nil
	}
	d := q.dev
	q.respond(burst)
	d.sendFrames()
	if c, ok := d.link.(PathCloser); ok && q.path.Link != nil {
		c.ClosePath(&q.path)
	}
	q.closed = true
	q.state = rdma.QPError
	q.stopTimer()
	q.closeLane()
	q.blocked = false
	q.resp = respNone // dev.due and dev.later drop it at their next turn, as dev.active does
	q.answers, q.done, q.remotes = answerQueue{}, nil, nil
	q.target, q.writeMR, q.lastMR = nil, nil, nil
	q.head, q.cur, q.tail = 0, 0, 0
	q.rqHead, q.rqTail = 0, 0
	q.sq, q.rq, q.inline = nil, nil, nil
	q.sendCQ.qps--
	q.recvCQ.qps--
	q.pd.uses--
	if q.srq != nil {
		if q.holds {
			q.srq.giveBack(&q.held)
		}
		q.srq.qps--
	}
	q.held, q.holds = recvWQE{}, false
	d.events = slices.DeleteFunc(d.events, func(e rdma.Event) bool { return e.SRQ == nil && e.QPN == q.num })
	d.table[q.num&(qpnBlock-1)] = nil
	if len(d.retired) == retiredQPNs {
		d.retired = append(d.retired[:0], d.retired[1:]...)
	}
	d.retired = append(d.retired, q.num&(qpnBlock-1))
	for i, l := range d.live {
		if l == q {
			last := len(d.live) - 1
			d.live[i], d.live[last] = d.live[last], nil
			d.live = d.live[:last]
			break
		}
	}
	return nil
}
