package batcher

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"

	"github.com/millrace/millrace/serialize"
)

// Producer is one goroutine's way into an Inbox: a ring of bytes with one writer,
// the producer, and one reader, the batcher's goroutine. Append, Wait and Close
// may be called by one goroutine at a time.
type Producer struct {
	in   *Inbox
	to   Completer
	ring []byte // a power of two

	_       [64]byte // the writer's line
	tail    uint64   // bytes staged since the beginning
	headMin uint64   // what the reader was known to have read
	_       [64]byte
	// shared is tail as the reader may see it, and shutBit. The writer publishes
	// by compare-and-swap, so that nothing is staged after a shut: what is
	// published before it is drained, what comes later is refused.
	shared  atomic.Uint64
	waiting atomic.Bool
	_       [64]byte // the reader's line
	head    atomic.Uint64
	room    chan struct{} // of 1: ends a Wait
}

const (
	shutBit = 1 << 63

	// A frame in the ring is eight-byte aligned and never wraps: value, key and
	// header lengths and flags as u32, token and timestamp as u64, then key, value
	// and headers. A value length of skipMark says that the next frame is at the
	// ring's beginning.
	frameBytes = 32
	skipMark   = ^uint32(0)

	flagKey       = 1 // the key is not nil
	flagNullValue = 2
)

func newProducer(in *Inbox, to Completer, ringBytes int) *Producer {
	return &Producer{in: in, to: to, ring: make([]byte, ringBytes), room: make(chan struct{}, 1)}
}

// Append stages a copy of r; the producer's Completer tells with token what
// became of it, in the order of appending, on the batcher's goroutine. It never
// blocks. On error nothing was taken: ErrFull (see Wait), ErrClosed,
// serialize.ErrRecordTooLarge.
func (p *Producer) Append(r *serialize.Record, token uint64) error {
	bytes := len(r.Key) + len(r.Value) + len(r.Headers)
	if err := p.in.valid(bytes); err != nil {
		return err
	}
	need := (frameBytes + uint64(bytes) + 7) &^ 7
	size := uint64(len(p.ring))
	at := p.tail & (size - 1)
	skip := uint64(0)
	if at+need > size {
		skip = size - at
	}
	end := p.tail + skip + need
	if end-p.headMin > size {
		if p.headMin = p.head.Load(); end-p.headMin > size {
			if p.shared.Load()&shutBit != 0 {
				return ErrClosed
			}
			return ErrFull
		}
	}
	if skip > 0 {
		binary.LittleEndian.PutUint32(p.ring[at:], skipMark)
		at = 0
	}
	writeFrame(p.ring[at:at+need], r, token)
	if !p.shared.CompareAndSwap(p.tail, end) {
		return ErrClosed
	}
	p.tail = end
	p.in.signal()
	return nil
}

func writeFrame(f []byte, r *serialize.Record, token uint64) {
	var flags uint32
	if r.Key != nil {
		flags |= flagKey
	}
	if r.Value == nil {
		flags |= flagNullValue
	}
	le := binary.LittleEndian
	le.PutUint32(f, uint32(len(r.Value)))
	le.PutUint32(f[4:], uint32(len(r.Key)))
	le.PutUint32(f[8:], uint32(len(r.Headers)))
	le.PutUint32(f[12:], flags)
	le.PutUint64(f[16:], token)
	le.PutUint64(f[24:], uint64(r.Timestamp))
	n := frameBytes
	n += copy(f[n:], r.Key)
	n += copy(f[n:], r.Value)
	copy(f[n:], r.Headers)
}

// readFrame is the record and token of the frame at the front of f; the record
// is a view of it.
func readFrame(f []byte) (r serialize.Record, token uint64, frame int) {
	le := binary.LittleEndian
	value, key, headers, flags := int(le.Uint32(f)), int(le.Uint32(f[4:])), int(le.Uint32(f[8:])), le.Uint32(f[12:])
	token = le.Uint64(f[16:])
	r.Timestamp = int64(le.Uint64(f[24:]))
	n := frameBytes
	if flags&flagKey != 0 {
		r.Key = f[n : n+key]
	}
	n += key
	if flags&flagNullValue == 0 {
		r.Value = f[n : n+value]
	}
	n += value
	if headers > 0 {
		r.Headers = f[n : n+headers]
	}
	return r, token, (n + headers + 7) &^ 7
}

