package batcher

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// InboxOptions configure an Inbox. The zero value of a field means its default.
type InboxOptions struct {
	// Stages is how many batches producers may have filled, or be filling, that the
	// batcher has not taken yet. Beyond, Append answers ErrFull. Each takes a buffer
	// of MaxBatchBytes while it holds records, and 64 bytes for each of
	// MaxBatchRecords from the start, however many producers there are. At least 2.
	// Default 4, or where batches are smaller as many as hold 512 records, at most 256.
	Stages int
	// MaxProducers bounds the producers open at a time. Default 1024.
	MaxProducers int
	// Wake makes the batcher's goroutine call Drain soon. It is called on any
	// goroutine, once when records arrive at an empty inbox, not for each, and not
	// while they wait for the link; it must not block, nor call the inbox. Required.
	Wake func()
	// Borrow, if set, is called when a record arrives and nothing waits: if the
	// batcher's goroutine is at rest, it calls send in its place and returns what that
	// returned, else false. now is as for Drain. A record that finds the link idle
	// leaves so without a wake-up; if cheap, as where sending takes no system call, one
	// that fills its batch by itself need not find it idle. No Completer is told meanwhile, provided that the
	// sink answers nothing from within SendBatch, nor refuses a batch with an error
	// other than ErrBackpressure. Like Wake it must not block.
	Borrow func(send func(now int64, cheap bool) bool) bool
}

// Inbox lets other goroutines append to a Batcher, through a Producer each.
// Producer and Producers may be called on any goroutine; the other methods belong
// to the batcher's.
//
// The batches that its producers fill follow the rules of Options, as those do
// that the batcher's own Append fills.
type Inbox struct {
	b        *Batcher
	opts     InboxOptions
	builder  *serialize.Builder
	open     atomic.Pointer[stage] // the one being filled; sealed where there is none
	signaled atomic.Int32          // unknown, held or woken

	// Once for each batch, not for each record, mu is taken by whoever opens, seals
	// or takes a stage. No method of the batcher is called with it.
	mu        sync.Mutex
	queue     []*stage // oldest first; the last may be open
	spare     []*stage // without a buffer
	opened    uint64
	producers int
	waiters   []*Producer
	flushes   []flush // asked for, in order
	starved   bool    // the pool had no buffer for a stage
	closed    bool

	// The batcher's goroutine's own.
	drained       int64  // the Drain that last took a stage
	seen          int64  // the Drain that first saw the open stage's records
	seenSeq       uint64 // of which stage
	draining      bool
	closing       bool
	closeDeadline int64
}

// flush is told when the stages up to one have completed.
type flush struct {
	upTo uint64
	done chan struct{}
}

const (
	minStages           = 4
	maxStages           = 256
	stagedRecords       = 512
	defaultMaxProducers = 1024
)

// NewInbox makes an inbox in front of b, whose Close is from then on the inbox's
// to call.
func NewInbox(b *Batcher, o InboxOptions) (*Inbox, error) {
	if o.Stages == 0 {
		o.Stages = max(minStages, min(stagedRecords/b.opts.MaxBatchRecords, maxStages))
	}
	if o.MaxProducers == 0 {
		o.MaxProducers = defaultMaxProducers
	}
	switch {
	case o.Wake == nil:
		return nil, fmt.Errorf("batcher: InboxOptions.Wake is missing")
	case o.Stages < 2 || o.Stages > 1024:
		return nil, fmt.Errorf("batcher: Stages %d, want 2 to 1024", o.Stages)
	case o.MaxProducers < 1:
		return nil, fmt.Errorf("batcher: MaxProducers %d, want at least 1", o.MaxProducers)
	}
	builder, err := serialize.NewBuilder(b.opts.MaxBatchRecords)
	if err != nil {
		return nil, err
	}
	in := &Inbox{b: b, opts: o, builder: builder}
	for range o.Stages {
		s := &stage{rows: make([]row, b.opts.MaxBatchRecords)}
		s.claimed.Store(sealedBit)
		in.spare = append(in.spare, s)
	}
	in.open.Store(in.spare[0])
	b.room = append(b.room, o.Wake)
	b.inbox = in
	return in, nil
}

