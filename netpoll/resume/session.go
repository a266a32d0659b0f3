package resume

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// Handler receives what happens on sessions. Its methods run as those of a
// netpoll.Handler do.
type Handler interface {
	// OnOpen runs once, first, when the session's first connection stands.
	OnOpen(s *Session)
	// OnMessage delivers one message: each once, in order. The lease is as for
	// netpoll.Handler.OnMessages. The peer learns that it was taken when it returns.
	OnMessage(s *Session, m *netpoll.Message)
	// OnWritable runs once after a Send was refused with ErrBackpressure, when half of
	// the queue is free again.
	OnWritable(s *Session)
	// OnClose runs once, last. err is nil if either end closed the session in order.
	// Session.Unacked tells what the peer has not acknowledged.
	OnClose(s *Session, err error)
}

// Options of sessions. The zero value of a field means its default.
type Options struct {
	// MaxMessages and MaxBytes bound what a session keeps until it is acknowledged;
	// beyond them Send answers ErrBackpressure. One message more may exceed MaxBytes.
	// Defaults 1024 and 4 MiB.
	MaxMessages, MaxBytes int
	// Patience is how long a session lives without a connection, and how long a listener
	// remembers one that was closed. Default 30 s.
	Patience time.Duration
	// MaxSessions bounds the sessions of a listener, closed ones that it remembers
	// included. Default 4096.
	MaxSessions int
}

func (o Options) withDefaults() Options {
	setDefault(&o.MaxMessages, 1024)
	setDefault(&o.MaxBytes, 4<<20)
	setDefault(&o.MaxSessions, 4096)
	if o.Patience <= 0 {
		o.Patience = 30 * time.Second
	}
	return o
}

func setDefault(v *int, d int) {
	if *v <= 0 {
		*v = d
	}
}

