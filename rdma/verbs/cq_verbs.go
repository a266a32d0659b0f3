//go:build verbs && cgo

package verbs

// #include "shim.h"
import "C"

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

// pollBurst is how many completions one crossing takes.
const pollBurst = C.MV_POLL

// completionQueue is a CQ with a completion channel of its own.
//
// A completion queue that overflows is broken for good, so the queue pairs that
// complete on it may not have more requests than it has entries. What a closed
// queue pair left in it counts until the queue was found empty.
type completionQueue struct {
	dev    *device
	c      *C.struct_mv_cq
	depth  int
	used   int // entries that queue pairs may fill
	ghosts int // of those, of closed queue pairs
	qps    int // work queues that complete here
	shared []sharedUse
	broken bool
	early  []rdma.WC // taken by purge, not yet by Poll
}

// sharedUse is a shared receive queue, all of whose receives may complete here.
type sharedUse struct {
	srq *sharedQueue
	qps int
}

// CreateCQ implements rdma.Device.
func (d *device) CreateCQ(depth int) (rdma.CQ, error) {
	if d.closed {
		return nil, ErrClosed
	}
	if depth < 1 || depth > d.maxCQE {
		return nil, fmt.Errorf("rdma/verbs: completion queue of %d entries; %s has 1 to %d", depth, d.attr.Name, d.maxCQE)
	}
	c := &completionQueue{dev: d}
	if rc := C.mv_cq_create(d.c, C.uint32_t(depth), &c.c); rc != 0 {
		return nil, ownMemlock().explain("create a completion queue on", d.attr.Name, 0, fmt.Errorf("ibv_create_cq of %d entries: %w", depth, unix.Errno(rc)))
	}
	c.depth = int(c.c.depth)
	d.cqs = append(d.cqs, c)
	if err := d.watch(int(c.c.fd)); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// reserve takes n entries for a queue pair's work queue. Only what shared receive
// queues need makes the queue deeper: who made it could not know.
func (c *completionQueue) reserve(n int, grow bool) error {
	if c.used+n > c.depth && c.ghosts > 0 {
		c.purge()
	}
	if c.used+n > c.depth && grow {
		want := min(c.dev.maxCQE, max(c.used+n, 2*c.depth))
		if rc := C.mv_cq_resize(c.c, C.uint32_t(want)); rc != 0 {
			return fmt.Errorf("rdma/verbs: completion queue of %d entries cannot be made one of %d: ibv_resize_cq: %w; make it deeper at once", c.depth, want, unix.Errno(rc))
		}
		c.depth = int(c.c.depth)
	}
	if c.used+n > c.depth {
		return fmt.Errorf("rdma/verbs: completion queue of %d entries: its queue pairs have %d work requests, %d more could overflow it; make it deeper",
			c.depth, c.used, n)
	}
	c.used += n
	c.qps++
	return nil
}

func (c *completionQueue) unreserve(n int) {
	c.ghosts += n
	c.qps--
}

// reserveShared is reserve for a queue pair that takes from s.
func (c *completionQueue) reserveShared(s *sharedQueue) error {
	for i := range c.shared {
		if c.shared[i].srq == s {
			c.shared[i].qps++
			c.qps++
			return nil
		}
	}
	if err := c.reserve(len(s.ids), true); err != nil {
		return err
	}
	c.shared = append(c.shared, sharedUse{s, 1})
	return nil
}

func (c *completionQueue) unreserveShared(s *sharedQueue) {
	i := slices.IndexFunc(c.shared, func(u sharedUse) bool { return u.srq == s })
	if c.shared[i].qps--; c.shared[i].qps > 0 {
		c.qps--
		return
	}
	c.shared = slices.Delete(c.shared, i, i+1)
	c.unreserve(len(s.ids))
}

// Poll implements rdma.CQ.
func (c *completionQueue) Poll(wcs []rdma.WC) int {
	if c.c == nil {
		return 0
	}
	n := 0
	if len(c.early) > 0 {
		n = copy(wcs, c.early)
		c.early = slices.Delete(c.early, 0, n)
	}
	for n < len(wcs) {
		want := min(len(wcs)-n, pollBurst)
		got := c.dev.call(cqPoll, unsafe.Pointer(c.c), want)
		if got < 0 {
			c.fail(unix.Errno(-got))
			break
		}
		for i := range got {
			if c.dev.complete(&c.dev.wcs[i], &wcs[n]) {
				n++
			}
		}
		if got < want {
			c.used -= c.ghosts
			c.ghosts = 0
			break
		}
	}
	return n
}

// purge empties the queue of what closed queue pairs left in it. The completions
// of others wait for Poll.
func (c *completionQueue) purge() {
	for c.ghosts > 0 && !c.broken {
		c.drain()
	}
}

// drain takes all completions that are there.
func (c *completionQueue) drain() {
	var wcs [pollBurst]rdma.WC
	for {
		early := c.early // Poll shall look at the queue itself
		c.early = nil
		n := c.Poll(wcs[:])
		c.early = append(early, wcs[:n]...)
		if n < len(wcs) {
			return
		}
	}
}

// fail reports a queue that cannot be polled.
func (c *completionQueue) fail(err error) {
	if !c.broken {
		c.broken = true
		c.dev.log.Error("RDMA completion queue failed", "device", c.dev.attr.Name, "err", err)
	}
}

// complete translates a completion; false if its queue pair was closed. A receive
// of a shared queue always counts.
func (d *device) complete(raw *C.struct_mv_wc, wc *rdma.WC) bool {
	id := uint64(raw.id)
	u := d.userOf(id)
	*wc = rdma.WC{Status: rdma.Status(raw.status), QPN: uint32(raw.qpn), Op: rdma.WCOpcode(raw.op)}
	q := u.qp
	switch {
	case u.srq != nil:
		wc.ID = u.srq.done(uint32(id))
		if raw.status != 0 {
			q = d.byNum[wc.QPN]
		}
	case q == nil:
		return false
	default:
		w := &q.sq
		if id&recvBit != 0 {
			w = &q.rq
		}
		var ok bool
		if wc.ID, ok = w.done(uint32(id)); !ok {
			return false
		}
		wc.QPN = q.num
	}
	switch {
	case raw.status != 0: // the verbs leave the opcode undefined
		wc.Op = rdma.WCSend
		if id&recvBit != 0 {
			wc.Op = rdma.WCRecv
		}
		if q != nil {
			q.fail()
		}
	case id&recvBit != 0:
		wc.Bytes = int(raw.bytes)
		if raw.has_imm != 0 {
			wc.Imm, wc.HasImm = uint32(raw.imm), true
		}
	}
	return true
}

// forget makes the completions of a closed queue pair what they are without it:
// those of its own queues vanish, and receives of a shared queue are given back
// unused, so that their buffers are not lost.
func (c *completionQueue) forget(q *queuePair) {
	if q.srq != nil && !c.broken {
		c.drain()
	}
	c.early = slices.DeleteFunc(c.early, func(wc rdma.WC) bool { return wc.QPN == q.num && (q.srq == nil || !wc.Op.IsRecv()) })
	for i := range c.early {
		if wc := &c.early[i]; wc.QPN == q.num {
			*wc = rdma.WC{ID: wc.ID, Op: rdma.WCRecv, Status: rdma.FlushError}
		}
	}
}

// Arm implements rdma.CQ.
func (c *completionQueue) Arm() error {
	if c.c == nil {
		return ErrClosed
	}
	rc := c.dev.call(cqArm, unsafe.Pointer(c.c), 0)
	// If not this queue made FD readable, asynchronous events may have. Reading them
	// takes a system call, too dear for each wake-up by a message; if both came, FD stays
	// readable.
	if c.c.told == 0 {
		c.dev.lookAsync = true
	}
	if rc != 0 {
		return &Error{Op: "arm a completion queue of", Device: c.dev.attr.Name, Err: fmt.Errorf("ibv_req_notify_cq: %w", unix.Errno(rc))}
	}
	return nil
}

// Close implements rdma.CQ.
func (c *completionQueue) Close() error {
	if c.c == nil {
		return nil
	}
	if c.qps > 0 {
		return fmt.Errorf("rdma/verbs: the completion queue still serves %d work queues; close their queue pairs first", c.qps)
	}
	// The kernel takes the channel's descriptor off the epoll set when it closes.
	if rc := C.mv_cq_destroy(c.c); rc != 0 {
		return &Error{Op: "close a completion queue of", Device: c.dev.attr.Name, Err: fmt.Errorf("ibv_destroy_cq: %w", unix.Errno(rc))}
	}
	c.c = nil
	c.dev.cqs = slices.DeleteFunc(c.dev.cqs, func(o *completionQueue) bool { return o == c })
	return nil
}