// Producer opens a producer whose records complete to to. ErrClosed after Close,
// ErrFull if there are MaxProducers.
func (in *Inbox) Producer(to Completer) (*Producer, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil, ErrClosed
	}
	if in.producers >= in.opts.MaxProducers {
		return nil, fmt.Errorf("%w: %d producers are open (raise MaxProducers, or close some)", ErrFull, in.producers)
	}
	in.producers++
	p := &Producer{in: in, to: to, room: make(chan struct{}, 1)}
	p.lone.send = p.sendAlone
	return p, nil
}

// Producers is the number of producers that are open.
func (in *Inbox) Producers() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.producers
}

// fits says whether a record of bytes bytes can follow n records of together at
// bytes. An empty batch takes any that is not too large.
func (in *Inbox) fits(n, at, bytes int) bool {
	o := &in.b.opts
	return n == 0 || n < o.MaxBatchRecords && serialize.HeaderBytes+at+bytes+columnBytes(n+1) <= o.MaxBatchBytes
}

// turn seals s, which is full or was sealed before, and opens another stage.
// ErrFull: there is none, or no memory for it (then hugepages.ErrExhausted, too).
func (in *Inbox) turn(s *stage) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return ErrClosed
	case in.open.Load() != s:
		return nil
	}
	if s.claimed.Or(sealedBit)&sealedBit == 0 {
		in.opts.Wake() // it leaves without waiting for anything
	}
	switch {
	case in.openNext():
		return nil
	case len(in.spare) > 0:
		return errStarved
	}
	return ErrFull
}

// openNext opens a stage, if there is one and memory for it, where none is open;
// mu is held.
func (in *Inbox) openNext() bool {
	if len(in.spare) == 0 {
		return false
	}
	buf, err := in.b.opts.Pool.Get(in.b.opts.MaxBatchBytes, hugepages.Batch)
	if err != nil {
		if !in.starved {
			in.starved = true // Drain tries again
			in.opts.Wake()
		}
		return false
	}
	in.starved = false
	s := in.spare[len(in.spare)-1]
	in.spare = in.spare[:len(in.spare)-1]
	in.queue = append(in.queue, s)
	in.opened++
	s.buf, s.payload, s.written = buf, buf.Bytes()[serialize.HeaderBytes:], 0
	s.seq.Store(in.opened)
	s.hungry.Store(0)
	s.claimed.Store(0)
	in.open.Store(s)
	return true
}

// Drain takes the batches that are due, or full, into the batcher, which sends
// them, and returns how many records those had. Call it on a wake-up, after an
// answer or Writable, and at the time of NextDeadline, before the batcher's Flush.
// From within a Completer it does nothing; Wake will be called.
func (in *Inbox) Drain(now int64) int {
	if in.draining || in.b.completing {
		in.opts.Wake()
		return 0
	}
	in.draining = true
	defer func() { in.draining = false }()
	in.signaled.Store(unknown) // before looking: what comes later wakes again
	in.b.now = now
	if in.closing && now >= in.closeDeadline {
		in.b.Fail(ErrCloseTimeout)
		in.failStages(ErrCloseTimeout)
	}
	moved, stages := 0, 0
	for s := in.due(); s != nil && s.whole() && in.take(s); s = in.due() {
		n, _, _ := claims(s.claimed.Load())
		moved += n
		in.recycle(s)
		// Producers may be faster than this goroutine: it has other things to do.
		if stages++; stages == in.opts.Stages {
			in.signal(true)
			break
		}
	}
	if stages > 0 {
		in.drained = now
	}
	in.passFlushes()
	if in.closing && in.takenUpTo(math.MaxUint64) {
		in.b.Close(in.closeDeadline)
	}
	return moved
}

