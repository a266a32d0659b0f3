package rdma

import (
	"fmt"

	"github.com/millrace/millrace/hugepages"
)

// budget bounds what the connections of a device may have posted, together. The
// loop's goroutine owns it.
type budget struct {
	receives int // of all connections
	shares   int // sum of conn.share
}

// admit tells whether one more connection gets its minimum.
func (b *budget) admit() bool { return b.shares+minReceives <= b.receives }

// target is how many receives c may be granted for data, those included whose
// messages wait: no more than what others leave free.
func (b *budget) target(c *conn) int {
	free := b.receives - (b.shares - c.share) - controlReceives
	return max(1, min(c.dev.receives-controlReceives, free/2))
}

// receiveQueue is where receives are posted: the shared queue of a device, or the
// queue of one queue pair. Its memory follows what is granted: an idle
// connection's two buffers. The loop's goroutine owns it.
//
// What is posted cannot be taken back: receives of connections that have yielded
// or closed stay until messages use them, or are the next to be granted. So posted
// is at most the sum of the connections' shares at its highest, and budget bounds
// that.
type receiveQueue struct {
	el    *EventLoop
	queue interface {
		PostRecv([]RecvWR) (int, error)
	}
	bytes int // of one buffer

	needed  int // receives that connections may use now: one for control each, and those granted
	posted  int // with the device, or in pending
	buffers []*hugepages.Buf
	vacant  []int // slots (IDs of work requests) without a buffer
	pending []RecvWR
	flushes uint64 // how often pending was posted
	failed  error
}

// postReceives is how many receives gather before they are posted, unless their peer
// waits to hear of them: posting takes a lock, and with libibverbs a cgo call.
const postReceives = 32

// put posts buf, of which it takes the reference, if the queue needs it.
func (q *receiveQueue) put(buf *hugepages.Buf) {
	if q.posted >= q.needed || q.failed != nil {
		buf.Release()
		return
	}
	slot := len(q.buffers)
	if n := len(q.vacant); n > 0 {
		slot = q.vacant[n-1]
		q.vacant = q.vacant[:n-1]
	} else {
		q.buffers = append(q.buffers, nil)
	}
	buf.SetWindow(0, q.bytes)
	q.buffers[slot] = buf
	q.posted++
	q.el.receives++
	q.pending = append(q.pending, RecvWR{ID: uint64(slot), Data: buf.Bytes()})
	if len(q.pending) >= postReceives {
		q.flush()
	}
}

// take is the buffer of a completed receive; the caller owns it.
func (q *receiveQueue) take(slot uint64) *hugepages.Buf {
	buf := q.buffers[slot]
	q.buffers[slot] = nil
	q.vacant = append(q.vacant, int(slot))
	q.posted--
	q.el.receives--
	return buf
}

// need makes sure that one more receive is posted, with spare's last buffer or one
// of the pool's.
func (q *receiveQueue) need(spare *[]*hugepages.Buf) error {
	if q.failed != nil {
		return q.failed
	}
	if q.posted > q.needed {
		q.needed++
		return nil
	}
	var buf *hugepages.Buf
	if n := len(*spare); n > 0 {
		buf = (*spare)[n-1]
		*spare = (*spare)[:n-1]
	} else {
		var err error
		if buf, err = q.el.loop.Pool().Get(q.bytes, hugepages.Receive); err != nil {
			return err
		}
	}
	q.needed++
	q.put(buf)
	return nil
}

// flush posts what is pending, with one call. It must happen before peers hear of it.
func (q *receiveQueue) flush() {
	if len(q.pending) == 0 {
		return
	}
	if n, err := q.queue.PostRecv(q.pending); n < len(q.pending) {
		q.failed = fmt.Errorf("posting a receive: %w", err)
		for _, wr := range q.pending[n:] { // the device does not have them
			q.take(wr.ID).Release()
		}
	}
	q.el.stats.receivePosts.Add(1)
	q.flushes++
	clear(q.pending)
	q.pending = q.pending[:0]
}

// close releases the buffers; the device must no longer touch them.
func (q *receiveQueue) close() {
	for i, b := range q.buffers {
		if b != nil {
			b.Release()
			q.buffers[i] = nil
		}
	}
	q.el.receives -= q.posted
	q.posted = 0
	q.buffers, q.vacant, q.pending = nil, nil, nil
}
