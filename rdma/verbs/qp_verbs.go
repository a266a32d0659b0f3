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
	"slices"

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
	num      uint32
	startPSN uint32
	state    rdma.QPState
	slot     uint16
	gen      uint16
	tag      uint64 // slot and generation, as in a work request's ID
	sendCQ   *completionQueue
	recvCQ   *completionQueue
	sq, rq   workQueue
}

var _ rdma.QP = (*queuePair)(nil)

// CreateQP implements rdma.PD.
func (p *domain) CreateQP(cfg rdma.QPConfig) (rdma.QP, error) {
	d := p.dev
	if d.closed {
		return nil, ErrClosed
	}
	if cfg.SRQ != nil || cfg.Access != 0 || cfg.MaxRdAtomic != 0 || cfg.MaxDestRdAtomic != 0 {
		return nil, &rdma.NotSupportedError{Device: d.attr.Name, Feature: "shared receive queues and remote access"}
	}
	for _, n := range [...]int{cfg.SendWRs, cfg.RecvWRs} {
		if n < 1 || n > d.attr.MaxQPWR {
			return nil, fmt.Errorf("rdma/verbs: work queue of %d requests; %s has 1 to %d", n, d.attr.Name, d.attr.MaxQPWR)
		}
	}
	scq, ok1 := cfg.SendCQ.(*completionQueue)
	rcq, ok2 := cfg.RecvCQ.(*completionQueue)
	if !ok1 || !ok2 || scq.dev != d || rcq.dev != d || scq.c == nil || rcq.c == nil {
		return nil, errors.New("rdma/verbs: a queue pair needs open completion queues of its own device")
	}
	if err := d.makeRoom(max(cfg.SendWRs, cfg.RecvWRs)); err != nil {
		return nil, d.qpError("make room for the lists", err)
	}
	slot, err := d.takeSlot()
	if err != nil {
		return nil, err
	}
	q := &queuePair{
		dev: d, startPSN: randomPSN(), slot: slot, gen: d.gens[slot], sendCQ: scq, recvCQ: rcq,
		sq: newWorkQueue(cfg.SendWRs), rq: newWorkQueue(cfg.RecvWRs),
	}
	q.tag = uint64(q.gen)<<genShift | uint64(slot)<<32
	if err = scq.reserve(cfg.SendWRs); err == nil {
		if err = rcq.reserve(cfg.RecvWRs); err != nil {
			scq.unreserve(cfg.SendWRs)
		}
	}
	if err != nil {
		d.frees = append(d.frees, slot)
		return nil, err
	}
	var step *C.char
	rc := C.mv_qp_create(d.c, scq.c, rcq.c, C.uint32_t(cfg.SendWRs), C.uint32_t(cfg.RecvWRs), C.uint32_t(d.attr.MaxInline), &q.c, &step)
	if rc != 0 {
		q.forget()
		return nil, d.qpError(C.GoString(step), unix.Errno(rc))
	}
	q.num = uint32(q.c.num)
	d.qps[slot] = q
	return q, nil
}

func (d *device) qpError(step string, err error) error {
	return ownMemlock().explain("create a queue pair on", d.attr.Name, 0, fmt.Errorf("%s: %w", step, err))
}

