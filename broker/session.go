package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// service is what answers the requests of sessions: a Core or a Proxy.
type service interface {
	hello() wire.Hello
	// request carries out one request of a greeted session. false: it cannot be
	// taken now; the session keeps the message and is not read until replay.
	request(s *Session, kind wire.Kind, m *netpoll.Message, frame []byte) bool
	// writable says that a congested session takes answers again.
	writable(s *Session)
	// closed says that the session ended.
	closed(s *Session)
	// acknowledge puts s on the list of sessions with acknowledgements to send.
	acknowledge(s *Session)
	// later runs fn in a while; memory may be back then.
	later(fn func())
	// after runs fn after d, unless the returned function was called before.
	after(d time.Duration, fn func()) (stop func())
	memory() *hugepages.Pool
}

// Session is the state of one client's connection. Like its service it is not
// safe for concurrent use.
//
// What a session can hold is bounded: while it is congested, or a request waits,
// it is not read and takes nothing up; then it owes the answers to what was
// taken before, whose number its service bounds.
type Session struct {
	service  service
	peer     Peer
	role     wire.Role // 0 until its Hello came
	maxFrame int       // the smaller of both ends' limits
	ending   bool      // broke the protocol; the connection is on its way down
	isClosed bool

	acks  []wire.Ack
	acked bool // listed for sendAcks

	out      []*hugepages.Buf        // answers that the peer's full queue refused, in order
	owed     []func() *hugepages.Buf // answers that there was no memory for; behind out
	deferred []netpoll.Message       // requests that could not be taken yet, in order
	waiters  []*waiter               // a Core's: fetches without an answer
	fetches  int                     // a Proxy's: the same, at the broker
	queries  int                     // a Proxy's: metadata requests at the broker

	// blocked: its service lists it for a replay, or later will do that.
	blocked bool
	reading bool
	// Of the first deferred request: its batch was found whole; since when it waits
	// for memory.
	verified bool
	starved  time.Time

	unwatch func()
	sent    uint64 // Progress when the watch began
}

const (
	// stallTimeout is how long a peer may leave its answers unread.
	stallTimeout = time.Minute
	// memoryPatience is how long a request waits for memory before it is refused.
	// What the waiting ones hold may be all there is.
	memoryPatience = 5 * time.Second
)

func newSession(svc service, p Peer, maxFrame int) *Session {
	s := &Session{service: svc, peer: p, maxFrame: maxFrame, reading: true}
	s.watch(greetTimeout)
	return s
}

// Request takes one message from the connection. The lease stays the caller's;
// what must live longer is retained.
func (s *Session) Request(m *netpoll.Message) {
	if s.isClosed || s.ending {
		return
	}
	if len(s.deferred) > 0 || s.congested() || !s.handle(m) {
		s.deferred = append(s.deferred, keep(m, s.service.memory()))
		s.throttle()
	}
}

// keepFrom is the size from which a buffer is not kept for the sake of a message
// that fills less than a quarter of it: many small requests would hold all memory.
const keepFrom = 1 << 10

// keep extends the lease of m, or copies it if it holds much more than it needs.
func keep(m *netpoll.Message, pool *hugepages.Pool) netpoll.Message {
	if room := m.Buf.Cap(); len(m.Rest) == 0 && room >= keepFrom && len(m.Data) < room/4 {
		if b, err := pool.Get(len(m.Data), hugepages.Receive); err == nil {
			copy(b.Bytes(), m.Data)
			return netpoll.Message{Segment: netpoll.Segment{Data: b.Bytes(), Buf: b}}
		}
	}
	return m.Retain()
}

// handle carries out one message; false: not now.
func (s *Session) handle(m *netpoll.Message) bool {
	frame, err := m.Contiguous(s.service.memory())
	switch {
	case errors.Is(err, hugepages.ErrExhausted):
		h, _ := wire.ParseHeader(m.Data)
		return s.starve(h.Correlation)
	case err != nil:
		s.violation(0, wire.TooLarge, err.Error())
		return true
	}
	h, err := wire.ParseHeader(frame)
	switch {
	case err != nil:
		s.violation(h.Correlation, wire.BadRequest, err.Error())
	case s.role == 0:
		s.greet(h, frame)
	case h.Kind == wire.KindProduce || h.Kind == wire.KindFetch || h.Kind == wire.KindMetadata:
		return s.service.request(s, h.Kind, m, frame)
	default:
		s.violation(h.Correlation, wire.BadRequest, fmt.Sprintf("a %v was not expected from a %v", h.Kind, s.role))
	}
	return true
}

