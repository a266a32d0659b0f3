package broker

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// lane is a link's way for one topic: small records and batches are aggregated,
// large ones go straight, in the order in which they came.
type lane struct {
	link    *link
	topic   string
	batcher *batcher.Batcher
	inbox   *batcher.Inbox // what a Client's producers append to; else nil
}

// lane returns the lane of topic. Names are checked by the caller.
func (l *link) lane(topic string) (*lane, error) {
	if la := l.lanes[topic]; la != nil {
		return la, nil
	}
	if len(l.lanes) >= maxLanes {
		l.dropIdleLane()
		if len(l.lanes) >= maxLanes {
			return nil, &wire.Error{Code: wire.TooManyTopics, A: maxLanes,
				Text: fmt.Sprintf("%d topics are being produced to at once over one link: use fewer", maxLanes)}
		}
	}
	la := &lane{link: l, topic: topic}
	o := l.batch
	o.Pool = l.pool
	// Only noted, because it may come from within an append.
	o.OnWritable = func() { l.touched = true; l.roomLater() }
	b, err := batcher.New(o, la)
	if err != nil {
		return nil, err
	}
	la.batcher = b
	l.lanes[topic] = la
	return la, nil
}

func (l *link) dropIdleLane() {
	for name, la := range l.lanes {
		if la.inbox == nil && la.batcher.Pending() == 0 {
			la.batcher.Close(0)
			delete(l.lanes, name)
			return
		}
	}
}

// roomLater runs onRoom in the next duty cycle.
func (l *link) roomLater() {
	if !l.roomOwed {
		l.roomOwed = true
		l.loop.At(l.loop.Now(), func() { l.roomOwed = false; l.room() })
	}
}

// minBackendHeadroom is left in front of a request for the transport's headers.
const minBackendHeadroom = 32

// SendBatch implements batcher.Sink: the request's header goes in front of the
// batch, where the buffer has room for it.
func (la *lane) SendBatch(id uint64, b *hugepages.Buf, _ int) error {
	l := la.link
	head := wire.ProduceHeaderBytes(la.topic)
	c := call{lane: la, batch: id, sentAt: l.loop.Clock()}
	if b.Headroom() < head+minBackendHeadroom {
		return la.sendCopy(b, head, c)
	}
	wire.AppendProduceHeader(b.Prepend(head)[:0], 0, la.topic)
	err := l.send(b, c)
	if err != nil {
		b.TrimFront(head)
	}
	return sinkError(err)
}

// sendCopy is for topic names that are too long for the headroom.
func (la *lane) sendCopy(b *hugepages.Buf, head int, c call) error {
	long, err := la.link.pool.Get(head+b.Len(), hugepages.Send)
	if err != nil {
		la.link.loop.After(retryAfter, la.link.writable)
		return batcher.ErrBackpressure
	}
	copy(wire.AppendProduceHeader(long.Bytes()[:0], 0, la.topic)[head:head+b.Len()], b.Bytes())
	if err := la.link.send(long, c); err != nil {
		long.Release()
		return sinkError(err)
	}
	b.Release()
	return nil
}

func sinkError(err error) error {
	if errors.Is(err, netpoll.ErrBackpressure) {
		return batcher.ErrBackpressure
	}
	return err
}

// Results of sending that mean "not now".
func busy(err error) bool {
	return errors.Is(err, batcher.ErrFull) || errors.Is(err, hugepages.ErrExhausted) || errors.Is(err, netpoll.ErrBackpressure)
}

