package resume

import (
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"time"

	"github.com/millrace/millrace/netpoll"
)

// dialer is the dialling end's half of a session, and the netpoll.Handler of its
// connections.
type dialer struct {
	netpoll.BaseHandler
	s        *Session
	url      string
	backoff  time.Duration
	welcomed bool          // once
	conn     *netpoll.Conn // open and not yet welcomed, or lingering
	linger   bool          // the peer closed: it shall learn that this end knows
}

// Dial begins a session with the listening end at rawURL. It returns at once; the
// session connects, and connects again, until it is closed or was without a connection
// for Options.Patience. Any goroutine.
func Dial(l *netpoll.Loop, rawURL string, h Handler, o Options) (*Session, error) {
	s := newSession(l, h, o.withDefaults())
	_, _ = rand.Read(s.id[:]) // crypto/rand.Read never fails
	d := &dialer{s: s, url: rawURL, backoff: minBackoff}
	s.dial = d
	err := l.Submit(func() {
		s.unlist = l.AtStop(func() { s.finish(netpoll.ErrLoopClosed) })
		s.wait()
		d.connect()
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// ended tells whether nothing more is to be done.
func (d *dialer) ended() bool { return d.s.closed && !d.linger }

func (d *dialer) connect() {
	if d.ended() {
		return
	}
	d.s.loop.DialAsync(d.url, d, func(_ *netpoll.Conn, err error) {
		if err != nil {
			d.retry(err)
		}
	})
}

// retry connects again after a while.
func (d *dialer) retry(err error) {
	if d.ended() || errors.Is(err, netpoll.ErrLoopClosed) {
		return
	}
	wait := d.backoff/2 + mrand.N(d.backoff/2)
	d.backoff = min(2*d.backoff, maxBackoff)
	d.s.loop.After(wait, d.connect)
}

func (d *dialer) OnOpen(c *netpoll.Conn) {
	if d.ended() {
		c.Close(nil)
		return
	}
	s := d.s
	d.conn = c
	h := header{kind: kindHello, seq: s.acked, ack: s.expected}
	if d.welcomed {
		h.flags = flagResumed
	}
	if err := sendFrame(c, h, s.id[:]); err != nil {
		c.Close(err)
		return
	}
	s.loop.After(greetTimeout, func() {
		if d.conn == c {
			c.Close(fmt.Errorf("%w: resume: no answer to Hello within %v: the peer does not use sessions, or is overloaded", netpoll.ErrProtocol, greetTimeout))
		}
	})
}

func (d *dialer) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	s := d.s
	if s.conn == c {
		s.messages(c, ms)
		return
	}
	if d.conn != c {
		return
	}
	h, err := parse(&ms[0])
	switch {
	case err != nil:
	case h.kind == kindRefusal && h.seq == refusedLost:
		d.conn = nil
		c.Close(nil)
		d.linger = false
		s.finish(fmt.Errorf("%w (%s)", ErrLost, ms[0].Data))
		return
	case h.kind == kindRefusal:
		err = fmt.Errorf("resume: refused: %s", ms[0].Data)
	case h.kind != kindWelcome || !s.valid(h.ack) || h.seq > s.expected:
		err = fmt.Errorf("%w: resume: kind %d, at %d and %d, here it is at %d and %d", netpoll.ErrProtocol, h.kind, h.seq, h.ack, s.expected, s.acked)
	}
	if err != nil {
		c.Close(err)
		return
	}
	d.conn, d.welcomed, d.backoff = nil, true, minBackoff
	if s.closed { // the peer has learned from Hello what it had to know
		d.linger = false
		c.Close(nil)
		return
	}
	s.greeted(c, h.ack)
	s.messages(c, ms[1:])
}

func (d *dialer) OnWritable(c *netpoll.Conn) {
	if d.s.conn == c {
		d.s.pump()
	}
}

func (d *dialer) OnClose(c *netpoll.Conn, err error) {
	s := d.s
	switch {
	case s.conn == c:
		if s.lost(c, err) {
			s.wait()
			d.retry(err)
		}
	case d.conn != c:
	case d.linger && err == nil:
		d.conn, d.linger = nil, false
	default:
		d.conn = nil
		d.retry(err)
	}
}
