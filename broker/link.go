package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// link is the requesting end of a connection to a broker or proxy, reconnected
// when it is lost. It belongs to its loop's goroutine.
//
// Nothing is sent twice: a request that was sent when the connection broke ends
// with OutcomeUnknown, one that was not with BrokerUnreachable.
type link struct {
	loop     *netpoll.Loop
	pool     *hugepages.Pool
	url      string
	log      *slog.Logger
	role     wire.Role // this end's
	maxFrame int       // the largest frame that this end takes
	batch    batcher.Options
	counters batcher.Counters // of all lanes
	passed   atomic.Int64     // batches passed on as they came

	conn     *netpoll.Conn // nil while there is none
	state    linkState
	peer     wire.Hello // once up
	why      error      // of the last loss
	calls    slab[call]
	full     bool // a request found no room in calls
	lanes    map[string]*lane
	order    []*lane // the same, oldest first
	turn     int     // which lane is first; see eachLane
	touched  bool    // a batcher was called since the last flush
	roomOwed bool    // see roomLater
	attempts int     // to connect, in vain, since it was up
	deferred []netpoll.Message
	starved  time.Time // since when deferred waits for memory
	backoff  time.Duration
	timer    *netpoll.Timer // greeting, watching or reconnecting
	patience time.Duration  // see answerPatience
	heard    bool           // something came since watch looked

	onUp     func()            // greeted
	onDown   func(err error)   // lost, or could not be had; all calls have ended
	onRoom   func()            // something that was refused may be tried again
	onSendRT func(nanos int64) // a batch was acknowledged that long after it was sent
}

type linkState uint8

const (
	linkDown linkState = iota
	linkDialing
	linkGreeting
	linkUp
	linkClosed
)

const (
	greetTimeout = 5 * time.Second
	minBackoff   = 20 * time.Millisecond
	maxBackoff   = 2 * time.Second
	// answerPatience is how long requests may wait while nothing at all comes from the
	// peer; it is found out up to a third later. The slowest answer in order is that of
	// a Fetch, which waits for at most 5 s. Clients wait longer than a proxy takes to
	// find out that its broker is gone.
	answerPatience       = 30 * time.Second
	clientAnswerPatience = 45 * time.Second
	// maxLanes bounds the topics of a link; each has a batcher, whose queue of
	// completions takes 24 bytes × MaxQueuedRecords.
	maxLanes = 256
	// defaultBatchBytes is a size class of hugepages.
	defaultBatchBytes = 128 << 10
	// defaultBatchRecords is the batcher's default.
	defaultBatchRecords = 2048
)

// call is a request without an answer.
type call struct {
	lane    *lane // a batch of its batcher
	batch   uint64
	produce produceReply // a batch that was passed on
	query   queryReply   // a Fetch or Metadata
	sentAt  int64        // link.clock; of batches
}

// produceReply and queryReply take the answer to a request, on the loop's
// goroutine; exactly one of their methods is called, once.
type produceReply interface {
	// acked: the batch was stored from base on.
	acked(base uint64)
	// failed: refused, or lost.
	failed(err *wire.Error)
}

type queryReply interface {
	// response is a FetchResponse or MetadataResponse; the lease is the link's.
	response(m *netpoll.Message, frame []byte)
	failed(err *wire.Error)
}

// linkConfig is what a Proxy and a Client tell their link.
type linkConfig struct {
	url      string
	role     wire.Role
	maxFrame int
	batch    batcher.Options
	compress serialize.Compression
	log      *slog.Logger
}

// newLink makes a link of h's loop that is not dialed yet.
func newLink(h *host, c linkConfig) (*link, error) {
	l := &link{loop: h.loop, pool: h.pool, url: c.url, role: c.role, maxFrame: c.maxFrame, batch: c.batch, log: c.log, patience: answerPatience, lanes: map[string]*lane{}}
	if c.role == wire.RoleClient {
		l.patience = clientAnswerPatience
	}
	if err := checkFrameBytes(c.maxFrame, h.pool); err != nil {
		return nil, err
	}
	defaultTo(&l.batch.MaxBatchBytes, min(defaultBatchBytes, c.maxFrame-frameOverhead))
	if l.batch.MaxBatchBytes > c.maxFrame-frameOverhead {
		return nil, fmt.Errorf("broker: batches of %d bytes do not fit messages of %d: lower Batch.MaxBatchBytes or raise MaxMessageBytes", l.batch.MaxBatchBytes, c.maxFrame)
	}
	l.batch.Counters = &l.counters
	if c.compress != serialize.None {
		var err error
		if l.batch.Compressor, err = serialize.NewCompressor(c.compress); err != nil {
			return nil, err
		}
	}
	defaultTo(&l.batch.MaxBatchRecords, defaultBatchRecords)
	// What is wrong with the rest shows now and not with the first record.
	o := l.batch
	o.Pool = h.pool
	if _, err := batcher.New(o, nil); err != nil {
		return nil, fmt.Errorf("broker: Batch: %w", err)
	}
	return l, nil
}