const (
	// An acknowledgement goes alone after this many messages or bytes, or after
	// ackDelay: well before the peer's queue is full, and rarely where data goes back.
	ackMessages = 32
	ackBytes    = 256 << 10
	ackDelay    = 2 * time.Millisecond
	// greetTimeout bounds the exchange of Hello and Welcome.
	greetTimeout = 5 * time.Second
	// A dialling session waits between two attempts, twice as long after each.
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// Stats of a session.
type Stats struct {
	Connections uint64 // that were welcomed
	Resent      uint64 // messages
	Duplicates  uint64 // messages that came again, and were dropped
}

// Session is one end of a connection that survives its connections. It belongs to
// its loop's goroutine, which all methods must be called on.
type Session struct {
	loop    *netpoll.Loop
	handler Handler
	opts    Options
	id      [idBytes]byte
	dial    *dialer // nil at the listening end
	unlist  func()  // off the list of its listener, or of the loop's stop

	// Context is the embedder's own.
	Context any

	conn     *netpoll.Conn // nil while there is none, or it is not welcomed
	queue    queue
	acked    uint64 // oldest sequence number in queue
	sent     int    // of queue, handed to conn
	resend   int    // of queue, handed to an earlier connection
	expected uint64 // next from the peer

	owedMessages, owedBytes int // taken since the last acknowledgement
	ackTimer                *netpoll.Timer
	expiry                  *netpoll.Timer // while there is no connection

	opened, blocked, closing, closed, inOrder bool
	stats                                     Stats
}

func newSession(l *netpoll.Loop, h Handler, o Options) *Session {
	return &Session{loop: l, handler: h, opts: o, acked: 1, expected: 1}
}

// ID is the session's: 32 hexadecimal digits.
func (s *Session) ID() string { return hex.EncodeToString(s.id[:]) }

// Loop is the session's loop. Any goroutine.
func (s *Session) Loop() *netpoll.Loop { return s.loop }

// Stats returns the counters.
func (s *Session) Stats() Stats { return s.stats }

// Conn is the connection of the moment; nil while there is none. Messages sent on
// it directly break the session.
func (s *Session) Conn() *netpoll.Conn { return s.conn }

// Unacked are the messages that the peer has not acknowledged, oldest first, with the
// payload as their window. They are the session's; whoever wants one beyond OnClose
// Retains it. To be called in OnClose only: it undoes the headers.
func (s *Session) Unacked() []*hugepages.Buf {
	var bufs []*hugepages.Buf
	for i := range s.queue.count {
		if e := s.queue.at(i); e.buf != nil {
			e.buf.SetWindow(e.start+headerBytes, e.end)
			bufs = append(bufs, e.buf)
		}
	}
	return bufs
}

// Send queues b as one message and takes the caller's reference; it is kept until
// the peer has acknowledged it, and nobody may write to it. It works while there is no
// connection, too. On error the caller keeps the reference: ErrBackpressure (wait for
// OnWritable), ErrClosed, ErrMessageTooLarge. b needs 20 bytes of headroom more than
// its transport does; what pools and Conn.Alloc give has them.
func (s *Session) Send(b *hugepages.Buf) error {
	switch {
	case s.closing || s.closed:
		return netpoll.ErrClosed
	case b.Len()+headerBytes > s.loop.MaxMessageBytes():
		return fmt.Errorf("%w: %d bytes, limit %d", netpoll.ErrMessageTooLarge, b.Len(), s.loop.MaxMessageBytes()-headerBytes)
	case s.queue.count >= s.opts.MaxMessages || s.queue.bytes >= s.opts.MaxBytes:
		s.blocked = true
		return netpoll.ErrBackpressure
	}
	h := header{kind: kindData, seq: s.acked + uint64(s.queue.count), ack: 1}
	h.put(b.Prepend(headerBytes))
	start := b.Headroom() - hugepages.HeadroomBytes
	s.queue.push(entry{b, start, start + b.Len()})
	s.pump()
	return nil
}

// Close refuses further Sends, has everything that was sent delivered, and ends both
// ends' sessions with a nil error. What the peer still sends is delivered until then.
func (s *Session) Close() {
	if s.closing || s.closed {
		return
	}
	s.closing = true
	s.queue.push(entry{})
	s.pump()
}

// Abort ends the session now; the peer's ends with ErrLost, or when its patience
// does.
func (s *Session) Abort(err error) { s.finish(err) }

// pump hands to the connection what it takes.
func (s *Session) pump() {
	for c := s.conn; c != nil && c == s.conn && s.sent < s.queue.count; {
		e := s.queue.at(s.sent)
		h := header{kind: kindData, seq: s.acked + uint64(s.sent), ack: s.expected}
		if e.buf == nil {
			h.kind = kindBye
			if !s.control(h, nil) {
				return
			}
		} else {
			e.buf.SetWindow(e.start, e.end) // an earlier connection may have moved it
			h.put(e.buf.Bytes())
			if err := c.Send(e.buf.Retain()); err != nil {
				e.buf.Release()
				if !errors.Is(err, netpoll.ErrBackpressure) && !errors.Is(err, netpoll.ErrClosed) {
					s.finish(err) // larger than the peer takes
				}
				return
			}
		}
		s.ackSent()
		if s.sent < s.resend {
			s.stats.Resent++
		}
		s.sent++
		s.resend = max(s.resend, s.sent)
	}
}

// control sends a message without data of the handler's. False: not now; it is tried
// again.
func (s *Session) control(h header, payload []byte) bool {
	c := s.conn
	err := sendFrame(c, h, payload)
	if err != nil && !errors.Is(err, netpoll.ErrClosed) {
		s.ackLater()
	}
	return err == nil
}

// sendFrame sends a message of a header and payload.
func sendFrame(c *netpoll.Conn, h header, payload []byte) error {
	b, err := c.Alloc(headerBytes + len(payload))
	if err != nil {
		return err
	}
	h.put(b.Bytes())
	copy(b.Bytes()[headerBytes:], payload)
	if err = c.Send(b); err != nil {
		b.Release()
	}
	return err
}

func (s *Session) ackSent() {
	s.owedMessages, s.owedBytes = 0, 0
	if s.ackTimer != nil {
		s.ackTimer.Stop()
	}
}

// ackDue acknowledges alone what came and nothing carried back.
func (s *Session) ackDue() {
	switch {
	case s.conn == nil || s.owedMessages == 0:
	case s.owedMessages < ackMessages && s.owedBytes < ackBytes:
		s.ackLater()
	default:
		s.ackNow()
	}
}

func (s *Session) ackNow() {
	if s.conn != nil && s.owedMessages > 0 && s.control(header{kind: kindAck, seq: s.acked, ack: s.expected}, nil) {
		s.ackSent()
	}
}

// ackLater arms the timer, which also tries again what the connection had no room for.
func (s *Session) ackLater() {
	at := s.loop.Now() + int64(ackDelay)
	switch {
	case s.ackTimer == nil:
		s.ackTimer = s.loop.At(at, func() { s.ackNow(); s.pump() })
	default:
		s.ackTimer.Reset(at)
	}
}

// greeted begins to use c, whose peer expects ack next.
func (s *Session) greeted(c *netpoll.Conn, ack uint64) {
	s.conn, s.sent = c, 0
	s.stats.Connections++
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.takeAck(ack)
	if !s.opened {
		s.opened = true
		s.handler.OnOpen(s)
	}
	s.pump()
}

// valid tells whether a peer may expect ack next.
func (s *Session) valid(ack uint64) bool {
	return ack >= s.acked && ack <= s.acked+uint64(s.resend)
}

// takeAck frees what the peer acknowledged.
func (s *Session) takeAck(ack uint64) {
	for ; s.acked < ack; s.acked++ {
		s.queue.pop()
		s.sent = max(0, s.sent-1)
		s.resend--
	}
	if s.closing && s.queue.count == 0 {
		s.finish(nil)
		return
	}
	if s.blocked && !s.closing && s.queue.count <= s.opts.MaxMessages/2 && s.queue.bytes <= s.opts.MaxBytes/2 {
		s.blocked = false
		s.handler.OnWritable(s)
	}
}

// messages handles what came on c after the greeting.
func (s *Session) messages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if s.conn != c {
			return
		}
		m := &ms[i]
		h, err := parse(m)
		switch {
		case err != nil:
		case h.kind != kindData && h.kind != kindAck && h.kind != kindBye || !s.valid(max(h.ack, s.acked)):
			err = fmt.Errorf("%w: resume: kind %d with acknowledgement %d, sent were %d to %d", netpoll.ErrProtocol, h.kind, h.ack, s.acked, s.acked+uint64(s.queue.count)-1)
		case h.kind != kindAck && h.seq > s.expected:
			err = fmt.Errorf("%w: resume: message %d where %d was due", netpoll.ErrProtocol, h.seq, s.expected)
		}
		if err != nil {
			c.Close(err)
			return
		}
		s.take(&h, m)
	}
	if s.conn == c {
		s.ackDue()
	}
}

