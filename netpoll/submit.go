package netpoll

import (
	"sync/atomic"
)

// submitQueue is a bounded multi-producer, single-consumer queue of functions,
// after Dmitry Vyukov's bounded MPMC queue: each slot's sequence number says
// whose turn it is.
type submitQueue struct {
	mask   uint64
	slots  []submitSlot
	_      [64]byte // keeps producers' and consumer's counters on lines of their own
	tail   atomic.Uint64
	_      [64]byte
	head   atomic.Uint64
	closed atomic.Bool
	// pushing counts producers between their look at closed and the end of their
	// push, so that close can wait for them.
	pushing atomic.Int64
}

type submitSlot struct {
	seq atomic.Uint64
	fn  func()
}

func newSubmitQueue(n int) *submitQueue {
	q := &submitQueue{mask: uint64(n - 1), slots: make([]submitSlot, n)}
	for i := range q.slots {
		q.slots[i].seq.Store(uint64(i))
	}
	return q
}

func (q *submitQueue) push(fn func()) error {
	q.pushing.Add(1)
	defer q.pushing.Add(-1)
	if q.closed.Load() {
		return ErrLoopClosed
	}
	for {
		pos := q.tail.Load()
		s := &q.slots[pos&q.mask]
		switch d := int64(s.seq.Load()) - int64(pos); {
		case d == 0:
			if q.tail.CompareAndSwap(pos, pos+1) {
				s.fn = fn
				s.seq.Store(pos + 1)
				return nil
			}
		case d < 0:
			return ErrBackpressure
		}
	}
}

func (q *submitQueue) len() int { return int(q.tail.Load() - q.head.Load()) }

// run runs at most budget functions; the consumer only.
func (q *submitQueue) run(budget int) int {
	n := 0
	for ; n < budget; n++ {
		pos := q.head.Load()
		s := &q.slots[pos&q.mask]
		if s.seq.Load() != pos+1 {
			break
		}
		fn := s.fn
		s.fn = nil
		s.seq.Store(pos + q.mask + 1)
		q.head.Store(pos + 1)
		fn()
	}
	return n
}

// close refuses further pushes and waits for those under way; the consumer only,
// which then runs what is left.
func (q *submitQueue) close() {
	q.closed.Store(true)
	for q.pushing.Load() > 0 {
		q.run(int(q.mask) + 1)
	}
}
