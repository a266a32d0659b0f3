package resume

import (
	"fmt"

	"github.com/millrace/millrace/netpoll"
)

// Codes of a Refusal, in its sequence number.
const (
	refusedLost = 1 + iota
	refusedFull
)

// listener is the netpoll.Handler of a listening end. What it holds belongs to the
// loop's goroutine.
type listener struct {
	netpoll.BaseHandler
	loop     *netpoll.Loop
	handler  Handler
	opts     Options
	sessions map[[idBytes]byte]*Session // closed ones included, for Options.Patience
}

// Listen accepts sessions at rawURL for h. Any goroutine but the loop's.
func Listen(l *netpoll.Loop, rawURL string, h Handler, o Options) (netpoll.Listener, error) {
	ls := &listener{loop: l, handler: h, opts: o.withDefaults(), sessions: map[[idBytes]byte]*Session{}}
	err := l.Do(func() {
		l.AtStop(func() {
			for _, s := range ls.sessions {
				s.finish(netpoll.ErrLoopClosed)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return l.Listen(rawURL, ls)
}

func (ls *listener) OnOpen(c *netpoll.Conn) {
	ls.loop.After(greetTimeout, func() {
		if c.Context == nil {
			c.Close(fmt.Errorf("%w: resume: no Hello within %v: the peer does not use sessions", netpoll.ErrProtocol, greetTimeout))
		}
	})
}

func (ls *listener) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	if c.Context == nil {
		if err := ls.hello(c, &ms[0]); err != nil {
			c.Close(err)
			return
		}
		ms = ms[1:]
	}
	if s, ok := c.Context.(*Session); ok {
		s.messages(c, ms)
	}
}

// hello attaches c to the session that its first message names.
func (ls *listener) hello(c *netpoll.Conn, m *netpoll.Message) error {
	h, err := parse(m)
	if err != nil {
		return err
	}
	if h.kind != kindHello {
		return fmt.Errorf("%w: resume: kind %d before Hello", netpoll.ErrProtocol, h.kind)
	}
	id := [idBytes]byte(m.Data)
	s := ls.sessions[id]
	switch {
	case s == nil && h.flags&flagResumed != 0:
		return ls.refuse(c, refusedLost, ErrLost)
	case s == nil && len(ls.sessions) >= ls.opts.MaxSessions:
		return ls.refuse(c, refusedFull, fmt.Errorf("resume: all %d sessions are taken: raise MaxSessions", ls.opts.MaxSessions))
	case s == nil:
		s = newSession(ls.loop, ls.handler, ls.opts)
		s.id, s.unlist = id, func() { ls.remember(s) }
		ls.sessions[id] = s
	}
	// What one end says it holds must reach what the other one expects.
	if !s.valid(h.ack) || h.seq > s.expected {
		return ls.refuse(c, refusedLost, fmt.Errorf("%w: resume: the session cannot go on at %d and %d, here it is at %d and %d", netpoll.ErrProtocol, h.seq, h.ack, s.expected, s.acked))
	}
	if old := s.conn; old != nil { // this end has not noticed that it broke
		s.conn = nil
		old.Close(fmt.Errorf("resume: the session goes on over another connection, from %s", c.RemoteAddr()))
	}
	c.Context = s
	if err := sendFrame(c, header{kind: kindWelcome, seq: s.acked, ack: s.expected}, nil); err != nil {
		return err
	}
	if s.closed {
		c.Drain(ls.loop.Now() + int64(greetTimeout))
		return nil
	}
	s.greeted(c, h.ack)
	return nil
}

// refuse tells the peer why, and ends c.
func (ls *listener) refuse(c *netpoll.Conn, code uint64, reason error) error {
	c.Context = reason
	text := reason.Error()
	if err := sendFrame(c, header{kind: kindRefusal, seq: code, ack: 1}, []byte(text[:min(len(text), maxReason)])); err != nil {
		return err
	}
	c.Drain(ls.loop.Now() + int64(greetTimeout))
	return nil
}

// remember keeps a session that has ended for its peer to learn that, if it ended in
// order.
func (ls *listener) remember(s *Session) {
	if !s.inOrder {
		delete(ls.sessions, s.id)
		return
	}
	ls.loop.After(s.opts.Patience, func() { delete(ls.sessions, s.id) })
}

func (ls *listener) OnWritable(c *netpoll.Conn) {
	if s, ok := c.Context.(*Session); ok && s.conn == c {
		s.pump()
	}
}

func (ls *listener) OnClose(c *netpoll.Conn, err error) {
	if s, ok := c.Context.(*Session); ok && s.lost(c, err) {
		s.wait()
	}
}
