package batcher

import (
	"math"
	"time"

	"github.com/millrace/millrace/serialize"
)

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
	in.opts.Wake()
}

// aloneNanos is how long no batch must have left for a producer to send its record
// itself: where more follow, one wake-up for many is cheaper than a batch for each,
// and a wake-up takes no longer.
const aloneNanos = int64(20 * time.Microsecond)

// lone is the record that a producer wants to send itself.
type lone struct {
	send   func(now int64, cheap bool) bool // Producer.sendAlone
	record serialize.Record
	token  uint64
}

// alone sends r in the batcher's place, past the stages. false: it did not.
func (p *Producer) alone(r *serialize.Record, token uint64) bool {
	if p.in.opts.Borrow == nil || p.woken { // who waited has a place kept in a stage, see note
		return false
	}
	p.lone.record, p.lone.token = *r, token
	sent := p.in.opts.Borrow(p.lone.send)
	p.lone.record = serialize.Record{}
	return sent
}

// sendAlone runs in the batcher's place: a record that finds nothing before it and the link
// idle leaves without a wake-up. So does, where sending is cheap, one that fills its batch
// by itself. Else it does nothing and returns false.
func (p *Producer) sendAlone(now int64, cheap bool) bool {
	in, b := p.in, p.in.b
	full := cheap && b.opts.MaxBatchRecords == 1
	idle := b.records == 0 && b.opts.Linger == 0 && now-in.drained >= aloneNanos && now-b.left >= int64(b.opts.MinInterval)
	if !full && !idle || in.closing || !in.takenUpTo(math.MaxUint64) {
		return false
	}
	b.now = now
	if b.Put(&p.lone.record, Completion{p.to, p.lone.token}) != nil {
		return false // for want of room, a matter for Drain
	}
	b.left = now
	in.drained = now
	return true
}
