//go:build verbs && cgo

package verbs

// #include "shim.h"
import "C"

import (
	"fmt"
	"slices"

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
	broken bool
	early  []rdma.WC // taken by purge, not yet by Poll
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

// reserve takes n entries for a queue pair's work queues.
func (c *completionQueue) reserve(n int) error {
	if c.used+n > c.depth && c.ghosts > 0 {
		c.purge()
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
		got := int(C.mv_cq_poll(c.c, C.uint32_t(want)))
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
	var wcs [pollBurst]rdma.WC
	for c.ghosts > 0 && !c.broken {
		early := c.early // Poll shall look at the queue itself
		c.early = nil
		n := c.Poll(wcs[:])
		c.early = append(early, wcs[:n]...)
	}
}

// fail reports a queue that cannot be polled.
func (c *completionQueue) fail(err error) {
	if !c.broken {
		c.broken = true
		c.dev.log.Error("RDMA completion queue failed", "device", c.dev.attr.Name, "err", err)
	}
}

// complete translates a completion; false if its queue pair was closed.
func (d *device) complete(raw *C.struct_mv_wc, wc *rdma.WC) bool {
	id := uint64(raw.id)
	slot := int(uint16(id >> 32))
	if slot >= len(d.qps) {
		return false
	}
	q := d.qps[slot]
	if q == nil || q.gen != uint16(id>>genShift)&genMask {
		return false
	}
	w, op := &q.sq, rdma.WCSend
	if id&recvBit != 0 {
		w, op = &q.rq, rdma.WCRecv
	}
	user, ok := w.done(uint32(id))
	if !ok {
		return false
	}
	*wc = rdma.WC{ID: user, Op: op, Status: rdma.Status(raw.status), QPN: q.num}
	switch {
	case raw.status != 0:
		q.fail()
	case op == rdma.WCRecv:
		wc.Bytes = int(raw.bytes)
		if raw.has_imm != 0 {
			wc.Imm, wc.HasImm = uint32(raw.imm), true
		}
	}
	return true
}

// Arm implements rdma.CQ.
func (c *completionQueue) Arm() error {
	if c.c == nil {
		return ErrClosed
	}
	c.dev.armed = true
	if rc := C.mv_cq_arm(c.c); rc != 0 {
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