// Wait blocks until half of the ring is free, the inbox is closed (ErrClosed), or
// ctx ends. Use it after ErrFull.
func (p *Producer) Wait(ctx context.Context) error {
	for {
		p.waiting.Store(true) // before looking: the reader frees first, then looks here
		switch {
		case p.shared.Load()&shutBit != 0:
			return ErrClosed
		case p.staged() <= len(p.ring)/2:
			p.waiting.Store(false)
			return nil
		}
		select {
		case <-p.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close says that nothing more will be appended. What is staged is still sent
// and completed. Closing again does nothing.
func (p *Producer) Close() {
	p.shut()
	p.in.signal()
}

// shut refuses further appends, and ends a Wait. Any goroutine.
func (p *Producer) shut() {
	p.shared.Or(shutBit)
	p.wakeWaiter()
}

func (p *Producer) wakeWaiter() {
	select {
	case p.room <- struct{}{}:
	default: // one is enough
	}
}

// Staged reports whether records wait in the ring. Any goroutine.
func (p *Producer) Staged() bool { return p.staged() > 0 }

// staged is how many bytes of the ring are in use.
func (p *Producer) staged() int { return int(p.shared.Load()&^shutBit - p.head.Load()) }

func (p *Producer) finished() bool { return p.shared.Load() == p.head.Load()|shutBit }

type drainState int

const (
	drainEmpty   drainState = iota
	drainMore               // the quantum ended first
	drainRefused            // the batcher takes no more now
	drainGone               // empty, and shut
)

// drain moves at most quantum records into b. The batcher's goroutine.
func (p *Producer) drain(b *Batcher, quantum int) (moved int, state drainState) {
	state = drainEmpty
	head, tail := p.head.Load(), p.shared.Load()
	done := Completion{To: p.to}
	from := head
	for head != tail&^shutBit {
		if moved == quantum {
			state = drainMore
			break
		}
		at := head & uint64(len(p.ring)-1)
		if binary.LittleEndian.Uint32(p.ring[at:]) == skipMark {
			head += uint64(len(p.ring)) - at
			continue
		}
		r, token, frame := readFrame(p.ring[at:])
		done.Token = token
		if err := b.Append(&r, done); err != nil {
			if b.Pending() > 0 || isTransient(err) {
				state = drainRefused
				break
			}
			// Closed under the inbox, and all that was queued before has completed.
			p.to.Complete(token, serialize.NoOffset, err)
		}
		head += uint64(frame)
		moved++
	}
	if head != from {
		p.free(head)
	}
	if state == drainEmpty && tail == head|shutBit {
		state = drainGone
	}
	return moved, state
}

// isTransient tells refusals that end from those that do not.
func isTransient(err error) bool {
	return !errors.Is(err, ErrClosed) && !errors.Is(err, serialize.ErrRecordTooLarge)
}

// free gives the ring up to head back to the writer.
func (p *Producer) free(head uint64) {
	p.head.Store(head)
	if p.waiting.Load() && p.staged() <= len(p.ring)/2 && p.waiting.CompareAndSwap(true, false) {
		p.wakeWaiter()
	}
}

// fail completes all that is staged with err. The batcher's goroutine.
func (p *Producer) fail(err error) {
	head, tail := p.head.Load(), p.shared.Load()&^shutBit
	for head != tail {
		at := head & uint64(len(p.ring)-1)
		if binary.LittleEndian.Uint32(p.ring[at:]) == skipMark {
			head += uint64(len(p.ring)) - at
			continue
		}
		_, token, frame := readFrame(p.ring[at:])
		head += uint64(frame)
		p.to.Complete(token, serialize.NoOffset, err)
	}
	p.free(head)
}
