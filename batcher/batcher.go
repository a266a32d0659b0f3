package batcher

import (
	"errors"
	"math"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// Sink is where batches go: one link.
type Sink interface {
	// SendBatch takes one encoded batch (see serialize) of records records; id
	// counts up from 1. It must not block. On nil the sink owns b's reference, and
	// Done(id, …) is owed once, possibly before SendBatch returns. On error the
	// batcher keeps b, which must be as it was: with ErrBackpressure the batch is
	// offered again after Writable; any other error completes its records.
	SendBatch(id uint64, b *hugepages.Buf, records int) error
}

// Completer is told what became of records.
type Completer interface {
	// Complete reports the record that was appended with token: its offset in the
	// log, or an error and offset -1. It runs on the batcher's goroutine, once for
	// each record that was taken, in the order of their appending, and must not
	// block. It may call the batcher's methods.
	Complete(token uint64, offset int64, err error)
}

// Completion says whom to tell about a record, and how they call it.
type Completion struct {
	To    Completer
	Token uint64
}

// starvedRetryNanos is how soon to look again for a buffer that the pool did not
// have: others release theirs without telling.
const starvedRetryNanos = int64(time.Millisecond)

// Batcher aggregates records for one Sink. All methods belong to one goroutine;
// they may be called from within the sink's and completers' methods. End it with
// Close or Fail, or the buffer of its open batch stays taken.
type Batcher struct {
	opts    Options
	sink    Sink
	builder *serialize.Builder
	inbox   *Inbox   // in front of it, or nil
	room    []func() // told when there is room after a refusal

	open      *hugepages.Buf // where builder builds; nil between batches
	opened    int64          // the Flush that first saw the open batch's records
	openTimed bool           // opened is set

	// Batches by id: head <= sent <= tail. From head to before sent they are in
	// flight or answered out of order, from sent to before tail they wait for the
	// sink. batches[id % len].
	batches          []batch
	head, sent, tail uint64
	inFlight         int

	// Whom to tell, for every record taken and not completed, in order: a ring that
	// begins at doneHead. The batches' records come first, then the open one's.
	dones    []Completion
	doneHead int
	records  int
	bytes    int // of keys, values and headers

	compressing   compressing
	now           int64
	left          int64 // when the last batch left that was not full
	barriers      []barrier
	held          bool // the inbox holds records back until the link is not busy
	stalled       bool // the sink answered ErrBackpressure
	refused       bool // a record was refused for want of room
	starved       bool // … because the pool had no buffer
	closing       bool
	closeDeadline int64
	sending       bool // inside send
	completing    bool // inside complete
	failing       bool // Fail is completing what there was
	telling       bool // inside tellRoom
}

// barrier is told when the batches before id have completed.
type barrier struct {
	id   uint64
	done chan struct{}
}

type batch struct {
	buf     *hugepages.Buf // nil once the sink has it
	records int
	bytes   int
	done    bool
	base    int64
	err     error
}

// New makes a batcher that sends to sink.
func New(o Options, sink Sink) (*Batcher, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	builder, err := serialize.NewBuilder(o.MaxBatchRecords)
	if err != nil {
		return nil, err
	}
	b := &Batcher{
		opts: o, sink: sink, builder: builder, head: 1, sent: 1, tail: 1, left: math.MinInt64 / 2,
		// One more than MaxBatches, for the open batch when Fail closes it.
		batches: make([]batch, o.MaxBatches+1), dones: make([]Completion, o.MaxQueuedRecords),
	}
	if o.OnWritable != nil {
		b.room = append(b.room, o.OnWritable)
	}
	return b, nil
}

// Append copies r into the open batch; done.To.Complete tells what became of it.
// A batch that is full leaves at once, others with Flush. On error nothing was
// taken and nothing will be told: ErrFull (wait for OnWritable),
// serialize.ErrRecordTooLarge, ErrClosed, or the pool's hugepages.ErrExhausted
// (wait for OnWritable). While Fail reports, Append answers ErrFull.
func (b *Batcher) Append(r *serialize.Record, done Completion) error {
	bytes := len(r.Key) + len(r.Value) + len(r.Headers)
	switch {
	case b.closing:
		b.refused = b.records > 0 // an inbox looks again when these completed
		return ErrClosed
	case bytes > b.opts.MaxBatchBytes-serialize.HeaderBytes:
		return serialize.ErrRecordTooLarge
	case b.records == len(b.dones) || bytes > b.opts.MaxQueuedBytes-b.bytes || b.failing:
		b.refused = true
		return ErrFull
	}
	if b.open == nil {
		if err := b.begin(); err != nil {
			return err
		}
	}
	if err := b.builder.Append(r); err != nil {
		if !errors.Is(err, serialize.ErrFull) {
			return err
		}
		if err := b.appendToNext(r); err != nil {
			return err
		}
	}
	b.take(bytes, done)
	if b.builder.Len() == b.opts.MaxBatchRecords {
		b.closeOpen()
	}
	if b.sent != b.tail {
		b.send()
	}
	return nil
}

// appendToNext closes the full open batch and appends r to a new one.
func (b *Batcher) appendToNext(r *serialize.Record) error {
	if !b.closeOpen() {
		b.refused = true
		return ErrFull
	}
	err := b.begin()
	if err == nil {
		err = b.builder.Append(r)
	}
	if err != nil {
		b.send() // what was closed is not held up
	}
	return err
}

// begin opens a batch.
func (b *Batcher) begin() error {
	buf, err := b.opts.Pool.Get(b.opts.MaxBatchBytes, hugepages.Batch)
	if err != nil {
		b.refused, b.starved = true, true
		return err
	}
	b.open, b.openTimed, b.starved = buf, false, false
	b.builder.Reset(buf.Bytes())
	return nil
}

// closeOpen finishes the open batch, which is not empty, and queues it for the
// sink. false: there are MaxBatches already, and it stays open.
func (b *Batcher) closeOpen() bool {
	if int(b.tail-b.head) >= b.opts.MaxBatches {
		return false
	}
	x := batch{buf: b.open, records: b.builder.Len(), bytes: b.builder.PayloadBytes()}
	b.closeBuf(x.buf, x.records, len(b.builder.Finish()))
	b.open = nil
	*b.batch(b.tail) = x
	b.tail++
	return true
}

func (b *Batcher) batch(id uint64) *batch { return &b.batches[id%uint64(len(b.batches))] }

// send offers closed batches to the sink, in order, until it takes no more.
func (b *Batcher) send() {
	if b.sending {
		return
	}
	b.sending = true
	for !b.stalled && b.sent != b.tail {
		id := b.sent
		x := b.batch(id)
		buf := x.buf
		x.buf = nil
		b.sent++ // before the call: Done may come from within
		b.inFlight++
		err := b.sink.SendBatch(id, buf, x.records)
		switch {
		case err == nil:
		case id < b.head || x.done: // given up by Fail from within
			buf.Release()
		case errors.Is(err, ErrBackpressure):
			x.buf = buf
			b.sent--
			b.inFlight--
			b.stalled = true
		default:
			buf.Release()
			b.settle(id, serialize.NoOffset, err)
		}
	}
	b.sending = false
}

// Writable says that the sink takes batches again after ErrBackpressure; waiting
// ones are offered at once.
func (b *Batcher) Writable() {
	b.stalled = false
	b.send()
	b.letGo()
}

// letGo makes the inbox look again at records that waited for the link.
func (b *Batcher) letGo() {
	if b.held && b.inFlight < b.opts.PartialInFlight && !b.stalled {
		b.held = false
		b.inbox.opts.Wake()
	}
}

// Done answers a batch: its records complete with baseOffset, baseOffset+1 … or,
// if err is not nil, with err. If an earlier batch is not answered yet they wait
// for it. ErrUnknownBatch if it is not in flight; nothing happens then.
func (b *Batcher) Done(id uint64, baseOffset int64, err error) error {
	if id < b.head || id >= b.sent || b.batch(id).done {
		return ErrUnknownBatch
	}
	b.settle(id, baseOffset, err)
	return nil
}

func (b *Batcher) settle(id uint64, baseOffset int64, err error) {
	x := b.batch(id)
	x.done, x.base, x.err = true, baseOffset, err
	b.inFlight--
	b.complete()
	b.letGo()
}

// complete tells about the records of answered batches, in order.
func (b *Batcher) complete() {
	if b.completing {
		return
	}
	b.completing = true
	for b.head != b.sent && b.batch(b.head).done {
		x := *b.batch(b.head)
		b.head++
		b.bytes -= x.bytes
		for i := range x.records {
			c := b.dones[b.doneHead]
			b.dones[b.doneHead] = Completion{}
			if b.doneHead++; b.doneHead == len(b.dones) {
				b.doneHead = 0
			}
			if b.records--; b.records == 0 {
				b.doneHead = 0 // where the cache still has it
			}
			if x.err != nil {
				c.To.Complete(c.Token, serialize.NoOffset, x.err)
			} else {
				c.To.Complete(c.Token, x.base+int64(i), nil)
			}
		}
	}
	b.completing, b.failing = false, false
	for len(b.barriers) > 0 && b.barriers[0].id <= b.head {
		close(b.barriers[0].done)
		b.barriers = b.barriers[1:]
	}
	b.tellRoom()
}

// barrier closes done when all that was appended so far has completed, and sends
// the open batch without waiting for anything.
func (b *Batcher) barrier(done chan struct{}) {
	if b.open != nil && b.builder.Len() > 0 && !b.closeOpen() {
		b.barriers = append(b.barriers, barrier{b.tail + 1, done})
		return
	}
	b.barriers = append(b.barriers, barrier{b.tail, done})
	b.send()
	b.complete()
}

// tellRoom ends a refusal if there is room again.
func (b *Batcher) tellRoom() {
	o := &b.opts
	if !b.refused || b.failing || b.telling || b.records > len(b.dones)/2 || b.bytes > o.MaxQueuedBytes/2 || int(b.tail-b.head) > o.MaxBatches/2 {
		return
	}
	if b.starved && !b.closing && b.open == nil {
		if b.begin() != nil {
			return
		}
	}
	b.refused, b.telling = false, true
	for _, f := range b.room {
		f()
	}
	b.telling = false
}

// Flush is called at the end of a duty cycle and at NextDeadline, with the
// current time in nanoseconds of whatever monotonic clock the owner uses. It
// sends the open batch if it is due.
func (b *Batcher) Flush(now int64) {
	b.now = now
	if b.closing && now >= b.closeDeadline && b.records > 0 {
		b.Fail(ErrCloseTimeout)
		return
	}
	if b.open != nil && b.builder.Len() > 0 {
		if !b.openTimed {
			b.opened, b.openTimed = now, true
		}
		if (b.due(b.opened) || b.builder.Len() == b.opts.MaxBatchRecords || b.urged()) && b.closeOpen() {
			b.left = now
			b.send()
		}
	}
	b.tellRoom()
}

// due says whether a batch that is not full leaves now, the records of which were
// first seen at opened. While the sink takes nothing it does better to grow.
func (b *Batcher) due(opened int64) bool {
	if b.stalled {
		return false
	}
	at, ok := b.dueAt(opened)
	return b.closing || ok && b.now >= at
}

// dueAt is when it leaves as things are; not ok: when the link is not busy any
// more.
func (b *Batcher) dueAt(opened int64) (at int64, ok bool) {
	o := &b.opts
	switch {
	case b.stalled:
		return 0, false
	case b.inFlight < o.PartialInFlight:
		at = opened + int64(o.Linger)
	case o.MaxDelay > 0:
		at = opened + int64(o.MaxDelay)
	default:
		return 0, false
	}
	return max(at, b.left+int64(o.MinInterval)), true
}

// urged says that somebody waits for the open batch.
func (b *Batcher) urged() bool {
	return len(b.barriers) > 0 && b.barriers[len(b.barriers)-1].id > b.tail && !b.stalled
}

// NextDeadline is the time at which Flush must be called even if nothing
// happens; 0 if there is none. It holds until the next call of another method.
func (b *Batcher) NextDeadline() int64 {
	var next int64
	until := func(at int64) {
		if at = max(at, 1); next == 0 || at < next {
			next = at
		}
	}
	if b.closing && b.records > 0 {
		until(b.closeDeadline)
	}
	if b.starved {
		until(b.now + starvedRetryNanos)
	}
	if b.open != nil && b.builder.Len() > 0 && b.openTimed && int(b.tail-b.head) < b.opts.MaxBatches {
		if at, ok := b.dueAt(b.opened); ok {
			until(at)
		}
	}
	return next
}

// Fail gives up everything that was appended, for instance because the link is
// lost: all records complete with err, those in flight too, although they may
// have arrived. Answers that come later get ErrUnknownBatch. The batcher can be
// used on; ids go on counting.
func (b *Batcher) Fail(err error) {
	for id := b.head; id != b.tail; id++ {
		x := b.batch(id)
		if x.buf != nil {
			x.buf.Release()
			x.buf = nil
		}
		if !x.done {
			x.done, x.err = true, err
		}
	}
	if b.open != nil {
		if n := b.builder.Len(); n > 0 {
			*b.batch(b.tail) = batch{records: n, bytes: b.builder.PayloadBytes(), done: true, err: err}
			b.tail++
		}
		b.dropOpen()
	}
	b.sent, b.inFlight, b.stalled = b.tail, 0, false
	b.failing = true
	b.complete()
	b.letGo()
}

func (b *Batcher) dropOpen() {
	b.builder.Reset(nil)
	b.open.Release()
	b.open = nil
}

// Close refuses further records and sends what is open without waiting for the
// link to be idle. What is not answered at the Flush of deadline or later
// completes with ErrCloseTimeout. Pending tells when all is done; the owner keeps
// calling Done, Writable and Flush until then.
func (b *Batcher) Close(deadline int64) {
	if b.closing {
		b.closeDeadline = min(b.closeDeadline, deadline)
		return
	}
	b.closing, b.closeDeadline = true, deadline
	b.starved = false
	switch {
	case b.open == nil:
	case b.builder.Len() == 0:
		b.dropOpen()
	case !b.stalled && b.closeOpen():
		b.send()
	}
}

// Pending is the number of records taken and not completed.
func (b *Batcher) Pending() int { return b.records }

// PendingBytes is the bytes of their keys, values and headers.
func (b *Batcher) PendingBytes() int { return b.bytes }

// InFlight is the number of batches that the sink took and nobody answered.
func (b *Batcher) InFlight() int { return b.inFlight }
