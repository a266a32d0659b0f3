package roles

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/netpoll"
)

// A stream on one connection without a broker: one end keeps its send queue full,
// the other counts. Every message carries its number; the bytes of one in
// fullEvery are written and compared as well, so that it is the transport that is
// measured and not the memory of both ends.

const (
	// numberBytes is the message's number, at its beginning.
	numberBytes = 8
	// lastNumber marks the end of the stream; the answer is what arrived.
	lastNumber = 1 << 63
	fullEvery  = 64
)

// streamMessages are the messages that have room for a number.
func streamMessages(spec role.Spec) ([][]byte, error) {
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return nil, err
	}
	if ms = filter(ms, func(m []byte) bool { return len(m) >= numberBytes }); len(ms) == 0 {
		return nil, &role.Unavailable{Reason: fmt.Sprintf("no message has the %d bytes of a stream's number", numberBytes), Fix: "use larger messages (--size)"}
	}
	return ms, nil
}

// sink counts what arrives. One connection.
type sink struct {
	netpoll.BaseHandler
	ms              [][]byte
	next            uint64
	lost, duplicate uint64
}

// streamSink listens for a stream.
func streamSink(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := streamMessages(spec)
	if err != nil {
		return err
	}
	return serveLoop(ctx, spec, c, &sink{ms: ms})
}

// OnMessages implements netpoll.Handler.
func (s *sink) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if err := s.take(c, &ms[i]); err != nil {
			c.Close(err)
			return
		}
	}
}

func (s *sink) take(c *netpoll.Conn, m *netpoll.Message) error {
	if len(m.Data) < numberBytes {
		return fmt.Errorf("stream: the first piece of a message has %d bytes", len(m.Data))
	}
	n := binary.BigEndian.Uint64(m.Data)
	if n == lastNumber {
		return s.answer(c)
	}
	want := s.ms[n%uint64(len(s.ms))]
	if m.Len() != len(want) {
		return fmt.Errorf("stream: message %d has %d bytes instead of %d", n, m.Len(), len(want))
	}
	if n%fullEvery == 0 {
		got, err := m.Contiguous(c.Loop().Pool())
		if err != nil {
			return err
		}
		if !bytes.Equal(got[numberBytes:], want[numberBytes:]) {
			return fmt.Errorf("stream: message %d differs from what was sent", n)
		}
	}
	switch {
	case n < s.next:
		s.duplicate++
		return nil
	case n > s.next:
		s.lost += n - s.next
	}
	s.next = n + 1
	return nil
}

// answer tells what arrived.
func (s *sink) answer(c *netpoll.Conn) error {
	b, err := c.Alloc(2 * numberBytes)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint64(b.Bytes(), s.next-s.lost)
	binary.BigEndian.PutUint64(b.Bytes()[numberBytes:], s.duplicate)
	if err := c.Send(b); err != nil {
		b.Release()
		return err
	}
	return nil
}

// streamSource sends to a streamSink.
func streamSource(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := streamMessages(spec)
	if err != nil {
		return err
	}
	l, err := startLoop(spec)
	if err != nil {
		return err
	}
	defer l.Stop()
	s := &source{ms: ms, flush: spec.FlushEach, done: make(chan error, 1)}
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := l.Dial(dctx, spec.URL, s)
	if err != nil {
		return err
	}
	ready := describe(conn.Transport())
	ready.Kind = role.Ready
	c.Emit(ready)
	w, err := open(ctx, spec, c)
	if err != nil {
		return err
	}
	meter := loopMeter(l.Loop)
	if err := l.Do(func() { s.w = w; s.OnWritable(conn) }); err != nil {
		return err
	}
	select {
	case err := <-s.done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	return finish(ctx, c, w, meter, &s.result, func() { _ = l.shutdown() })
}

// source keeps the send queue of one connection full; the loop's goroutine.
type source struct {
	netpoll.BaseHandler
	ms    [][]byte
	flush bool
	w     *window
	done  chan error

	next   uint64
	began  time.Time // the first message that counts
	from   uint64    // its number
	bytes  int64     // of those that count
	ended  bool      // no more messages
	asked  bool      // the last number is on its way
	result role.Result
}

// OnWritable implements netpoll.Handler.
func (s *source) OnWritable(c *netpoll.Conn) {
	for !s.ended {
		if s.next%clockEvery == 0 {
			now := time.Now()
			if !s.w.next(now) {
				s.ended = true
				break
			}
			if s.began.IsZero() && s.w.counts(now) {
				s.began, s.from = now, s.next
			}
		}
		m := s.ms[s.next%uint64(len(s.ms))]
		if !s.send(c, m, s.next, s.next%fullEvery == 0) {
			return
		}
		s.next++
		if !s.began.IsZero() {
			s.bytes += int64(len(m))
		}
		if s.flush {
			c.Flush()
		}
	}
	s.asked = s.asked || s.send(c, s.ms[0][:numberBytes], lastNumber, false)
}

// send sends one message; false if it has to wait, or if the stream is over.
func (s *source) send(c *netpoll.Conn, m []byte, number uint64, full bool) bool {
	b, err := c.Alloc(len(m))
	if err != nil {
		s.finish(err)
		return false
	}
	if full {
		copy(b.Bytes(), m)
	}
	binary.BigEndian.PutUint64(b.Bytes(), number)
	if err := c.Send(b); err != nil {
		b.Release()
		if !errors.Is(err, netpoll.ErrBackpressure) {
			s.finish(err)
		}
		return false
	}
	return true
}

// OnMessages takes the sink's answer: all has arrived.
func (s *source) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	if len(ms[0].Data) != 2*numberBytes || !s.asked {
		s.finish(errors.New("stream: an answer that was not due"))
		return
	}
	lost := int64(s.next - binary.BigEndian.Uint64(ms[0].Data))
	duplicate := int64(binary.BigEndian.Uint64(ms[0].Data[numberBytes:]))
	s.result = role.Result{Bytes: s.bytes, Elapsed: time.Since(s.began), Lost: &lost, Duplicated: &duplicate}
	if !s.began.IsZero() { // otherwise it was too short
		s.result.Messages = int64(s.next - s.from)
	}
	s.finish(nil)
}

// OnClose ends the measurement if it was under way.
func (s *source) OnClose(_ *netpoll.Conn, err error) {
	if err == nil {
		err = errors.New("stream: closed by the other end")
	}
	s.finish(err)
}

// finish reports the end; only the first counts.
func (s *source) finish(err error) {
	select {
	case s.done <- err:
	default:
	}
}
