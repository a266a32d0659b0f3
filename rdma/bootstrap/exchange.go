package bootstrap

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
	"unicode"

	"github.com/millrace/millrace/netpoll"
)

// StepTimeout bounds each step of the exchange: the other side's set-up of a
// device included, which takes tens of milliseconds at worst.
const StepTimeout = 5 * time.Second

// A refused peer may finish its sentence: this long, and this many bytes.
const (
	LingerTime = 500 * time.Millisecond
	maxLinger  = 64 << 10
)

// Send writes m within StepTimeout.
func Send(c net.Conn, m Message) error {
	b, err := Append(nil, m)
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(StepTimeout)); err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return fmt.Errorf("rdma: bootstrap with %s: sending %v: %w", c.RemoteAddr(), m.kind(), err)
	}
	return nil
}

// RefusedError is the peer's Refusal.
type RefusedError struct{ Peer, Reason string }

func (e *RefusedError) Error() string {
	return fmt.Sprintf("rdma: %s refused the connection: %s", e.Peer, e.Reason)
}

// FallbackError is the peer's Fallback: it wants to stay on TCP, or agrees to.
type FallbackError struct{ Peer, Reason string }

func (e *FallbackError) Error() string {
	return fmt.Sprintf("rdma: %s would stay on TCP: %s", e.Peer, e.Reason)
}

// Receive reads the next frame within StepTimeout. A Refusal becomes a
// RefusedError, a Fallback a FallbackError.
func Receive(c net.Conn) (Message, error) {
	if err := c.SetReadDeadline(time.Now().Add(StepTimeout)); err != nil {
		return nil, err
	}
	m, err := Read(c)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: the peer closed in the middle of the bootstrap: it died, or is not a millrace peer", netpoll.ErrProtocol)
	}
	if err != nil {
		return nil, fmt.Errorf("rdma: bootstrap with %s: %w", c.RemoteAddr(), err)
	}
	switch m := m.(type) {
	case *Refusal:
		return nil, &RefusedError{c.RemoteAddr().String(), m.Reason}
	case *Fallback:
		return nil, &FallbackError{c.RemoteAddr().String(), m.Reason}
	}
	return m, nil
}

// Expect is Receive of one kind of message.
func Expect[M Message](c net.Conn) (want M, err error) {
	m, err := Receive(c)
	if err != nil {
		return want, err
	}
	got, ok := m.(M)
	if !ok {
		return want, Unexpected(c, m)
	}
	return got, nil
}

// Unexpected is the error for a message out of turn.
func Unexpected(c net.Conn, m Message) error {
	return fmt.Errorf("%w: rdma: bootstrap with %s: unexpected %v", netpoll.ErrProtocol, c.RemoteAddr(), m.kind())
}

// Refuse tells the peer why, as far as it listens; c is closed afterwards by the
// caller.
func Refuse(c net.Conn, reason error) {
	// The peer may be gone, or not even speak the protocol: nothing more can be done.
	if Tell(c, reason) == nil {
		Linger(c)
	}
}

// Tell sends a Refusal, behind which this end says no more.
func Tell(c net.Conn, reason error) error {
	if err := Send(c, &Refusal{Reason: Reason(reason)}); err != nil {
		return err
	}
	if t, ok := c.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return nil
}

// Linger lets the peer finish, for LingerTime at most, before c is closed: closing with
// unread data would send a reset, and that may overtake the refusal. One goroutine reads
// from c at a time: a second would wait for as long as the first does.
func Linger(c net.Conn) {
	if c.SetReadDeadline(time.Now().Add(LingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, c, maxLinger)
	}
}

// Reason is err's text as a Refusal or Fallback takes it.
func Reason(err error) string {
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, err.Error())
	for len(s) > maxReason {
		s = s[:len(s)-len(s)/8]
	}
	return cmp.Or(strings.ToValidUTF8(s, ""), "no reason given")
}