// starve waits for memory with the request at hand, whose handling ends with
// false; true: it waited too long, and was refused.
func (s *Session) starve(correlation uint32) bool {
	switch now := time.Now(); {
	case s.starved.IsZero():
		s.starved = now
	case now.Sub(s.starved) > memoryPatience:
		s.refuse(correlation, errNoMemory)
		return true
	}
	s.block()
	return false
}

var errNoMemory = &wire.Error{Code: wire.TooManyRequests, Text: fmt.Sprintf(
	"there was no memory for the request for %v; nothing was done: try again in a while, or give this broker or proxy a larger pool", memoryPatience)}

// block asks for a replay in a while.
func (s *Session) block() {
	if s.blocked {
		return
	}
	s.blocked = true
	s.service.later(func() {
		s.blocked = false
		s.replay()
	})
}

// greet answers the peer's Hello.
func (s *Session) greet(h wire.Header, frame []byte) {
	hello, err := wire.ParseHello(frame)
	own := s.service.hello()
	switch {
	case err != nil:
		s.violation(h.Correlation, wire.BadRequest, err.Error())
		return
	case hello.Version != wire.Version:
		s.violation(h.Correlation, wire.UnsupportedVersion, fmt.Sprintf(
			"this %v speaks protocol version %d, the peer %d: run the same millrace release on both ends", own.Role, wire.Version, hello.Version))
		return
	case hello.MaxFrameBytes < minFrameBytes:
		s.violation(h.Correlation, wire.BadRequest, fmt.Sprintf("the peer takes frames of at most %d bytes, it must take %d", hello.MaxFrameBytes, minFrameBytes))
		return
	case hello.Role == own.Role, hello.Role == wire.RoleBroker:
		s.violation(h.Correlation, wire.BadRequest, fmt.Sprintf("a %v cannot serve a %v: connect a client, or a proxy to a broker", own.Role, hello.Role))
		return
	}
	s.role = hello.Role
	s.maxFrame = int(min(uint32(s.maxFrame), hello.MaxFrameBytes))
	s.answer(func() *hugepages.Buf {
		b, err := s.service.memory().Get(wire.HelloBytes, hugepages.Send)
		if err == nil {
			wire.AppendHello(b.Bytes()[:0], own)
		}
		return b
	})
}

// answer sends what build returns; build is tried again later if it finds no
// memory (nil).
func (s *Session) answer(build func() *hugepages.Buf) {
	if s.isClosed {
		return
	}
	if len(s.owed) == 0 {
		if b := build(); b != nil {
			s.send(b)
			return
		}
		s.service.later(s.settle)
	}
	s.owed = append(s.owed, build)
	s.throttle()
}

// settle sends the answers that there was no memory for.
func (s *Session) settle() {
	for len(s.owed) > 0 && !s.isClosed {
		b := s.owed[0]()
		if b == nil {
			s.service.later(s.settle)
			return
		}
		s.owed[0] = nil
		s.owed = s.owed[1:]
		s.send(b)
	}
	s.owed = nil
	s.relieved()
}

// refuse answers a request with an error.
func (s *Session) refuse(correlation uint32, e *wire.Error) {
	if s.isClosed {
		return
	}
	reply := *e
	reply.Correlation = correlation
	s.answer(func() *hugepages.Buf {
		b, err := s.service.memory().Get(wire.ErrorBytes(&reply), hugepages.Send)
		if err == nil {
			wire.AppendError(b.Bytes()[:0], &reply)
		}
		return b
	})
}

// violation answers a peer that breaks the protocol, and ends the connection,
// possibly before it returns.
func (s *Session) violation(correlation uint32, code wire.Code, text string) {
	e := &wire.Error{Code: code, Text: text}
	s.ending = true
	s.refuse(correlation, e)
	s.peer.Close(e)
}

// ack notes the acknowledgement of a Produce; see sendAcks.
func (s *Session) ack(correlation uint32, base uint64) {
	if s.isClosed {
		return
	}
	s.acks = append(s.acks, wire.Ack{Correlation: correlation, Base: base})
	if !s.acked {
		s.acked = true
		s.service.acknowledge(s)
	}
}

