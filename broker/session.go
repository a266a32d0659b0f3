package broker

import (
	"errors"
	"fmt"

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
	memory() *hugepages.Pool
}

// Session is the state of one client's connection. Like its service it is not
// safe for concurrent use.
type Session struct {
	service  service
	peer     Peer
	role     wire.Role // 0 until its Hello came
	maxFrame int       // the smaller of both ends' limits
	ending   bool      // broke the protocol; the connection is on its way down
	isClosed bool

	acks  []wire.Ack
	acked bool // listed for sendAcks

	out      []*hugepages.Buf  // answers that the peer's full queue refused, in order
	deferred []netpoll.Message // requests that could not be taken yet, in order
	waiters  []*waiter         // a Core's: fetches without an answer
	fetches  int               // a Proxy's: the same, at the broker

	// blocked: its service lists it for a replay.
	blocked bool
	reading bool
}

func newSession(svc service, p Peer, maxFrame int) *Session {
	return &Session{service: svc, peer: p, maxFrame: maxFrame, reading: true}
}

// Request takes one message from the connection. The lease stays the caller's;
// what must live longer is retained.
func (s *Session) Request(m *netpoll.Message) {
	if s.isClosed || s.ending {
		return
	}
	if len(s.deferred) > 0 || !s.handle(m) {
		s.deferred = append(s.deferred, m.Retain())
		s.throttle()
	}
}

// handle carries out one message; false: not now.
func (s *Session) handle(m *netpoll.Message) bool {
	frame, err := m.Contiguous(s.service.memory())
	switch {
	case errors.Is(err, hugepages.ErrExhausted):
		s.block()
		return false
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
	s.maxFrame = min(s.maxFrame, int(hello.MaxFrameBytes))
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
	if b := build(); b != nil {
		s.send(b)
		return
	}
	s.service.later(func() { s.answer(build) })
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

// violation answers a peer that breaks the protocol, and ends the connection.
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

// congested says that the peer does not take what it asked for fast enough.
func (s *Session) congested() bool { return len(s.out) > 0 }

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
	s.service.writable(s)
	s.replay()
}

// replay takes up the requests that could not be taken before.
func (s *Session) replay() {
	for len(s.deferred) > 0 && !s.isClosed && !s.ending {
		if s.blocked || s.congested() || !s.handle(&s.deferred[0]) {
			return
		}
		s.deferred[0].Release()
		s.deferred = s.deferred[1:]
	}
	if len(s.deferred) == 0 {
		s.deferred = nil
	}
	s.throttle()
}

// throttle reads requests only while there is none deferred and the peer takes
// its answers.
func (s *Session) throttle() {
	if on := len(s.deferred) == 0 && len(s.out) == 0; on != s.reading && !s.isClosed {
		s.reading = on
		s.peer.SetReading(on)
	}
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
	s.out, s.deferred, s.acks = nil, nil, nil
	s.service.closed(s)
}