// LinkStats count what a Client or Proxy sent since it was made.
type LinkStats struct {
	Batches    int64 // that the aggregator closed
	Records    int64 // in them
	PlainBytes int64 // of them, before compression
	Bytes      int64 // of them, as they were sent
	Compressed int64 // of them, those that compression made smaller
	Passed     int64 // batches of a Proxy's clients that it passed on as they came
}

func (l *link) stats() LinkStats {
	c := &l.counters
	return LinkStats{c.Batches.Load(), c.Records.Load(), c.PlainBytes.Load(), c.Bytes.Load(), c.Compressed.Load(), l.passed.Load()}
}

// transport is what the connection runs on; ok is false while there is none. Any
// goroutine but the loop's.
func (l *link) transport() (t netpoll.Transport, ok bool) {
	_ = l.loop.Do(func() {
		if l.conn != nil {
			t, ok = l.conn.Transport(), true
		}
	})
	return t, ok
}

// dial begins to connect, and to connect again whenever the link is down. Once.
func (l *link) dial() {
	l.state = linkDialing
	l.loop.DialAsync(l.url, linkHandler{l}, func(_ *netpoll.Conn, err error) {
		if err != nil && l.state == linkDialing {
			l.down(err)
		}
	})
}

// linkHandler hands the events of the link's connection on.
type linkHandler struct{ l *link }

func (h linkHandler) OnOpen(c *netpoll.Conn) { h.l.opened(c) }

func (h linkHandler) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	h.l.heard = true
	for i := range ms {
		if h.l.conn == c && h.l.state != linkClosed {
			h.l.message(&ms[i])
		}
	}
	if h.l.conn == c {
		h.l.answersTaken()
	}
}

func (h linkHandler) OnWritable(c *netpoll.Conn) {
	if h.l.conn == c {
		h.l.writable()
	}
}

func (h linkHandler) OnClose(c *netpoll.Conn, err error) {
	if h.l.conn == c {
		if err == nil {
			err = errors.New("the peer closed the connection")
		}
		h.l.down(err)
	}
}

func (l *link) opened(c *netpoll.Conn) {
	if l.state != linkDialing {
		c.Close(ErrClosed)
		return
	}
	l.conn, l.state = c, linkGreeting
	b, err := c.Alloc(wire.HelloBytes)
	if err == nil {
		wire.AppendHello(b.Bytes()[:0], wire.Hello{Version: wire.Version, Role: l.role, MaxFrameBytes: uint32(l.maxFrame)})
		if err = c.Send(b); err != nil {
			b.Release()
		}
	}
	if err != nil {
		c.Close(err)
		return
	}
	l.timer = l.loop.After(greetTimeout, func() {
		if l.conn == c && l.state == linkGreeting {
			c.Close(fmt.Errorf("no answer within %v: it is not a millrace broker or proxy, or overloaded", greetTimeout))
		}
	})
}

// message takes one frame of the peer.
func (l *link) message(m *netpoll.Message) {
	if len(l.deferred) > 0 || !l.handle(m) {
		l.deferred = append(l.deferred, m.Retain())
		if len(l.deferred) == 1 {
			l.starved = time.Now()
			l.conn.PauseReading()
			l.retryDeferred(l.conn)
		}
	}
}

// answersTaken goes on with what waited for answers.
func (l *link) answersTaken() {
	if l.full && l.calls.used < maxSlab/2 {
		l.full = false
		l.writable()
		return
	}
	l.room()
}

// retryDeferred takes up the messages for which the pool had no room.
func (l *link) retryDeferred(c *netpoll.Conn) {
	l.loop.After(retryAfter, func() {
		if l.conn != c {
			return
		}
		for len(l.deferred) > 0 {
			m := &l.deferred[0]
			if !l.handle(m) {
				// What it and others like it hold may be all there is.
				if time.Since(l.starved) > memoryPatience {
					c.Close(fmt.Errorf("there was no memory for an answer for %v: use a larger pool", memoryPatience))
					return
				}
				l.retryDeferred(c)
				return
			}
			if l.conn != c {
				return // closed, and the deferred ones released
			}
			m.Release()
			l.deferred = l.deferred[1:]
			l.starved = time.Now()
		}
		l.deferred = nil
		c.ResumeReading()
		l.answersTaken()
	})
}

