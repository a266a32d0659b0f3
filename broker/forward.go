package broker

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// forwarder is the service of a proxy's sessions: it passes their requests on
// over its link, on the loop's goroutine.
type forwarder struct {
	link    *link
	checker checker
	trim    *trimmer
	acked   []*Session // have acknowledgements to send
	blocked []*Session // have requests that the link did not take
	spare   []*forwardedProduce

	spareBlocked []*Session // the other array of two for blocked

	producing int // produces without an answer
	closing   bool
}

func newForwarder(l *link) *forwarder {
	f := &forwarder{link: l, trim: newTrimmer(l.loop, l.pool), checker: checker{limit: l.maxFrame - frameOverhead}}
	l.onRoom = f.room
	return f
}

func (f *forwarder) open(p Peer) *Session { return newSession(f, p, f.link.maxFrame) }

func (f *forwarder) hello() wire.Hello {
	return wire.Hello{Version: wire.Version, Role: wire.RoleProxy,
		Durability: f.link.peer.Durability, MaxFrameBytes: uint32(f.link.maxFrame)}
}

func (f *forwarder) memory() *hugepages.Pool { return f.link.pool }

func (f *forwarder) later(fn func()) { f.link.loop.After(retryAfter, fn) }

func (f *forwarder) after(d time.Duration, fn func()) (stop func()) {
	return loopScheduler{f.link.loop}.After(d, fn)
}

// crowded: see Core.crowded.
func (f *forwarder) crowded() bool {
	p := f.link.pool
	return p.Usage(hugepages.Send).Bytes > p.Arena().Report().Bytes/2
}

// filled is crowded with the buffers besides that were received, which count as such
// where they are sent on.
func (f *forwarder) filled() bool {
	p := f.link.pool
	return p.Usage(hugepages.Send).Bytes+p.Usage(hugepages.Receive).Bytes > p.Arena().Report().Bytes/2
}

func (f *forwarder) acknowledge(s *Session) { f.acked = append(f.acked, s) }

// cycleEnd sends what the burst of requests filled, and its acknowledgements.
func (f *forwarder) cycleEnd(now int64) (deadline int64) {
	f.link.flush(now)
	for i := 0; i < len(f.acked); i++ {
		f.acked[i].sendAcks()
	}
	clear(f.acked)
	f.acked = f.acked[:0]
	f.trim.cycleEnd()
	return f.link.deadline()
}

// room takes up the requests that the link refused before.
func (f *forwarder) room() {
	if len(f.blocked) == 0 {
		return
	}
	sessions := f.blocked
	f.blocked, f.spareBlocked = f.spareBlocked[:0], nil
	for _, s := range sessions {
		s.blocked = false
	}
	for i, s := range sessions {
		sessions[i] = nil
		s.replay() // or it is blocked anew, or was closed
	}
	f.spareBlocked = sessions
}

func (f *forwarder) writable(*Session) {}

func (f *forwarder) closed(s *Session) {
	if s.blocked {
		f.blocked = slices.DeleteFunc(f.blocked, func(b *Session) bool { return b == s })
	}
}

// block keeps s until there is room on the link.
func (f *forwarder) block(s *Session) bool {
	if !s.blocked {
		s.blocked = true
		f.blocked = append(f.blocked, s)
	}
	return false
}

// taken says whether a request was carried out, err being the link's answer to
// it: refused ones are, those that the link has no room for are not.
func (f *forwarder) taken(s *Session, correlation uint32, err error) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, hugepages.ErrExhausted):
		return s.starve(correlation)
	case busy(err):
		return f.block(s)
	}
	s.refuse(correlation, asWireError(err))
	return true
}

// asWireError is err in the form that a peer is told.
func asWireError(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	return &wire.Error{Code: wire.OutcomeUnknown, Text: err.Error()}
}