// sendAcks sends the acknowledgements of this burst, in one message unless the
// peer takes only smaller ones.
func (s *Session) sendAcks() {
	s.acked = false
	for len(s.acks) > 0 && !s.isClosed {
		n := min(len(s.acks), wire.MaxAcks, (s.maxFrame-wire.HeaderBytes)/(wire.AcksBytes(1)-wire.HeaderBytes))
		b, err := s.service.memory().Get(wire.AcksBytes(n), hugepages.Send)
		if err != nil {
			s.acked = true
			s.service.later(func() { s.service.acknowledge(s) })
			return
		}
		wire.AppendAcks(b.Bytes()[:0], s.acks[:n])
		s.send(b)
		s.acks = s.acks[:copy(s.acks, s.acks[n:])]
	}
}

// send takes b and hands it to the peer, or keeps it until the peer takes it.
func (s *Session) send(b *hugepages.Buf) {
	if s.isClosed {
		b.Release()
		return
	}
	s.watch(stallTimeout)
	if len(s.out) == 0 {
		err := s.peer.Send(b)
		if err == nil {
			return
		}
		if !errors.Is(err, netpoll.ErrBackpressure) {
			b.Release() // closed meanwhile; the owner calls Close
			return
		}
	}
	s.out = append(s.out, b)
	s.throttle()
}

// congested says that answers wait, for the peer to take others or for memory.
func (s *Session) congested() bool { return len(s.out) > 0 || len(s.owed) > 0 }

// Writable says that the peer's send queue has room again.
func (s *Session) Writable() {
	for len(s.out) > 0 {
		err := s.peer.Send(s.out[0])
		if errors.Is(err, netpoll.ErrBackpressure) {
			return
		}
		if err != nil {
			s.out[0].Release()
		}
		s.out[0] = nil
		s.out = s.out[1:]
	}
	s.out = nil
	s.relieved()
}

// relieved takes up what waited for the session not to be congested.
func (s *Session) relieved() {
	if s.isClosed || s.congested() {
		return
	}
	s.service.writable(s)
	s.replay()
}

// replay takes up the requests that could not be taken before.
func (s *Session) replay() {
	for len(s.deferred) > 0 && !s.isClosed && !s.ending {
		if s.blocked || s.congested() || !s.handle(&s.deferred[0]) {
			return
		}
		if s.isClosed {
			return // from within handle, and Close has released them
		}
		s.deferred[0].Release()
		s.deferred = s.deferred[1:]
		s.verified, s.starved = false, time.Time{}
	}
	if len(s.deferred) == 0 {
		s.deferred = nil
	}
	s.throttle()
}

// throttle reads requests only while there is none deferred and the peer takes
// its answers.
func (s *Session) throttle() {
	if on := len(s.deferred) == 0 && !s.congested(); on != s.reading && !s.isClosed {
		s.reading = on
		s.peer.SetReading(on)
	}
}

// watch looks after d whether the peer has greeted and takes its answers.
func (s *Session) watch(d time.Duration) {
	if s.unwatch == nil {
		_, s.sent = s.progress()
		s.unwatch = s.service.after(d, s.look)
	}
}

func (s *Session) look() {
	s.unwatch = nil
	if s.isClosed {
		return
	}
	queued, sent := s.progress()
	switch {
	case s.ending: // the peer is closing it
	case s.role == 0:
		s.ending = true
		s.peer.Close(fmt.Errorf("broker: no Hello within %v", greetTimeout))
	case queued == 0:
	case sent == s.sent:
		s.ending = true
		s.peer.Close(fmt.Errorf("broker: the peer took none of its answers for %v", stallTimeout))
	default:
		s.watch(stallTimeout)
	}
}

func (s *Session) progress() (queued int, sent uint64) {
	if p, ok := s.peer.(Progress); ok {
		return p.Progress()
	}
	return 0, 0
}

// Close forgets the connection; requests under way are carried out, their
// answers dropped. The owner calls it once, when the connection has ended.
func (s *Session) Close() {
	if s.isClosed {
		return
	}
	s.isClosed = true
	for _, b := range s.out {
		b.Release()
	}
	for i := range s.deferred {
		s.deferred[i].Release()
	}
	s.out, s.owed, s.deferred, s.acks = nil, nil, nil, nil
	if s.unwatch != nil {
		s.unwatch()
	}
	s.service.closed(s)
}