// due is the oldest stage if it is to be taken now; it is sealed then.
func (in *Inbox) due() *stage {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.starved && len(in.waiters) > 0 {
		in.feed()
	}
	if len(in.queue) == 0 {
		return nil
	}
	s := in.queue[0]
	n, _, sealed := claims(s.claimed.Load())
	if sealed {
		return s
	}
	if n == 0 {
		return nil
	}
	seq := s.seq.Load()
	if in.seenSeq != seq {
		in.seen, in.seenSeq = in.b.now, seq
	}
	urged := len(in.flushes) > 0 && in.flushes[len(in.flushes)-1].upTo >= seq
	if !urged && !in.b.due(in.seen) {
		// Producers need not wake the loop for what waits for the link or for its time:
		// the batcher does when the link answers, and NextDeadline tells the time.
		in.b.held = true
		in.signaled.Store(held)
		return nil
	}
	s.claimed.Or(sealedBit)
	in.b.left = in.b.now
	return s
}

// take makes a batch of s, whole and sealed, and queues it; false: the batcher has
// no room and will wake the loop when it has.
func (in *Inbox) take(s *stage) bool {
	b := in.b
	n, bytes, _ := claims(s.claimed.Load())
	if b.closing {
		if b.records > 0 {
			b.refused = true // it tells when those have completed
			return false
		}
		in.fail(s, ErrClosed)
		return true
	}
	if n == 0 { // sealed by Close before anything came
		in.fail(s, nil)
		return true
	}
	if b.open != nil && b.builder.Len() > 0 && b.closeOpen() {
		b.send()
	}
	if b.failing || b.open != nil && b.builder.Len() > 0 || int(b.tail-b.head) >= b.opts.MaxBatches ||
		b.records+n > len(b.dones) || bytes > b.opts.MaxQueuedBytes-b.bytes {
		b.refused = true
		return false
	}
	if err := in.encode(s, n); err != nil {
		if b.records > 0 {
			b.refused = true
			return false
		}
		in.fail(s, err)
		return true
	}
	for i := range s.rows[:n] {
		w := &s.rows[i]
		b.take(int(w.key+w.value+w.headers), Completion{w.to, w.token})
		w.to = nil
		w.written.Store(0)
	}
	*b.batch(b.tail) = batch{buf: s.buf, records: n, bytes: bytes}
	b.tail++
	s.buf = nil
	b.send()
	return true
}

// encode completes the batch around the records, which lie where the builder puts
// them: copying a slice onto itself copies nothing.
func (in *Inbox) encode(s *stage, n int) error {
	in.builder.Reset(s.buf.Bytes())
	for i := range s.rows[:n] {
		w := &s.rows[i]
		r := w.record(s.payload)
		if err := in.builder.Append(&r); err != nil {
			return fmt.Errorf("batcher: a record that had its place was refused: %w", err)
		}
		if at := int(w.at + w.key + w.value + w.headers); in.builder.PayloadBytes() != at {
			return fmt.Errorf("batcher: a record was moved: it ends at %d, not at %d", in.builder.PayloadBytes(), at)
		}
	}
	in.b.closeBuf(s.buf, n, len(in.builder.Finish()))
	return nil
}

// fail completes the records of a whole stage with err.
func (in *Inbox) fail(s *stage, err error) {
	n, _, _ := claims(s.claimed.Load())
	s.buf.Release()
	s.buf = nil
	for i := range s.rows[:n] {
		w := &s.rows[i]
		to, token := w.to, w.token
		w.to = nil
		w.written.Store(0)
		to.Complete(token, serialize.NoOffset, err)
	}
}

// failStages completes all that is staged, oldest first, up to what is still being
// written; whoever writes it wakes the loop.
func (in *Inbox) failStages(err error) {
	for {
		in.mu.Lock()
		var s *stage
		if len(in.queue) > 0 {
			s = in.queue[0]
			s.claimed.Or(sealedBit)
		}
		in.mu.Unlock()
		if s == nil || !s.whole() {
			return
		}
		in.fail(s, err)
		in.recycle(s)
	}
}

