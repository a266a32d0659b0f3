package batcher

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/millrace/millrace/serialize"
)

// producerQuantum is how many records of one producer go into the batcher before
// the next producer has its turn.
const producerQuantum = 64

// InboxOptions configure an Inbox. The zero value of a field means its default.
type InboxOptions struct {
	// StagingBytes is the ring of each producer, rounded up to a power of two. It
	// holds the records that were appended and not yet drained, 32 bytes besides
	// their own for each. At least, and by default, four times the batcher's
	// MaxBatchBytes: then half of the ring always holds the largest record, even
	// with what is skipped at the ring's end.
	StagingBytes int
	// MaxProducers bounds the producers open at a time. Default 1024.
	MaxProducers int
	// Wake makes the batcher's goroutine call Drain soon. It is called on any
	// goroutine, once when records arrive at an empty inbox, not for each; it must
	// not block. Required.
	Wake func()
}

// Inbox lets other goroutines append to a Batcher, through a Producer each.
// Producer may be called on any goroutine; the other methods belong to the
// batcher's.
type Inbox struct {
	b         *Batcher
	opts      InboxOptions
	signaled  atomic.Bool // Wake was called and Drain has not begun since
	mu        sync.Mutex  // guards changes of producers and closed
	producers atomic.Pointer[[]*Producer]
	closed    bool

	first         int // whose turn it is in Drain
	draining      bool
	closing       bool
	closeDeadline int64
}

const defaultMaxProducers = 1024

// NewInbox makes an inbox in front of b, whose Close and Fail are from then on
// the inbox's to call or, for Fail, to share.
func NewInbox(b *Batcher, o InboxOptions) (*Inbox, error) {
	if o.StagingBytes == 0 {
		o.StagingBytes = 4 * b.opts.MaxBatchBytes
	}
	if o.MaxProducers == 0 {
		o.MaxProducers = defaultMaxProducers
	}
	switch {
	case o.Wake == nil:
		return nil, fmt.Errorf("batcher: InboxOptions.Wake is missing")
	case o.StagingBytes < 4*b.opts.MaxBatchBytes:
		return nil, fmt.Errorf("batcher: StagingBytes %d, want at least four times MaxBatchBytes (%d)", o.StagingBytes, b.opts.MaxBatchBytes)
	case o.StagingBytes > 1<<32:
		return nil, fmt.Errorf("batcher: StagingBytes %d, want at most %d", o.StagingBytes, 1<<32)
	case o.MaxProducers < 1:
		return nil, fmt.Errorf("batcher: MaxProducers %d, want at least 1", o.MaxProducers)
	}
	o.StagingBytes = 1 << bits.Len(uint(o.StagingBytes-1))
	in := &Inbox{b: b, opts: o}
	in.producers.Store(&[]*Producer{})
	b.room = append(b.room, in.signal)
	return in, nil
}

// Producer opens a producer whose records complete to to. ErrClosed after Close,
// ErrFull if there are MaxProducers. Any goroutine.
func (in *Inbox) Producer(to Completer) (*Producer, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	old := *in.producers.Load()
	if in.closed {
		return nil, ErrClosed
	}
	if len(old) >= in.opts.MaxProducers {
		return nil, fmt.Errorf("%w: %d producers are open (raise MaxProducers, or close some)", ErrFull, len(old))
	}
	p := newProducer(in, to, in.opts.StagingBytes)
	list := append(old[:len(old):len(old)], p)
	in.producers.Store(&list)
	return p, nil
}

// signal wakes the batcher's goroutine unless that was done since the last Drain.
func (in *Inbox) signal() {
	// The load keeps the line shared among producers that find the inbox signaled.
	if !in.signaled.Load() && in.signaled.CompareAndSwap(false, true) {
		in.opts.Wake()
	}
}

// Drain moves staged records into the batcher, at most about budget of them, and
// returns how many. If it left some for want of budget it calls Wake again; if
// for want of room in the batcher, Wake is called when there is room. Call Flush
// of the batcher afterwards, at the end of the duty cycle. From within a
// Completer it does nothing.
func (in *Inbox) Drain(now int64, budget int) int {
	if in.draining {
		return 0
	}
	in.draining = true
	defer func() { in.draining = false }()
	in.signaled.Store(false) // before looking: what comes later wakes again
	list := *in.producers.Load()
	if in.closing && now >= in.closeDeadline {
		in.giveUp(list)
	}
	moved, gone := 0, false
	more := len(list) > 0
	for more && moved < budget {
		more = false
		for range list {
			if in.first++; in.first >= len(list) {
				in.first = 0
			}
			p := list[in.first]
			n, state := p.drain(in.b, producerQuantum)
			moved += n
			switch state {
			case drainRefused: // the batcher tells when it has room, or completes
				return moved
			case drainMore:
				more = true
			case drainGone:
				gone = true
			}
			if moved >= budget {
				more = true
				break
			}
		}
	}
	switch {
	case more:
		in.signal()
	case gone:
		in.forget()
	}
	if in.closing && !more && len(*in.producers.Load()) == 0 {
		in.b.Close(in.closeDeadline)
	}
	return moved
}

// forget drops the producers that are closed and drained.
func (in *Inbox) forget() {
	in.mu.Lock()
	defer in.mu.Unlock()
	var list []*Producer
	for _, p := range *in.producers.Load() {
		if !p.finished() {
			list = append(list, p)
		}
	}
	in.producers.Store(&list)
}

// Close closes all producers, moves what they staged, and then closes the
// batcher. It goes on in Drain, which must be called with the batcher's Flush
// until Idle; at the Drain of deadline or later what is left completes with
// ErrCloseTimeout.
func (in *Inbox) Close(deadline int64) {
	in.mu.Lock()
	in.closed = true
	list := *in.producers.Load()
	in.mu.Unlock()
	for _, p := range list {
		p.shut()
	}
	if in.closing {
		deadline = min(deadline, in.closeDeadline)
	}
	in.closing, in.closeDeadline = true, deadline
	in.signal()
}

// giveUp completes all that is staged, after all that is queued.
func (in *Inbox) giveUp(list []*Producer) {
	in.b.Fail(ErrCloseTimeout)
	for _, p := range list {
		p.fail(ErrCloseTimeout)
	}
}

// Producers is the number of producers that are open, or closed with records
// staged.
func (in *Inbox) Producers() int { return len(*in.producers.Load()) }

// Idle reports whether nothing is staged or queued.
func (in *Inbox) Idle() bool {
	for _, p := range *in.producers.Load() {
		if p.staged() > 0 {
			return false
		}
	}
	return in.b.Pending() == 0
}

// NextDeadline is the batcher's, or the deadline of Close if that is sooner.
func (in *Inbox) NextDeadline() int64 {
	next := in.b.NextDeadline()
	if at := max(in.closeDeadline, 1); in.closing && !in.Idle() && (next == 0 || at < next) {
		return at
	}
	return next
}

// valid reports whether r can be staged and batched at all.
func (in *Inbox) valid(bytes int) error {
	if bytes > in.b.opts.MaxBatchBytes-serialize.HeaderBytes {
		return serialize.ErrRecordTooLarge
	}
	return nil
}
