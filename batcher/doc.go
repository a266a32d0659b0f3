// Package batcher is the automatic send aggregator: it gathers records into
// batches for one destination and decides when each batch leaves.
//
// Batching is natural. Records appended within one duty cycle travel together,
// at its end, if the link is idle; while batches are in flight, the next one
// grows until it is full or one of them is answered. So an idle link adds no
// delay and a busy one makes larger batches, without a timer. Limits of time are
// opt-in: Options.Linger, MaxDelay and, for the frequency, MinInterval.
//
// A Batcher belongs to one goroutine, the loop's, and takes no lock. It copies a
// record's bytes once, into the batch that is sent. Other goroutines append
// through the Producers of an Inbox, which copy them once as well: each claims the
// place of its record in a batch that they fill together, and no lock is held
// while anybody copies or encodes. Producers that wait for room get some before
// those that never pause get more.
//
// What the loop does with them:
//
//	on an answer:                b.Done(id, baseOffset, err)
//	when the link takes more:    b.Writable()
//	when the link is lost:       b.Fail(err)
//	at the end of a duty cycle in which any of these, Append or the inbox's Wake
//	was called, and at the time of NextDeadline:
//	                             inbox.Drain(now); b.Flush(now)
//
// A record that arrives alone at an idle link need not wait for the loop's wake-up:
// where InboxOptions.Borrow says how to run in its place, the producer sends it itself.
//
// A batch may be compressed when it closes (Options.Compressor), which is the
// batcher's goroutine's work: producers do not wait for it.
//
// Everything is bounded; what does not fit is refused with a named error, and
// Options.OnWritable says when to try again.
package batcher