// handle is false if the pool has no room to look at a chained message.
func (l *link) handle(m *netpoll.Message) bool {
	frame, err := m.Contiguous(l.pool)
	if errors.Is(err, hugepages.ErrExhausted) {
		return false
	}
	if err == nil {
		if l.state == linkGreeting {
			err = l.greeted(frame)
		} else {
			err = l.answered(m, frame)
		}
	}
	if err != nil {
		l.conn.Close(err)
	}
	return true
}

func (l *link) greeted(frame []byte) error {
	if len(frame) > 0 && wire.Kind(frame[0]) == wire.KindError {
		e, err := wire.ParseError(frame)
		if err != nil {
			return err
		}
		return e
	}
	h, err := wire.ParseHello(frame)
	if err != nil {
		return fmt.Errorf("%s is no millrace broker or proxy: %w", l.url, err)
	}
	need := l.batch.MaxBatchBytes + frameOverhead
	switch {
	case h.Version != wire.Version:
		return &wire.Error{Code: wire.UnsupportedVersion, Text: fmt.Sprintf(
			"%s speaks protocol version %d, this %v %d: run the same millrace release on both ends", l.url, h.Version, l.role, wire.Version)}
	case h.Role == wire.RoleClient, l.role == wire.RoleProxy && h.Role != wire.RoleBroker:
		return fmt.Errorf("%s is a %v: a %v needs the address of a broker%s", l.url, h.Role, l.role,
			map[bool]string{true: " or proxy"}[l.role == wire.RoleClient])
	case int(h.MaxFrameBytes) < need:
		return fmt.Errorf("%s takes messages of at most %d bytes, this end's batches need %d: lower the batch size here or raise the limit there",
			l.url, h.MaxFrameBytes, need)
	}
	l.timer.Stop()
	l.peer, l.state, l.backoff, l.why, l.attempts = h, linkUp, 0, nil, 0
	l.watch(0)
	l.onUp()
	return nil
}

// watch closes the connection when requests have waited and nothing has come for
// patience: a process that stands still, or a host that is gone. TCP would not tell of
// the one at all, and of the other after a quarter of an hour.
func (l *link) watch(silent time.Duration) {
	c, every, owed := l.conn, l.patience/3, l.calls.used > 0
	l.heard = false
	l.timer = l.loop.After(every, func() {
		switch {
		case l.conn != c || l.state != linkUp: // by another timer of the same cycle
		case l.heard || !owed:
			l.watch(0)
		case silent+every < l.patience:
			l.watch(silent + every)
		default:
			c.Close(fmt.Errorf("no answer for %v: the peer stands still, or its host is gone", l.patience))
		}
	})
}

// answered takes the answer to a request.
func (l *link) answered(m *netpoll.Message, frame []byte) error {
	h, err := wire.ParseHeader(frame)
	if err != nil {
		return err
	}
	switch h.Kind {
	case wire.KindProduceAck:
		return l.acked(frame)
	case wire.KindError:
		e, err := wire.ParseError(frame)
		if err != nil {
			return err
		}
		c, ok := l.calls.take(e.Correlation)
		if !ok {
			return e // about the connection as a whole
		}
		c.fail(l, e)
		return nil
	case wire.KindFetchResponse, wire.KindMetadataResponse:
		// A Produce answered so stays a call, and ends with the connection.
		if c := l.calls.at(h.Correlation); c == nil || c.query == nil {
			return fmt.Errorf("%w: a %v that nobody asked for", wire.ErrFrame, h.Kind)
		}
		c, _ := l.calls.take(h.Correlation)
		c.query.response(m, frame)
		return nil
	}
	return fmt.Errorf("%w: a %v was not expected", wire.ErrFrame, h.Kind)
}

// clock is the time for onSendRT, 0 if nobody asks.
func (l *link) clock() int64 {
	if l.onSendRT == nil {
		return 0
	}
	return l.loop.Precise()
}

func (l *link) acked(frame []byte) error {
	acks, err := wire.ParseAcks(frame)
	if err != nil {
		return err
	}
	now := l.clock()
	for i := range acks.Len() {
		a := acks.At(i)
		switch c := l.calls.at(a.Correlation); {
		case c == nil || c.query != nil:
			return fmt.Errorf("%w: an acknowledgement of a Produce that was not made, or was answered before", wire.ErrFrame)
		case a.Base > math.MaxInt64-serialize.MaxRecords:
			return fmt.Errorf("%w: an acknowledgement with the offset %d", wire.ErrFrame, a.Base)
		}
		c, _ := l.calls.take(a.Correlation)
		if l.onSendRT != nil {
			l.onSendRT(now - c.sentAt)
		}
		if c.lane == nil {
			c.produce.acked(a.Base)
			continue
		}
		l.touched = true
		// Batches that Fail gave up are no news.
		_ = c.lane.batcher.Done(c.batch, int64(a.Base), nil)
	}
	return nil
}

