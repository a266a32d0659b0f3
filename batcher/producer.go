package batcher

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/millrace/millrace/serialize"
)

// Producer is one goroutine's way into an Inbox. Append, Wait and Close may be
// called by one goroutine at a time.
type Producer struct {
	in     *Inbox
	to     Completer
	closed atomic.Bool
	room   chan struct{} // of 1: ends a Wait

	// What it has in the stage with that number; see share.
	seq   uint64
	here  int
	woken bool // a Wait ended since the last Append
	lone  lone
}

// producerQuantum is how many records of one stage a producer may take while
// others, that waited for room, have none in it yet.
const producerQuantum = 64

// Append puts a copy of r into the batch that is being filled; the producer's
// Completer tells with token what became of it, in the order of appending, on the
// batcher's goroutine. It never blocks. On error nothing was taken: ErrFull (see
// Wait; hugepages.ErrExhausted, too, where memory is what lacks), ErrClosed,
// serialize.ErrRecordTooLarge.
func (p *Producer) Append(r *serialize.Record, token uint64) error {
	bytes := len(r.Key) + len(r.Value) + len(r.Headers)
	if bytes > p.in.b.opts.MaxBatchBytes-serialize.HeaderBytes {
		return serialize.ErrRecordTooLarge
	}
	if p.closed.Load() {
		return ErrClosed
	}
	for asked := false; ; {
		s := p.in.open.Load()
		c := s.claimed.Load()
		n, at, sealed := claims(c)
		if (n == 0 || sealed) && !asked { // most records have others before them
			if asked = true; p.alone(r, token) {
				return nil
			}
		}
		if sealed || !p.in.fits(n, at, bytes) {
			if err := p.in.turn(s); err != nil {
				return err
			}
			continue
		}
		if s.hungry.Load() > 0 && !p.share(s) {
			return ErrFull
		}
		claimed, full := c+1<<32+uint64(bytes), n+1 == p.in.b.opts.MaxBatchRecords
		if full {
			claimed |= sealedBit // it leaves without waiting for anything
		}
		if !s.claimed.CompareAndSwap(c, claimed) {
			continue
		}
		p.note(s)
		s.write(n, at, r, p.to, token)
		p.in.signal(full)
		return nil
	}
}

// share reports whether p may take more of s while others are hungry.
func (p *Producer) share(s *stage) bool { return p.seq != s.seq.Load() || p.here < producerQuantum }

// note counts a record that p put into s.
func (p *Producer) note(s *stage) {
	if seq := s.seq.Load(); p.seq != seq {
		p.seq, p.here = seq, 0
	}
	p.here++
	if p.woken {
		p.woken = false
		s.hungry.Add(-1)
	}
}

// Wait blocks until there may be room, the inbox is closed (ErrClosed), or ctx
// ends. Use it after ErrFull.
func (p *Producer) Wait(ctx context.Context) error {
	in := p.in
	in.mu.Lock()
	s := in.open.Load()
	switch {
	case in.closed || p.closed.Load():
		in.mu.Unlock()
		return ErrClosed
	case s.sealed() && len(in.spare) > 0 && !in.starved, !s.sealed() && (s.hungry.Load() <= 0 || p.share(s)):
		in.mu.Unlock()
		return nil
	}
	select {
	case <-p.room: // of a Wait that ctx ended at the same time
	default:
	}
	in.waiters = append(in.waiters, p)
	if in.starved {
		in.opts.Wake() // so that NextDeadline is looked at
	}
	in.mu.Unlock()
	select {
	case <-p.room:
		p.woken = true
		return nil // or closed, and Append says so
	case <-ctx.Done():
		in.mu.Lock()
		in.waiters = slices.DeleteFunc(in.waiters, func(w *Producer) bool { return w == p })
		in.mu.Unlock()
		return ctx.Err()
	}
}

// Flush sends what was appended to the inbox so far without waiting for Linger,
// MinInterval or an idle link. The channel is closed when all of it has completed.
func (p *Producer) Flush() <-chan struct{} {
	done := make(chan struct{})
	p.in.mu.Lock()
	p.in.flushes = append(p.in.flushes, flush{p.in.opened, done})
	p.in.mu.Unlock()
	p.in.opts.Wake()
	return done
}

// Close says that nothing more will be appended. What was is still sent and
// completed. Closing again does nothing.
func (p *Producer) Close() {
	if p.closed.Swap(true) {
		return
	}
	p.in.mu.Lock()
	p.in.producers--
	p.in.mu.Unlock()
	p.wake()
}

// wake ends a Wait.
func (p *Producer) wake() {
	select {
	case p.room <- struct{}{}:
	default: // one is enough
	}
}