func (f *forwarder) request(s *Session, kind wire.Kind, m *netpoll.Message, frame []byte) bool {
	switch kind {
	case wire.KindProduce:
		return f.produce(s, m, frame)
	case wire.KindFetch:
		return f.fetch(s, frame)
	default:
		return f.metadata(s, frame)
	}
}

func (f *forwarder) produce(s *Session, m *netpoll.Message, frame []byte) bool {
	p, err := wire.ParseProduce(frame)
	if err != nil {
		s.violation(0, wire.BadRequest, err.Error())
		return true
	}
	if f.closing {
		s.refuse(p.Correlation, errProxyShuttingDown)
		return true
	}
	if err := seglog.CheckTopicName(p.Topic); err != nil {
		s.refuse(p.Correlation, &wire.Error{Code: wire.InvalidTopic, Text: err.Error()})
		return true
	}
	batch, records, refusal := f.checker.open(p.Batch, s.verified)
	if refusal != nil {
		s.refuse(p.Correlation, refusal)
		return true
	}
	la := f.link.lanes[string(p.Topic)]
	if la == nil {
		if la, err = f.link.lane(string(p.Topic)); err != nil {
			return f.taken(s, p.Correlation, err)
		}
	}
	// Before the append, because an answer may come from within it.
	c := f.begin(s, p.Correlation, batch.Records)
	if err := la.appendBatch(m, batch, &records, c); err != nil {
		f.end(c)
		s.verified = busy(err) // it is tried again
		return f.taken(s, p.Correlation, err)
	}
	return true
}

var errProxyShuttingDown = &wire.Error{Code: wire.ShuttingDown, Text: "this proxy is going away; nothing was stored: connect again in a while"}

// forwardedProduce is a client's Produce on its way. It is told of each of its
// records if they were aggregated, else of the batch as a whole.
type forwardedProduce struct {
	f           *forwarder
	session     *Session
	correlation uint32
	left, done  int
	base        int64
	err         error
}

func (f *forwarder) begin(s *Session, correlation uint32, records int) *forwardedProduce {
	f.producing++
	var c *forwardedProduce
	if n := len(f.spare); n > 0 {
		c, f.spare = f.spare[n-1], f.spare[:n-1]
	} else {
		c = &forwardedProduce{}
	}
	*c = forwardedProduce{f: f, session: s, correlation: correlation, left: records}
	return c
}

// maxSpare bounds what is kept for reuse.
const maxSpare = 1024

func (f *forwarder) end(c *forwardedProduce) {
	f.producing--
	*c = forwardedProduce{}
	if len(f.spare) < maxSpare {
		f.spare = append(f.spare, c)
	}
}

// Complete implements batcher.Completer: the records' offsets follow each other.
func (c *forwardedProduce) Complete(_ uint64, offset int64, err error) {
	if c.done == 0 {
		c.base = offset
	}
	if c.err == nil {
		c.err = err
	}
	if c.done++; c.done < c.left {
		return
	}
	if c.err != nil {
		c.session.refuse(c.correlation, asWireError(c.err))
	} else {
		c.session.ack(c.correlation, uint64(c.base))
	}
	c.f.end(c)
}

func (c *forwardedProduce) acked(base uint64) {
	c.session.ack(c.correlation, base)
	c.f.end(c)
}

func (c *forwardedProduce) failed(e *wire.Error) {
	c.session.refuse(c.correlation, e)
	c.f.end(c)
}

