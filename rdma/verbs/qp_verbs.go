//go:build verbs && cgo

package verbs

// #include "shim.h"
import "C"

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

// Timers of a queue pair.
const (
	// ackTimeout 15 is 4.096 µs × 2^15 = 134 ms until unacknowledged packets are
	// sent again (IBTA vol. 1, §9.7.6.1.3); adapters may take up to four times as
	// long. With retryCount a dead peer is noticed within 7 × 134 ms = 0.94 s, at most
	// 3.8 s.
	ackTimeout = 15
	// retryCount: not 7, which rdma_rxe takes for "for ever".
	retryCount = 6
	// minRNRTimer 24 asks a sender that found no receive posted to wait 40.96 ms
	// (IBTA vol. 1, table 45), and rnrRetry lets it try seven times: 0.29 s. The message
	// protocol's credits keep a receive posted, so that this is a misuse's time.
	minRNRTimer = 24
	rnrRetry    = 6
)

// workQueue restores the IDs of completed requests and counts those that are out.
type workQueue struct {
	ids        []uint64 // ring, length a power of two
	depth      uint32
	head, tail uint32 // free running
}

func newWorkQueue(depth int) workQueue {
	return workQueue{ids: make([]uint64, 1<<bits.Len(uint(depth-1))), depth: uint32(depth)}
}

func (w *workQueue) room() int { return int(w.depth - (w.tail - w.head)) }

// done gives the ID of the request at pos, which completes it and all before it.
func (w *workQueue) done(pos uint32) (uint64, bool) {
	if pos-w.head >= w.tail-w.head {
		return 0, false
	}
	w.head = pos + 1
	return w.ids[int(pos)&(len(w.ids)-1)], true
}

// set remembers the ID of the request i places after the last posted one, and
// gives its position.
func (w *workQueue) set(i int, id uint64) uint64 {
	pos := w.tail + uint32(i)
	w.ids[int(pos)&(len(w.ids)-1)] = id
	return uint64(pos)
}

// queuePair is an RC queue pair.
type queuePair struct {
	dev      *device
	c        *C.struct_mv_qp
	pd       *domain
	num      uint32
	startPSN uint32
	state    rdma.QPState
	slot     uint16
	tag      uint64 // slot and generation, as in a work request's ID
	sendCQ   *completionQueue
	recvCQ   *completionQueue
	sq, rq   workQueue
	srq      *sharedQueue // instead of rq; may be nil
	last     bool         // nothing more is taken from srq, which was reported

	maxRdAtomic, maxDestRdAtomic int
}

// listLen is how many requests one crossing posts.
const listLen = C.MV_LIST

var _ rdma.QP = (*queuePair)(nil)

// CreateQP implements rdma.PD.
func (p *domain) CreateQP(cfg rdma.QPConfig) (rdma.QP, error) {
	d := p.dev
	if p.c == nil {
		return nil, ErrClosed
	}
	if err := p.checkQPConfig(&cfg); err != nil {
		return nil, err
	}
	q := &queuePair{
		dev: d, pd: p, startPSN: randomPSN(), sq: newWorkQueue(cfg.SendWRs), maxRdAtomic: cfg.MaxRdAtomic, maxDestRdAtomic: cfg.MaxDestRdAtomic,
		sendCQ: cfg.SendCQ.(*completionQueue), recvCQ: cfg.RecvCQ.(*completionQueue),
	}
	c := C.struct_mv_qp_config{
		pd: p.c, send_cq: q.sendCQ.c, recv_cq: q.recvCQ.c, sends: C.uint32_t(cfg.SendWRs), recvs: C.uint32_t(cfg.RecvWRs),
		max_inline: C.uint32_t(d.attr.MaxInline), access: accessFlags(cfg.Access),
	}
	if cfg.SRQ != nil {
		q.srq = cfg.SRQ.(*sharedQueue)
		c.srq = q.srq.c
	} else {
		q.rq = newWorkQueue(cfg.RecvWRs)
	}
	var err error
	if q.slot, q.tag, err = d.takeSlot(user{qp: q}); err != nil {
		return nil, err
	}
	if err = q.reserve(); err != nil {
		d.freeSlot(q.slot)
		return nil, err
	}
	var step *C.char
	if rc := C.mv_qp_create(d.c, &c, &q.c, &step); rc != 0 {
		q.forget()
		return nil, d.qpError(C.GoString(step), unix.Errno(rc))
	}
	q.num = uint32(q.c.num)
	d.byNum[q.num] = q
	return q, nil
}