// recycle makes s, the oldest stage, a spare one, and lets producers go on that
// waited for that.
func (in *Inbox) recycle(s *stage) {
	in.mu.Lock()
	defer in.mu.Unlock()
	s.payload = nil
	in.queue = append(in.queue[:0], in.queue[1:]...)
	in.spare = append(in.spare, s)
	in.feed()
}

// feed opens a stage for the producers that wait, and wakes them; mu is held.
func (in *Inbox) feed() {
	if len(in.waiters) == 0 || !in.closed && in.open.Load().sealed() && !in.openNext() {
		return
	}
	in.open.Load().hungry.Store(int32(len(in.waiters)))
	for i, p := range in.waiters {
		p.wake()
		in.waiters[i] = nil
	}
	in.waiters = in.waiters[:0]
}

// passFlushes tells the batcher about the flushes of which it has all records.
func (in *Inbox) passFlushes() {
	for {
		in.mu.Lock()
		if len(in.flushes) == 0 || !in.takenLocked(in.flushes[0].upTo) {
			in.mu.Unlock()
			return
		}
		f := in.flushes[0]
		in.flushes = in.flushes[1:]
		in.mu.Unlock()
		in.b.barrier(f.done)
	}
}

// takenUpTo reports whether the batcher has the records of all stages up to seq.
func (in *Inbox) takenUpTo(seq uint64) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.takenLocked(seq)
}

func (in *Inbox) takenLocked(seq uint64) bool {
	if len(in.queue) == 0 || in.queue[0].seq.Load() > seq {
		return true
	}
	n, _, sealed := claims(in.queue[0].claimed.Load())
	return n == 0 && !sealed // open and empty: the only one
}

// Seal takes what was staged so far into the batcher now, however few records
// those are, and reports whether the batcher has it all. If not, Drain goes on
// with it.
func (in *Inbox) Seal(now int64) bool {
	in.mu.Lock()
	upTo := in.opened
	if n := len(in.queue); n > 0 {
		if records, _, _ := claims(in.queue[n-1].claimed.Load()); records > 0 {
			in.queue[n-1].claimed.Or(sealedBit)
		}
	}
	in.mu.Unlock()
	in.Drain(now)
	return in.takenUpTo(upTo)
}

// Close refuses further records, sends what was staged, and then closes the
// batcher. It goes on in Drain, which must be called with the batcher's Flush
// until Idle; at the Drain of deadline or later what is left completes with
// ErrCloseTimeout.
func (in *Inbox) Close(deadline int64) {
	in.mu.Lock()
	in.closed = true
	in.open.Load().claimed.Or(sealedBit)
	in.feed()
	in.mu.Unlock()
	if in.closing {
		deadline = min(deadline, in.closeDeadline)
	}
	in.closing, in.closeDeadline = true, deadline
	in.opts.Wake()
}

// Idle reports whether nothing is staged or queued.
func (in *Inbox) Idle() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, s := range in.queue {
		if n, _, sealed := claims(s.claimed.Load()); n > 0 || sealed {
			return false
		}
	}
	return in.b.Pending() == 0
}

// NextDeadline is when Drain and Flush must be called even if nothing happens, as
// the batcher's; 0 if there is no such time.
func (in *Inbox) NextDeadline() int64 {
	next := in.b.NextDeadline()
	until := func(at int64) {
		if at = max(at, 1); next == 0 || at < next {
			next = at
		}
	}
	in.mu.Lock()
	if in.starved && len(in.waiters) > 0 {
		until(in.b.now + starvedRetryNanos)
	}
	if len(in.queue) > 0 && in.queue[0].seq.Load() == in.seenSeq && !in.queue[0].sealed() {
		if at, ok := in.b.dueAt(in.seen); ok {
			until(at)
		}
	}
	in.mu.Unlock()
	if in.closing && !in.Idle() {
		until(in.closeDeadline)
	}
	return next
}
