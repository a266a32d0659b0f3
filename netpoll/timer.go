package netpoll

import (
	"container/heap"
	"time"
)

// Timer is a one-shot timer of a loop. Loop's goroutine only.
type Timer struct {
	at    int64
	fn    func()
	index int // in the heap; timerDue; -1 when not armed
	heap  *timerHeap
}

// timerDue is the index of one that fires in this cycle, behind others.
const timerDue = -2

// At runs fn in the first duty cycle at or after the Loop.Now value at.
func (l *Loop) At(at int64, fn func()) *Timer {
	t := &Timer{at: at, fn: fn, heap: &l.timers}
	heap.Push(&l.timers, t)
	return t
}

// After runs fn in the first duty cycle at least d after Now.
func (l *Loop) After(d time.Duration, fn func()) *Timer { return l.At(l.now+int64(d), fn) }

// Stop disarms the timer; false if it already ran or was stopped.
func (t *Timer) Stop() bool {
	switch {
	case t.index == timerDue:
		t.index = -1
	case t.index < 0:
		return false
	default:
		heap.Remove(t.heap, t.index)
	}
	return true
}

// Reset arms the timer for at, whether or not it is armed now.
func (t *Timer) Reset(at int64) {
	t.Stop()
	t.at = at
	heap.Push(t.heap, t)
}

type timerHeap []*Timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *timerHeap) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}

// next is the earliest deadline, 0 if there is none.
func (h *timerHeap) next() int64 {
	if len(*h) == 0 {
		return 0
	}
	return max(1, (*h)[0].at)
}

// run fires what is due at now. Timers that a fired function arms for now or
// earlier wait for the next cycle, so that a cycle always ends.
func (h *timerHeap) run(now int64) int {
	if len(*h) == 0 || (*h)[0].at > now {
		return 0
	}
	var due []*Timer
	for len(*h) > 0 && (*h)[0].at <= now {
		t := heap.Pop(h).(*Timer)
		t.index = timerDue
		due = append(due, t)
	}
	for _, t := range due {
		if t.index == timerDue { // not stopped or re-armed by an earlier one
			t.index = -1
			t.fn()
		}
	}
	return len(due)
}