// fail ends a call.
func (c *call) fail(l *link, e *wire.Error) {
	switch {
	case c.query != nil:
		c.query.failed(e)
	case c.produce != nil:
		c.produce.failed(e)
	default:
		l.touched = true
		// Batches that Fail gave up are no news.
		_ = c.lane.batcher.Done(c.batch, serialize.NoOffset, e)
	}
}

// down ends every call after the connection was lost or could not be had, and
// arranges for the next attempt.
func (l *link) down(err error) {
	was := l.state
	if l.timer != nil {
		l.timer.Stop()
	}
	l.conn = nil
	for i := range l.deferred {
		l.deferred[i].Release()
	}
	l.deferred = nil
	if was == linkClosed {
		return
	}
	l.state, l.why = linkDown, err
	l.attempts++
	l.full = false
	l.failCalls(fmt.Sprintf("the connection to %s was lost before the answer came (%v)", l.url, err))
	for _, la := range l.order {
		la.batcher.Fail(l.unreachable())
		la.batcher.Writable()
	}
	l.backoff = min(max(2*l.backoff, minBackoff), maxBackoff)
	// Up to a quarter less, so that many peers of one broker do not come back at once.
	wait := l.backoff - time.Duration(rand.Int64N(int64(l.backoff)/4))
	l.timer = l.loop.After(wait, l.dial)
	l.onDown(err)
}

// failCalls ends all requests without an answer.
func (l *link) failCalls(why string) {
	lost := &wire.Error{Code: wire.OutcomeUnknown, Text: why + ": whether it was stored is unknown; look before sending again"}
	unread := unreachable(why)
	l.calls.takeAll(func(c call) {
		if c.query != nil {
			c.fail(l, unread)
		} else {
			c.fail(l, lost)
		}
	})
}

// unreachable is the refusal while there is no connection.
func (l *link) unreachable() *wire.Error {
	text := fmt.Sprintf("no connection to %s", l.url)
	if l.why != nil {
		text = fmt.Sprintf("no connection to %s: %v", l.url, l.why)
	}
	return unreachable(text + "; nothing was sent")
}

// close ends the link for good; calls end as those of a lost connection do.
func (l *link) close() {
	if l.state == linkClosed {
		return
	}
	l.state = linkClosed
	if l.timer != nil {
		l.timer.Stop()
	}
	l.failCalls("closed before the answer came")
	for _, la := range l.order {
		la.batcher.Close(0) // so that it takes no buffer any more
		la.batcher.Fail(unreachable("closed; nothing was sent"))
	}
	if c := l.conn; c != nil {
		c.Drain(l.loop.Now() + int64(closeGrace))
	}
}

// send sends one request frame; its correlation is filled in. On nil b's
// reference is the link's. Otherwise b stays the caller's: netpoll.ErrBackpressure
// (tried again after onRoom), or a *wire.Error.
func (l *link) send(b *hugepages.Buf, c call) error {
	if l.state != linkUp {
		return l.unreachable()
	}
	key, ok := l.calls.put(c)
	if !ok {
		l.full = true
		return netpoll.ErrBackpressure
	}
	wire.SetCorrelation(b.Bytes(), key)
	err := l.conn.Send(b)
	if err == nil {
		return nil
	}
	l.calls.take(key)
	if errors.Is(err, netpoll.ErrBackpressure) {
		return err
	}
	return unreachable(fmt.Sprintf("sending to %s: %v; nothing was sent", l.url, err))
}

// writable says that the connection's queue has room again.
func (l *link) writable() {
	l.eachLane(func(la *lane) { la.batcher.Writable() })
	l.touched = true
	l.room()
}

// eachLane calls fn with every lane, each time another first: what there is room
// for on the connection is not always taken by the same.
func (l *link) eachLane(fn func(*lane)) {
	l.turn++
	for i := range len(l.order) {
		if n := len(l.order); n > 0 { // fn may drop lanes
			fn(l.order[(l.turn+i)%n])
		}
	}
}

func (l *link) room() {
	if l.onRoom != nil {
		l.onRoom()
	}
}

// flush ends a duty cycle: what is due leaves.
func (l *link) flush(now int64) {
	if !l.touched {
		if at := l.deadline(); at == 0 || now < at {
			return
		}
	}
	l.touched = false
	l.eachLane(func(la *lane) { la.batcher.Flush(now) })
}

// deadline is when flush must run though nothing happened; 0: not at all.
func (l *link) deadline() int64 {
	var next int64
	for _, la := range l.order {
		if at := la.batcher.NextDeadline(); at != 0 && (next == 0 || at < next) {
			next = at
		}
	}
	return next
}

// maxBatch is the largest batch that the link takes.
func (l *link) maxBatch() int {
	return int(min(uint32(l.maxFrame), l.peer.MaxFrameBytes)) - frameOverhead
}