func (p *domain) checkQPConfig(cfg *rdma.QPConfig) error {
	d := p.dev
	scq, ok1 := cfg.SendCQ.(*completionQueue)
	rcq, ok2 := cfg.RecvCQ.(*completionQueue)
	srq, _ := cfg.SRQ.(*sharedQueue)
	switch {
	case !ok1 || !ok2 || scq.dev != d || rcq.dev != d || scq.c == nil || rcq.c == nil:
		return errors.New("rdma/verbs: a queue pair needs open completion queues of its own device")
	case cfg.SRQ != nil && (srq == nil || srq.pd != p || srq.c == nil):
		return errors.New("rdma/verbs: a queue pair needs an open shared receive queue of its own domain")
	case srq != nil && cfg.RecvWRs != 0:
		return fmt.Errorf("rdma/verbs: receive queue of %d requests beside a shared one; give 0", cfg.RecvWRs)
	case srq == nil && (cfg.RecvWRs < 1 || cfg.RecvWRs > d.attr.MaxQPWR):
		return fmt.Errorf("rdma/verbs: receive queue of %d requests; %s has 1 to %d", cfg.RecvWRs, d.attr.Name, d.attr.MaxQPWR)
	case cfg.SendWRs < 1 || cfg.SendWRs > d.attr.MaxQPWR:
		return fmt.Errorf("rdma/verbs: send queue of %d requests; %s has 1 to %d", cfg.SendWRs, d.attr.Name, d.attr.MaxQPWR)
	case cfg.Access&rdma.RemoteAtomic != 0 && !d.attr.Caps.Has(rdma.CapAtomic):
		return &rdma.NotSupportedError{Device: d.attr.Name, Feature: "atomics of peers"}
	case cfg.MaxRdAtomic > 0 && !d.attr.Caps.Has(rdma.CapRead), cfg.MaxDestRdAtomic > 0 && !d.attr.Caps.Has(rdma.CapRead):
		return &rdma.NotSupportedError{Device: d.attr.Name, Feature: "READ"}
	case cfg.MaxRdAtomic < 0 || cfg.MaxRdAtomic > d.attr.MaxRdAtomic:
		return fmt.Errorf("rdma/verbs: %d READs and atomics under way at once; %s has 0 to %d", cfg.MaxRdAtomic, d.attr.Name, d.attr.MaxRdAtomic)
	case cfg.MaxDestRdAtomic < 0 || cfg.MaxDestRdAtomic > d.attr.MaxDestRdAtomic:
		return fmt.Errorf("rdma/verbs: %d READs and atomics accepted at once; %s has 0 to %d", cfg.MaxDestRdAtomic, d.attr.Name, d.attr.MaxDestRdAtomic)
	}
	return nil
}

// reserve takes the entries of the completion queues, and the uses of what the
// pair needs.
func (q *queuePair) reserve() error {
	if err := q.sendCQ.reserve(int(q.sq.depth), false); err != nil {
		return err
	}
	var err error
	if q.srq != nil {
		err = q.recvCQ.reserveShared(q.srq)
	} else {
		err = q.recvCQ.reserve(int(q.rq.depth), false)
	}
	if err != nil {
		q.sendCQ.unreserve(int(q.sq.depth))
		return err
	}
	if q.srq != nil {
		q.srq.qps++
	}
	q.pd.uses++
	return nil
}

// forget gives back what reserve took, and the slot.
func (q *queuePair) forget() {
	q.dev.freeSlot(q.slot)
	q.sendCQ.unreserve(int(q.sq.depth))
	if q.srq != nil {
		q.recvCQ.unreserveShared(q.srq)
		q.srq.qps--
	} else {
		q.recvCQ.unreserve(int(q.rq.depth))
	}
	q.pd.uses--
}

func (d *device) qpError(step string, err error) error {
	return ownMemlock().explain("create a queue pair on", d.attr.Name, 0, fmt.Errorf("%s: %w", step, err))
}

func randomPSN() uint32 {
	var b [4]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.LittleEndian.Uint32(b[:]) & maxPSN
}

// Num implements rdma.QP.
func (q *queuePair) Num() uint32 { return q.num }

// StartPSN implements rdma.QP.
func (q *queuePair) StartPSN() uint32 { return q.startPSN }

// State implements rdma.QP.
func (q *queuePair) State() rdma.QPState { return q.state }

