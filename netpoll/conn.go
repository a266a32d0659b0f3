package netpoll

import (
	"fmt"
	"sync/atomic"

	"github.com/millrace/millrace/hugepages"
)

// Conn is one connection of a loop, whatever carries it. Unless a method says
// otherwise it may be called only on the loop's goroutine (from a Handler, a
// timer or a submitted function).
type Conn struct {
	id        uint64
	loop      *Loop
	handler   Handler
	wire      Wire
	transport Transport
	remote    string

	// Context is the embedder's own; the loop never touches it.
	Context any

	maxMessage  int // the smaller of both ends' limits
	queuedBytes int // accepted by Send, not yet reported by Endpoint.Sent
	queuedMsgs  int
	state       connState
	blocked     bool // a Send was refused; OnWritable is owed
	dirty       bool // queued since the last flush; listed in loop.dirty
	drainTimer  *Timer

	counts    ConnStats // the loop's own
	shown     connCounters
	uncounted bool // counts is ahead of shown; listed in loop.uncounted
}

type connState uint8

const (
	connOpen connState = iota
	connDraining
	connClosed
)

// connCounters are what was published last; see Loop.publish.
type connCounters struct {
	sentMessages, sentBytes, receivedMessages, receivedBytes, refused atomic.Uint64
}

// count lists the connection for the next publish.
func (c *Conn) count() {
	if !c.uncounted {
		c.uncounted = true
		c.loop.uncounted = append(c.loop.uncounted, c)
	}
}

func (c *Conn) publish() {
	c.uncounted = false
	c.shown.sentMessages.Store(c.counts.SentMessages)
	c.shown.sentBytes.Store(c.counts.SentBytes)
	c.shown.receivedMessages.Store(c.counts.ReceivedMessages)
	c.shown.receivedBytes.Store(c.counts.ReceivedBytes)
	c.shown.refused.Store(c.counts.Refused)
}

// ConnStats counts messages and payload bytes since the connection opened. They may
// be 100 µs old.
type ConnStats struct {
	SentMessages, SentBytes, ReceivedMessages, ReceivedBytes uint64
	Refused                                                  uint64 // Sends answered with ErrBackpressure
}

// ID is unique within the loop. Any goroutine.
func (c *Conn) ID() uint64 { return c.id }

// Loop is the connection's loop. Any goroutine.
func (c *Conn) Loop() *Loop { return c.loop }

// Transport says what the connection runs on and why. Any goroutine.
func (c *Conn) Transport() Transport { return c.transport }

// RemoteAddr is the peer's address for people to read. Any goroutine.
func (c *Conn) RemoteAddr() string { return c.remote }

// Stats returns the counters. Any goroutine.
func (c *Conn) Stats() ConnStats {
	return ConnStats{
		SentMessages: c.shown.sentMessages.Load(), SentBytes: c.shown.sentBytes.Load(),
		ReceivedMessages: c.shown.receivedMessages.Load(), ReceivedBytes: c.shown.receivedBytes.Load(),
		Refused: c.shown.refused.Load(),
	}
}

// Alloc returns a Buf with a window of n bytes for the caller to fill and Send.
func (c *Conn) Alloc(n int) (*hugepages.Buf, error) {
	if l := c.loop; l.spare != nil {
		if b := l.spare.Renew(n); b != nil {
			l.spare = nil
			return b, nil
		}
	}
	return c.loop.pool.Get(n, hugepages.Send)
}

// Send queues b as one message and takes the caller's reference; the message
// leaves at the end of the duty cycle, together with others, or at Flush. It
// never blocks. On error the caller keeps the reference: ErrBackpressure (wait
// for OnWritable), ErrClosed, ErrMessageTooLarge.
//
// The backend may put its header into b's headroom. Others may hold references
// and read the payload meanwhile, but the same Buf must not be sent again before
// this send is finished.
func (c *Conn) Send(b *hugepages.Buf) error {
	if c.state != connOpen {
		return ErrClosed
	}
	n := b.Len()
	if n > c.maxMessage {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrMessageTooLarge, n, c.maxMessage)
	}
	// A message is accepted while the queue is below its bound, so that one
	// larger than the bound can still be sent; the queue never holds more than
	// the bound plus one message.
	if c.queuedBytes >= c.loop.opts.MaxQueuedBytes || c.queuedMsgs >= c.loop.opts.MaxQueuedMessages {
		c.blocked = true
		c.counts.Refused++
		c.count()
		return ErrBackpressure
	}
	c.queuedBytes += n
	c.queuedMsgs++
	c.counts.SentMessages++
	c.counts.SentBytes += uint64(n)
	c.count()
	if !c.dirty {
		c.dirty = true
		c.loop.dirty = append(c.loop.dirty, c)
	}
	c.wire.Send(b)
	return nil
}

// Flush hands what is queued to the transport now instead of at the end of the
// duty cycle.
func (c *Conn) Flush() {
	if c.state != connClosed {
		c.wire.Flush()
	}
}