func (s *Session) take(h *header, m *netpoll.Message) {
	s.takeAck(max(h.ack, s.acked))
	if h.kind == kindAck {
		return
	}
	s.owedMessages++
	if h.seq < s.expected {
		s.stats.Duplicates++
		return
	}
	s.expected++
	if h.kind == kindBye {
		s.ackNow()
		if d := s.dial; d != nil {
			// The peer closes the connection when it has the acknowledgement. Until then this
			// end is there to repeat it.
			d.linger, d.conn, s.conn = true, s.conn, nil
			s.loop.After(s.opts.Patience, func() {
				if d.linger = false; d.conn != nil {
					d.conn.Close(nil)
				}
			})
		}
		s.finish(nil)
		return
	}
	s.owedBytes += m.Len()
	s.handler.OnMessage(s, m)
}

// lost notes that c has ended. It tells whether the session goes on without.
func (s *Session) lost(c *netpoll.Conn, err error) bool {
	if s.conn != c {
		return false
	}
	s.conn = nil
	if s.ackTimer != nil {
		s.ackTimer.Stop()
	}
	s.owedMessages, s.owedBytes = 0, 0 // Hello or Welcome says what was taken
	if errors.Is(err, netpoll.ErrLoopClosed) {
		s.finish(err)
		return false
	}
	return !s.closed
}

// wait ends the session if it has no connection for too long.
func (s *Session) wait() {
	s.expiry = s.loop.After(s.opts.Patience, func() { s.finish(ErrExpired) })
}

// finish ends the session, once.
func (s *Session) finish(err error) {
	if s.closed {
		return
	}
	s.closed, s.inOrder = true, err == nil
	for _, t := range []*netpoll.Timer{s.ackTimer, s.expiry} {
		if t != nil {
			t.Stop()
		}
	}
	c := s.conn
	s.conn = nil
	if c != nil {
		if err == nil {
			c.Drain(s.loop.Now() + int64(greetTimeout))
		} else {
			c.Close(err)
		}
	}
	s.handler.OnClose(s, err)
	for s.queue.count > 0 {
		s.queue.pop()
	}
	s.unlist()
}