func (f *forwarder) fetch(s *Session, frame []byte) bool {
	r, err := wire.ParseFetch(frame)
	if err != nil {
		s.violation(0, wire.BadRequest, err.Error())
		return true
	}
	switch {
	case f.closing:
		s.refuse(r.Correlation, errProxyShuttingDown)
		return true
	case s.fetches >= maxClientFetches:
		s.refuse(r.Correlation, &wire.Error{Code: wire.TooManyRequests, A: maxClientFetches,
			Text: fmt.Sprintf("%d fetches wait already: have fewer at a time", maxClientFetches)})
		return true
	}
	b, err := f.link.pool.Get(wire.FetchBytes(len(r.Topic)), hugepages.Send)
	if err != nil {
		return f.taken(s, r.Correlation, err)
	}
	// The client may take less than this proxy does.
	r.MaxBytes = min(r.MaxBytes, uint32(s.maxFrame-wire.FetchResponseHeaderBytes))
	r.WaitMillis = min(r.WaitMillis, maxForwardedWaitMillis)
	wire.AppendFetch(b.Bytes()[:0], r)
	return f.ask(b, &forwardedQuery{f, s, r.Correlation, &s.fetches})
}

// maxForwardedWaitMillis bounds how long a fetch waits at the broker after its
// client has gone; a client is answered without records and asks again.
const maxForwardedWaitMillis = 5000

// ask sends a question on.
func (f *forwarder) ask(b *hugepages.Buf, q *forwardedQuery) bool {
	if err := f.link.send(b, call{query: q}); err != nil {
		b.Release()
		return f.taken(q.session, q.correlation, err)
	}
	*q.count++
	return true
}

func (f *forwarder) metadata(s *Session, frame []byte) bool {
	r, err := wire.ParseMetadata(frame)
	if err != nil {
		s.violation(0, wire.BadRequest, err.Error())
		return true
	}
	if s.queries >= maxClientQueries {
		s.refuse(r.Correlation, &wire.Error{Code: wire.TooManyRequests, A: maxClientQueries,
			Text: fmt.Sprintf("%d metadata requests are without an answer: have fewer at a time", maxClientQueries)})
		return true
	}
	b, err := f.link.pool.Get(wire.MetadataBytes(len(r.Topic)), hugepages.Send)
	if err != nil {
		return f.taken(s, r.Correlation, err)
	}
	wire.AppendMetadata(b.Bytes()[:0], r)
	return f.ask(b, &forwardedQuery{f, s, r.Correlation, &s.queries})
}

// maxClientQueries bounds the metadata requests of a client at the broker.
const maxClientQueries = 16

// forwardedQuery is a Fetch or Metadata on its way.
type forwardedQuery struct {
	f           *forwarder
	session     *Session
	correlation uint32
	count       *int // of the session, where it is counted
}

// response passes the answer on: in the buffer in which it came, if it has that to
// itself, else copied. What the client does not take fast enough is dropped, since
// it would fill the memory of all.
func (q *forwardedQuery) response(m *netpoll.Message, frame []byte) {
	*q.count--
	if q.session.isClosed {
		return
	}
	if q.session.congested() || q.f.crowded() {
		q.session.refuse(q.correlation, errNotTaken)
		return
	}
	if len(frame) > q.session.maxFrame {
		q.session.refuse(q.correlation, &wire.Error{Code: wire.TooLarge, A: uint64(q.session.maxFrame),
			Text: fmt.Sprintf("the answer has %d bytes, the client takes %d: raise its largest message", len(frame), q.session.maxFrame)})
		return
	}
	if ownBuffer(m, frame) && !q.f.filled() {
		wire.SetCorrelation(frame, q.correlation)
		q.session.send(m.Buf.Retain())
		return
	}
	b, err := q.f.link.pool.Get(len(frame), hugepages.Send)
	if err != nil {
		q.session.refuse(q.correlation, &wire.Error{Code: wire.TooManyRequests,
			Text: fmt.Sprintf("the proxy has no memory for the answer now (%v): ask again in a while", err)})
		return
	}
	copy(b.Bytes(), frame)
	wire.SetCorrelation(b.Bytes(), q.correlation)
	q.session.send(b)
}

var errNotTaken = &wire.Error{Code: wire.TooManyRequests, Text: "this client, or others, do not take their answers as fast as they ask: ask again in a while"}

func (q *forwardedQuery) failed(e *wire.Error) {
	*q.count--
	q.session.refuse(q.correlation, e)
}