// QueuedBytes is what Send accepted and the transport has not finished: written
// to the kernel (TCP), acknowledged by the peer's device (RDMA, DPDK), or put into
// memory that the peer shares (memif).
func (c *Conn) QueuedBytes() int { return c.queuedBytes }

// PauseReading stops delivery after the messages of the current burst; the
// transport's own flow control then holds the peer back.
func (c *Conn) PauseReading() {
	if c.state != connClosed {
		c.wire.SetReading(false)
	}
}

// ResumeReading undoes PauseReading.
func (c *Conn) ResumeReading() {
	if c.state != connClosed {
		c.wire.SetReading(true)
	}
}

// Close closes now; queued messages are dropped. OnClose(err) runs before Close
// returns. Closing a closed connection does nothing.
func (c *Conn) Close(err error) {
	if c.state == connClosed {
		return
	}
	c.state = connClosed
	if c.drainTimer != nil {
		c.drainTimer.Stop()
	}
	c.handBack()
	c.wire.Shut()
	c.loop.dropSpare()
	c.loop.forget(c)
	c.loop.oweHooks()
	c.handler.OnClose(c, err)
}

// Drain refuses further Sends, delivers what is queued, and then closes with a
// nil error; at the deadline (a Loop.Now value) it closes with ErrDrainTimeout.
func (c *Conn) Drain(deadline int64) {
	if c.state != connOpen {
		return
	}
	c.state = connDraining
	c.wire.Flush()
	if c.state == connClosed {
		return
	}
	if c.queuedMsgs == 0 {
		c.Close(nil)
		return
	}
	c.drainTimer = c.loop.At(deadline, func() { c.Close(ErrDrainTimeout) })
}

// Endpoint is the backend's handle on a Conn: a backend makes one per
// connection and reports through it what happens on the wire. Loop's goroutine
// only.
type Endpoint struct{ conn Conn }

// NewEndpoint makes a connection over w. It is not open before Open.
func NewEndpoint(l *Loop, h Handler, w Wire, t Transport, remote string) *Endpoint {
	l.nextConnID++
	return &Endpoint{conn: Conn{
		id: l.nextConnID, loop: l, handler: h, wire: w, transport: t, remote: remote, maxMessage: l.opts.MaxMessageBytes,
	}}
}

// LimitMessage lowers the largest message that Send takes to what the peer
// accepts; call it before Open.
func (e *Endpoint) LimitMessage(bytes int) { e.conn.maxMessage = min(e.conn.maxMessage, bytes) }

// Conn is the connection that handlers see.
func (e *Endpoint) Conn() *Conn { return &e.conn }

// Open registers the connection with its loop and runs OnOpen.
func (e *Endpoint) Open() {
	e.conn.loop.conns[&e.conn] = struct{}{}
	e.conn.loop.stats.conns.Add(1)
	e.conn.loop.oweHooks()
	e.conn.handler.OnOpen(&e.conn)
}

// IsClosed reports whether the connection was closed, by either side.
func (e *Endpoint) IsClosed() bool { return e.conn.state == connClosed }

// Deliver hands a burst to the handler and then releases every message. The
// slice stays the backend's.
func (e *Endpoint) Deliver(ms []Message) {
	e.Lend(ms)
	for i := range ms {
		ms[i].Release()
	}
}

// Lend is Deliver for a backend that releases the messages itself.
func (e *Endpoint) Lend(ms []Message) {
	c := &e.conn
	if c.state != connClosed {
		for i := range ms {
			c.counts.ReceivedBytes += uint64(ms[i].Len())
		}
		c.counts.ReceivedMessages += uint64(len(ms))
		c.count()
		c.loop.oweHooks()
		c.handler.OnMessages(c, ms)
	}
}

// Roomy tells that the connection queues less than a quarter of what it may, and is
// not draining: nobody waits for the transport to finish with it.
func (e *Endpoint) Roomy() bool {
	c, o := &e.conn, &e.conn.loop.opts
	return c.state == connOpen && 4*c.queuedMsgs < o.MaxQueuedMessages && 4*c.queuedBytes < o.MaxQueuedBytes
}

// Draining tells that the connection closes once what is queued is sent.
func (e *Endpoint) Draining() bool { return e.conn.state == connDraining }

// Sent reports that the transport finished with messages messages of together
// bytes payload bytes, in order. It ends back-pressure and completes a drain.
func (e *Endpoint) Sent(messages, bytes int) {
	c := &e.conn
	c.queuedMsgs -= messages
	c.queuedBytes -= bytes
	if c.state == connDraining && c.queuedMsgs == 0 {
		c.Close(nil)
		return
	}
	o := &c.loop.opts
	if c.blocked && c.state == connOpen && c.queuedBytes <= o.MaxQueuedBytes/2 && c.queuedMsgs <= o.MaxQueuedMessages/2 {
		c.blocked = false
		c.loop.writable = append(c.loop.writable, c)
	}
}

// Closed reports that the transport ended; err is nil if the peer closed in
// order. The Conn calls Wire.Shut and OnClose.
func (e *Endpoint) Closed(err error) { e.conn.Close(err) }