// append takes one record; done is told of it, on the loop's goroutine. Errors
// that are busy: nothing was taken, try again after onRoom.
func (la *lane) append(r *serialize.Record, done batcher.Completion) error {
	l := la.link
	if l.state != linkUp {
		return l.unreachable()
	}
	l.touched = true
	err := la.batcher.Append(r, done)
	if !errors.Is(err, serialize.ErrRecordTooLarge) {
		return err
	}
	bytes := serialize.HeaderBytes + len(r.Key) + len(r.Value) + len(r.Headers) + 32
	if bytes > int(l.peer.MaxFrameBytes)-frameOverhead {
		return fmt.Errorf("%w (it makes a batch of %d bytes, %s takes %d)", ErrValueTooLarge, bytes, l.url, int(l.peer.MaxFrameBytes)-frameOverhead)
	}
	if !la.batcher.Seal() {
		return batcher.ErrFull
	}
	if l.single == nil {
		if l.single, err = serialize.NewBuilder(1); err != nil {
			return err
		}
	}
	b, err := la.frame(bytes)
	if err != nil {
		return err
	}
	head := wire.ProduceHeaderBytes(la.topic)
	l.single.Reset(b.Bytes()[head:])
	if err := l.single.Append(r); err != nil {
		b.Release()
		return err
	}
	b.Resize(head + len(l.single.Finish()))
	return la.straight(b, &single{done})
}

// batchReply is told what became of a batch: of each record of an aggregated one
// as a batcher.Completer, else of the whole as a replier.
type batchReply interface {
	batcher.Completer
	replier
}

// appendBatch takes a whole batch, whose records get successive offsets. A small
// one joins the open batch, record by record; a larger one goes as it is. Errors
// as append's.
func (la *lane) appendBatch(batch *serialize.Batch, reply batchReply) error {
	l := la.link
	if l.state != linkUp {
		return l.unreachable()
	}
	l.touched = true
	if len(batch.Bytes()) <= l.batch.MaxBatchBytes/passShare {
		err := la.batcher.Reserve(batch.Len(), batch.PayloadBytes())
		if err == nil {
			return la.appendRecords(batch, batcher.Completion{To: reply})
		}
		if !errors.Is(err, serialize.ErrRecordTooLarge) {
			return err
		}
	}
	if n, limit := len(batch.Bytes()), int(l.peer.MaxFrameBytes)-frameOverhead; n > limit {
		return tooLarge(n, limit)
	}
	if !la.batcher.Seal() {
		return batcher.ErrFull
	}
	b, err := la.frame(len(batch.Bytes()))
	if err != nil {
		return err
	}
	copy(b.Bytes()[wire.ProduceHeaderBytes(la.topic):], batch.Bytes())
	return la.straight(b, reply)
}

// passShare: a batch of at least 1/4 of the size at which ours close gains
// nothing from being taken apart.
const passShare = 4

func (la *lane) appendRecords(batch *serialize.Batch, done batcher.Completion) error {
	for cursor := batch.Cursor(); cursor.Next(); {
		r := cursor.Record()
		if err := la.batcher.Append(&r, done); err != nil {
			return fmt.Errorf("broker: a reserved record was refused: %w", err)
		}
	}
	return nil
}

// frame is a Produce with room for a batch of n bytes.
func (la *lane) frame(n int) (*hugepages.Buf, error) {
	b, err := la.link.pool.Get(wire.ProduceHeaderBytes(la.topic)+n, hugepages.Send)
	if err != nil {
		la.link.loop.After(retryAfter, la.link.room)
		return nil, err
	}
	wire.AppendProduceHeader(b.Bytes()[:0], 0, la.topic)
	return b, nil
}

func (la *lane) straight(b *hugepages.Buf, reply replier) error {
	err := la.link.send(b, call{reply: reply})
	if err != nil {
		b.Release()
	}
	return err
}

// single is a record that went straight.
type single struct{ done batcher.Completion }

func (s *single) acked(base uint64)                 { s.done.To.Complete(s.done.Token, int64(base), nil) }
func (s *single) failed(e *wire.Error)              { s.done.To.Complete(s.done.Token, serialize.NoOffset, e) }
func (s *single) response(*netpoll.Message, []byte) { s.failed(&errNotAnAck) }

var errNotAnAck = wire.Error{Code: wire.OutcomeUnknown, Text: "the answer to a Produce was of another kind"}
