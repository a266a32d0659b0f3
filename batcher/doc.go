// Package batcher is the automatic send aggregator: it gathers records into
// batches for one destination and decides when each batch leaves.
//
// Batching is natural. Records appended within one duty cycle travel together,
// at its end, if the link is idle; while batches are in flight, the next one
// grows until it is full or one of them is answered. So an idle link adds no
// delay and a busy one makes larger batches, without a timer. Timers are opt-in:
// Options.Linger and Options.MaxDelay.
//
// A Batcher belongs to one goroutine, the loop's, and takes no lock. It copies a
// record's bytes once, into the batch that is sent. Other goroutines append
// through the Producers of an Inbox, which stage the bytes in a ring first (a
// second copy, the price of the hand-over).
//
// What the loop does with them:
//
//	on a wake-up of the inbox:   inbox.Drain(now, budget)
//	on an answer:                b.Done(id, baseOffset, err)
//	when the link takes more:    b.Writable()
//	when the link is lost:       b.Fail(err)
//	at the end of a duty cycle in which any of these or Append was called, and at
//	the time of b.NextDeadline:  b.Flush(now)
//
// Everything is bounded; what does not fit is refused with a named error, and
// Options.OnWritable says when to try again.
package batcher