// takeSlot finds a place for a queue pair. Slots are used in turn, so that a
// generation comes again only after 2^15 queue pairs in the same slot.
func (d *device) takeSlot() (uint16, error) {
	if len(d.frees) > 0 {
		slot := d.frees[0]
		d.frees = d.frees[1:]
		d.gens[slot] = (d.gens[slot] + 1) & genMask
		return slot, nil
	}
	if len(d.qps) == maxQPs {
		return 0, fmt.Errorf("rdma/verbs: %s has its %d queue pairs", d.attr.Name, maxQPs)
	}
	d.qps = append(d.qps, nil)
	d.gens = append(d.gens, 0)
	return uint16(len(d.qps) - 1), nil
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
	to := C.struct_mv_remote{
		qpn: C.uint32_t(r.QPN), psn: C.uint32_t(r.StartPSN), mtu: C.uint32_t(r.PathMTU), sq_psn: C.uint32_t(q.startPSN),
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
}

// PostSend implements rdma.QP. Besides the errors of the interface it refuses data
// outside registered memory and messages beyond the device's limits.
func (q *queuePair) PostSend(wrs []rdma.SendWR) (int, error) {
	if q.state != rdma.QPReadyToSend || q.c == nil {
		return 0, rdma.ErrQPState
	}
	d := q.dev
	var refused error
	n := len(wrs)
	if room := q.sq.room(); n > room {
		n, refused = room, rdma.ErrQueueFull
	}
	for i := range n {
		if err := q.fillSend(i, &wrs[i]); err != nil {
			n, refused = i, err
			break
		}
	}
	if n == 0 {
		return 0, refused
	}
	rc := C.mv_post_send(d.c, q.c, C.uint32_t(n))
	runtime.KeepAlive(wrs)
	taken := int(d.c.taken)
	q.sq.tail += uint32(taken)
	if rc != 0 {
		refused = q.postError("ibv_post_send", unix.Errno(rc))
	}
	return taken, refused
}

// fillSend writes w to entry i of the list.
func (q *queuePair) fillSend(i int, w *rdma.SendWR) error {
	d := q.dev
	to := &d.sends[i]
	data := w.Data
	flags := C.uint32_t(0)
	to.lkey = 0
	switch w.Op {
	case rdma.OpSend:
	case rdma.OpSendImm:
		flags |= C.MV_IMM
	default:
		return &rdma.NotSupportedError{Device: d.attr.Name, Feature: w.Op.String()}
	}
	if w.Signaled {
		flags |= C.MV_SIGNALED
	}
	if len(data) > d.attr.MaxMsg {
		return fmt.Errorf("rdma/verbs: message of %d bytes; the largest of %s is %d", len(data), d.attr.Name, d.attr.MaxMsg)
	}
	if len(data) > 0 {
		r := d.region(data)
		if r != nil {
			to.lkey = C.uint32_t(r.mr.LKey)
		}
		switch {
		case w.Inline && len(data) > d.attr.MaxInline:
			return fmt.Errorf("rdma/verbs: %d bytes inline; %s takes at most %d", len(data), d.attr.Name, d.attr.MaxInline)
		case w.Inline:
			flags |= C.MV_INLINE
			if r == nil {
				data = d.stage(i, data)
			}
		case r == nil:
			return fmt.Errorf("rdma/verbs: the %d bytes to send are not in registered memory; register their arena, or send them inline", len(data))
		}
	}
	to.addr, to.len = address(data), C.uint32_t(len(data))
	to.imm, to.flags = C.uint32_t(w.Imm), flags
	to.id = C.uint64_t(q.tag | q.sq.set(i, w.ID))
	return nil
}

// PostRecv implements rdma.QP. Besides the errors of the interface it refuses
// buffers outside registered memory.
func (q *queuePair) PostRecv(wrs []rdma.RecvWR) (int, error) {
	if q.state == rdma.QPError || q.c == nil {
		return 0, rdma.ErrQPState
	}
	d := q.dev
	var refused error
	n := len(wrs)
	if room := q.rq.room(); n > room {
		n, refused = room, rdma.ErrQueueFull
	}
	for i := range n {
		w, to := &wrs[i], &d.recvs[i]
		to.lkey = 0
		if len(w.Data) > 0 {
			r := d.region(w.Data)
			if r == nil {
				n, refused = i, fmt.Errorf("rdma/verbs: the receive buffer of %d bytes is not in registered memory; register its arena", len(w.Data))
				break
			}
			to.lkey = C.uint32_t(r.mr.LKey)
		}
		to.addr, to.len = address(w.Data), C.uint32_t(len(w.Data))
		to.id = C.uint64_t(recvBit | q.tag | q.rq.set(i, w.ID))
	}
	if n == 0 {
		return 0, refused
	}
	rc := C.mv_post_recv(d.c, q.c, C.uint32_t(n))
	taken := int(d.c.taken)
	q.rq.tail += uint32(taken)
	if rc != 0 {
		refused = q.postError("ibv_post_recv", unix.Errno(rc))
	}
	return taken, refused
}

func (q *queuePair) postError(call string, err unix.Errno) error {
	if err == unix.ENOMEM { // what providers return for a full queue
		return rdma.ErrQueueFull
	}
	return &Error{Op: "post to", Device: q.dev.attr.Name, Err: fmt.Errorf("%s: %w", call, err)}
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
	q.dev.qps[q.slot] = nil
	for _, c := range [...]*completionQueue{q.sendCQ, q.recvCQ} {
		c.early = slices.DeleteFunc(c.early, func(wc rdma.WC) bool { return wc.QPN == q.num })
	}
	q.forget()
	return nil
}

// forget gives back the slot and the completion queues' entries.
func (q *queuePair) forget() {
	q.dev.frees = append(q.dev.frees, q.slot)
	q.sendCQ.unreserve(int(q.sq.depth))
	q.recvCQ.unreserve(int(q.rq.depth))
}