// Connect implements rdma.QP. The kernel asks for the peer's hardware address
// (ARP, neighbour discovery) and waits up to a second for the answer, if it does
// not know it yet.
func (q *queuePair) Connect(r rdma.Remote) error {
	if q.c == nil {
		return ErrClosed
	}
	if q.state != rdma.QPInit {
		return rdma.ErrQPState
	}
	if err := checkRemote(r, q.dev.attr); err != nil {
		return err
	}
	q.maxRdAtomic = min(q.maxRdAtomic, max(0, r.MaxDestRdAtomic))
	to := C.struct_mv_remote{
		qpn: C.uint32_t(r.QPN), psn: C.uint32_t(r.StartPSN), mtu: C.uint32_t(r.PathMTU), sq_psn: C.uint32_t(q.startPSN),
		max_dest_rd_atomic: C.uint8_t(q.maxDestRdAtomic), max_rd_atomic: C.uint8_t(q.maxRdAtomic),
		min_rnr_timer: minRNRTimer, timeout: ackTimeout, retry_cnt: retryCount, rnr_retry: rnrRetry,
	}
	for i, b := range r.Addr.As16() {
		to.gid[i] = C.uint8_t(b)
	}
	var step *C.char
	if rc := C.mv_qp_connect(q.dev.c, q.c, &to, &step); rc != 0 {
		// The pair may have come half of the way.
		q.fail()
		return connectError(q.dev.attr.Name, C.GoString(step), r, unix.Errno(rc))
	}
	q.state = rdma.QPReadyToSend
	return nil
}

// fail records that the pair is in error, and sees to it that it is: both of its
// queues are flushed.
func (q *queuePair) fail() {
	if q.state == rdma.QPError || q.c == nil {
		return
	}
	q.state = rdma.QPError
	if rc := C.mv_qp_error(q.c); rc != 0 {
		q.dev.log.Warn("RDMA queue pair cannot be flushed", "device", q.dev.attr.Name, "qpn", q.num, "err", unix.Errno(rc))
	}
	if q.srq != nil && q.dev.port.Soft {
		// rdma_rxe (rxe_resp.c, check_resource) stops taking and does not say so.
		q.lastTaken()
	}
}

// lastTaken queues rdma.EventLastWQE, once.
func (q *queuePair) lastTaken() {
	if !q.last {
		q.last = true
		q.dev.events = append(q.dev.events, rdma.Event{Kind: rdma.EventLastWQE, QPN: q.num})
	}
}

// PostSend implements rdma.QP. Besides the errors of the interface it refuses data
// outside registered memory and messages beyond the device's limits. What fits goes
// inline in any case: the device then has no memory to look up and read.
func (q *queuePair) PostSend(wrs []rdma.SendWR) (int, error) {
	if q.state != rdma.QPReadyToSend || q.c == nil {
		return 0, rdma.ErrQPState
	}
	d := q.dev
	for posted := 0; posted < len(wrs); {
		part := wrs[posted:min(len(wrs), posted+listLen)]
		n, refused := len(part), error(nil)
		if room := q.sq.room(); n > room {
			n, refused = room, rdma.ErrQueueFull
		}
		for i := range n {
			if err := q.fillSend(i, &part[i]); err != nil {
				n, refused = i, err
				break
			}
		}
		if n == 0 {
			return posted, refused
		}
		rc := d.call(postSend, unsafe.Pointer(q.c), n)
		runtime.KeepAlive(wrs)
		taken := int(d.c.taken)
		q.sq.tail += uint32(taken)
		posted += taken
		if rc != 0 {
			refused = d.postError("ibv_post_send", unix.Errno(rc))
		}
		if refused != nil {
			return posted, refused
		}
	}
	return len(wrs), nil
}

// fillSend writes w to entry i of the list.
func (q *queuePair) fillSend(i int, w *rdma.SendWR) error {
	d := q.dev
	if w.Op >= rdma.OpRead {
		if err := q.checkAnswered(w); err != nil {
			return err
		}
	}
	to := &d.sends[i]
	data, flags, lkey := w.Data, C.uint16_t(0), C.uint32_t(0)
	if w.Signaled {
		flags = C.MV_SIGNALED
	}
	if len(data) > d.attr.MaxMsg {
		return fmt.Errorf("rdma/verbs: message of %d bytes; the largest of %s is %d", len(data), d.attr.Name, d.attr.MaxMsg)
	}
	if len(data) > 0 {
		r := q.pd.region(data)
		switch {
		case w.Inline && len(data) > d.attr.MaxInline:
			return fmt.Errorf("rdma/verbs: %d bytes inline; %s takes at most %d", len(data), d.attr.Name, d.attr.MaxInline)
		case r == nil && !w.Inline:
			return fmt.Errorf("rdma/verbs: the %d bytes of the %v are not in memory registered in the queue pair's domain; register their arena, or send them inline", len(data), w.Op)
		case r == nil:
			flags |= C.MV_INLINE
			data = d.stage(i, data)
		default:
			lkey = C.uint32_t(r.mr.LKey)
			if len(data) <= d.attr.MaxInline && w.Op < rdma.OpRead {
				flags |= C.MV_INLINE
			}
		}
	}
	to.id, to.op, to.flags, to.imm = C.uint64_t(q.tag|q.sq.set(i, w.ID)), C.uint16_t(w.Op), flags, C.uint32_t(w.Imm)
	to.addr, to.len, to.lkey = address(data), C.uint32_t(len(data)), lkey
	if w.Op >= rdma.OpWrite { // what SENDs leave, the shim does not read
		to.remote, to.rkey, to.compare, to.swap_add = C.uint64_t(w.RemoteAddr), C.uint32_t(w.RKey), C.uint64_t(w.Compare), C.uint64_t(w.SwapAdd)
	}
	return nil
}

