package broker

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

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
	l.order = append(l.order, la)
	return la, nil
}

// addInbox makes the inbox of a Client's producers; wake makes the loop drain it.
func (la *lane) addInbox(wake func()) error {
	l := la.link
	borrow := func(send func(now int64, cheap bool) bool) bool {
		return l.loop.Borrow(func(now int64) bool {
			if l.state != linkUp {
				return false
			}
			ok, cheap := l.conn.Lends()
			return ok && send(now, cheap)
		})
	}
	in, err := batcher.NewInbox(la.batcher, batcher.InboxOptions{Wake: wake, Borrow: borrow})
	if err == nil {
		la.inbox = in
	}
	return err
}

// dropIdleLane drops the oldest lane that nobody uses.
func (l *link) dropIdleLane() {
	for i, la := range l.order {
		if (la.inbox == nil || la.inbox.Producers() == 0 && la.inbox.Idle()) && la.batcher.Pending() == 0 {
			la.batcher.Close(0)
			delete(l.lanes, la.topic)
			l.order = slices.Delete(l.order, i, i+1)
			l.roomLater() // it may have owed that to somebody
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
	c := call{lane: la, batch: id, sentAt: l.clock()}
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
	payload := len(r.Key) + len(r.Value) + len(r.Headers)
	if bytes, limit := serialize.HeaderBytes+payload, l.maxBatch(); bytes > limit {
		return fmt.Errorf("%w (it makes a batch of %d bytes, the way to %s takes %d)", ErrValueTooLarge, bytes, l.url, limit)
	}
	return la.batcher.Put(r, done)
}

// batchReply is told what became of a batch: of each record of an aggregated one
// as a batcher.Completer, else of the whole.
type batchReply interface {
	batcher.Completer
	produceReply
}

// appendBatch takes the batch of a Produce, whose frame is the message m; its
// records get successive offsets. A small one joins the open batch, record by
// record; a larger one, and a compressed one, whose records mean nothing, goes as it
// is. Errors as append's.
func (la *lane) appendBatch(m *netpoll.Message, batch serialize.Info, records *serialize.Batch, reply batchReply) error {
	l := la.link
	if l.state != linkUp {
		return l.unreachable()
	}
	l.touched = true
	if batch.Compression == serialize.None && l.gathers(batch) {
		err := la.batcher.Reserve(batch.Records, records.PayloadBytes())
		if err == nil {
			la.appendRecords(records, reply)
			return nil
		}
		if !errors.Is(err, serialize.ErrRecordTooLarge) {
			return err
		}
	}
	if n, limit := batch.PlainBytes, l.maxBatch(); n > limit {
		return tooLarge(n, limit)
	}
	if !la.batcher.Seal() {
		return batcher.ErrFull
	}
	err := l.pass(m, call{produce: reply, sentAt: l.clock()})
	if err == nil {
		l.passed.Add(1)
	}
	return err
}

// pass sends a received request on. One that has a buffer to itself goes in it;
// others are copied.
func (l *link) pass(m *netpoll.Message, c call) error {
	frame := m.Data
	if b := m.Buf; ownBuffer(m, frame) {
		h, err := wire.ParseHeader(frame)
		if err != nil {
			return err
		}
		if err := l.send(b.Retain(), c); err != nil {
			b.Release()
			wire.SetCorrelation(frame, h.Correlation) // it may be tried again
			return err
		}
		return nil
	}
	b, err := l.pool.Get(len(frame), hugepages.Send)
	if err != nil {
		return err
	}
	copy(b.Bytes(), frame)
	if err := l.send(b, c); err != nil {
		b.Release()
		return err
	}
	return nil
}

// ownBuffer says that frame, the message m, has its buffer to itself and room in
// front of it, so that it can be sent on in it.
func ownBuffer(m *netpoll.Message, frame []byte) bool {
	b := m.Buf
	return b.Refs() == 1 && b.Headroom() >= minBackendHeadroom && b.Len() == len(frame) && unsafe.SliceData(b.Bytes()) == unsafe.SliceData(frame)
}

// gathers says that a batch is worth taking apart: one of at least 1/4 of the
// bytes or records at which ours close gains nothing from it.
func (l *link) gathers(b serialize.Info) bool {
	return b.Bytes <= l.batch.MaxBatchBytes/passShare && b.Records*passShare <= l.batch.MaxBatchRecords
}

const passShare = 4

// appendRecords appends what was reserved.
func (la *lane) appendRecords(batch *serialize.Batch, reply batchReply) {
	done := batcher.Completion{To: reply}
	cursor := batch.Cursor()
	for cursor.Next() {
		r := cursor.Record()
		if err := la.batcher.Append(&r, done); err != nil {
			// Reserve promised that this cannot be. What was appended will be answered.
			err = fmt.Errorf("broker: a reserved record was refused: %w", err)
			for i := cursor.Index(); i < batch.Len(); i++ {
				reply.Complete(0, serialize.NoOffset, err)
			}
			return
		}
	}
}
