package batcher

import "time"

// What Inbox.signaled says about the records that are staged.
const (
	unknown = int32(iota) // the batcher's goroutine has not looked since the last came
	held                  // they wait for an event of the loop, which needs no Wake
	woken                 // Wake was called
)

// signal wakes the batcher's goroutine, unless that was done since the last Drain or an
// open stage waits for the link; one that was sealed does not.
func (in *Inbox) signal(sealed bool) {
	// The load keeps the line shared among producers that find the inbox signaled.
	switch was := in.signaled.Load(); {
	case was == woken, was == held && !sealed, !in.signaled.CompareAndSwap(was, woken) && !sealed:
		return
	}
	if in.opts.Borrow == nil || !in.opts.Borrow() {
		in.opts.Wake()
	}
}

// aloneNanos is how long no batch must have left for a producer to send its record
// itself: where more follow, one wake-up for many is cheaper than a batch for each,
// and a wake-up takes no longer.
const aloneNanos = int64(20 * time.Microsecond)

// Borrowed is Drain on a producer's goroutine, while the batcher's is at rest: a record
// that finds the link idle leaves without a wake-up. It returns false if there is more
// to do than that, or nothing; Wake is needed then. No Completer is told meanwhile,
// provided that the sink answers nothing from within SendBatch, nor refuses a batch with
// an error other than ErrBackpressure.
func (in *Inbox) Borrowed(now int64) bool {
	b := in.b
	if b.inFlight > 0 || b.stalled || in.closing || b.closing || now-in.drained < aloneNanos {
		return false
	}
	in.Drain(now)
	return in.drained == now && in.NextDeadline() == 0
}