// checkAnswered checks what READ and atomics need beyond the others.
func (q *queuePair) checkAnswered(w *rdma.SendWR) error {
	atomic := w.Op > rdma.OpRead
	switch {
	case w.Op > rdma.OpFetchAdd, !q.dev.attr.Caps.Has(rdma.CapRead), atomic && !q.dev.attr.Caps.Has(rdma.CapAtomic):
		return &rdma.NotSupportedError{Device: q.dev.attr.Name, Feature: w.Op.String()}
	case q.maxRdAtomic == 0:
		return fmt.Errorf("rdma/verbs: %v on a queue pair that has none under way: give it MaxRdAtomic, and the remote's MaxDestRdAtomic", w.Op)
	case w.Inline:
		return fmt.Errorf("rdma/verbs: %v inline: its data comes from the peer", w.Op)
	case atomic && len(w.Data) != 8:
		return fmt.Errorf("rdma/verbs: %v with %d bytes for the old value, which has 8", w.Op, len(w.Data))
	case atomic && w.RemoteAddr%8 != 0:
		return fmt.Errorf("rdma/verbs: %v at remote address %#x, which is no multiple of 8", w.Op, w.RemoteAddr)
	}
	return nil
}

// PostRecv implements rdma.QP. Besides the errors of the interface it refuses
// buffers outside registered memory.
func (q *queuePair) PostRecv(wrs []rdma.RecvWR) (int, error) {
	if q.state == rdma.QPError || q.c == nil {
		return 0, rdma.ErrQPState
	}
	if q.srq != nil {
		return 0, errors.New("rdma/verbs: the queue pair takes its receives from a shared queue; post them there")
	}
	d := q.dev
	for posted := 0; posted < len(wrs); {
		part := wrs[posted:min(len(wrs), posted+listLen)]
		n, refused := len(part), error(nil)
		if room := q.rq.room(); n > room {
			n, refused = room, rdma.ErrQueueFull
		}
		for i := range n {
			if err := q.pd.fillRecv(i, &part[i], recvBit|q.tag|q.rq.set(i, part[i].ID)); err != nil {
				n, refused = i, err
				break
			}
		}
		if n == 0 {
			return posted, refused
		}
		rc := d.call(postRecv, unsafe.Pointer(q.c), n)
		runtime.KeepAlive(wrs)
		taken := int(d.c.taken)
		q.rq.tail += uint32(taken)
		posted += taken
		if rc != 0 {
			refused = d.postError("ibv_post_recv", unix.Errno(rc))
		}
		if refused != nil {
			return posted, refused
		}
	}
	return len(wrs), nil
}

// fillRecv writes w to entry i of the list of receives.
func (p *domain) fillRecv(i int, w *rdma.RecvWR, id uint64) error {
	lkey := C.uint32_t(0)
	if len(w.Data) > 0 {
		r := p.region(w.Data)
		if r == nil {
			return fmt.Errorf("rdma/verbs: the receive buffer of %d bytes is not in memory registered in its domain; register its arena", len(w.Data))
		}
		lkey = C.uint32_t(r.mr.LKey)
	}
	p.dev.recvs[i] = C.struct_mv_recv{id: C.uint64_t(id), addr: address(w.Data), len: C.uint32_t(len(w.Data)), lkey: lkey}
	return nil
}

func (d *device) postError(call string, err unix.Errno) error {
	if err == unix.ENOMEM { // what providers return for a full queue
		return rdma.ErrQueueFull
	}
	return &Error{Op: "post to", Device: d.attr.Name, Err: fmt.Errorf("%s: %w", call, err)}
}

// Close implements rdma.QP. Completions that nobody has polled yet are dropped.
func (q *queuePair) Close() error {
	if q.c == nil {
		return nil
	}
	if rc := C.mv_qp_destroy(q.c); rc != 0 {
		return &Error{Op: "close a queue pair of", Device: q.dev.attr.Name, Err: fmt.Errorf("ibv_destroy_qp: %w", unix.Errno(rc))}
	}
	q.c = nil
	q.state = rdma.QPError
	delete(q.dev.byNum, q.num)
	q.sendCQ.forget(q)
	if q.recvCQ != q.sendCQ {
		q.recvCQ.forget(q)
	}
	q.forget()
	q.dev.dropEvents(func(e rdma.Event) bool { return e.SRQ == nil && e.QPN == q.num })
	return nil
}
