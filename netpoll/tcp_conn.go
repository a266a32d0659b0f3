package netpoll

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
)

const (
	// tcpMaxIovecs and tcpMaxWrite bound one writev: beyond them a call gains
	// nothing and only delays the loop.
	tcpMaxIovecs = 128
	tcpMaxWrite  = 512 << 10
	// tcpJoin is up to how many bytes a message is copied to lie beside others in one
	// piece: the kernel takes longer over a piece more than the copy takes.
	// tcpJoinBytes bounds what one writev takes of such.
	tcpJoin      = 1 << 10
	tcpJoinBytes = 64 << 10
)

// tcpConn is a Wire over one socket. Its receive side holds memory only while
// part of a message has arrived: reads go into the backend's scratch buffer, and
// what is left of an unfinished message moves to a buffer of its own.
type tcpConn struct {
	tcp *TCP
	ep  *Endpoint
	fd  int
	gen int32 // tells its events from those of an earlier socket of the same fd

	// Receiving.
	header   [frameHeader]byte
	headerN  int
	part     *hugepages.Buf // an unfinished message; its window is the whole of it
	partN    int            // bytes of it that arrived
	held     *hugepages.Buf // a read that the exhausted pool could not hold the end of
	heldData []byte
	reading  bool
	starved  bool
	hotIndex int // position in TCP.hot + 1; 0 = cold
	misses   int

	// Sending. The first message may be partly written.
	queue    bufQueue
	written  int
	interest uint32
	failed   bool
	shut     bool
}

func (c *tcpConn) isReading() bool { return c.reading && !c.shut && !c.starved }

// read takes what one system call gives and delivers the messages in it. It
// returns how many messages (at least 1 if any bytes arrived).
func (c *tcpConn) read() int {
	if !c.isReading() {
		return 0
	}
	t := c.tcp
	buf, err := t.buffer()
	if err != nil {
		c.starve()
		return 0
	}
	room := buf.Bytes()
	var n int
	rest := 0
	if c.part != nil {
		// Finish the message in its own buffer, and go on into scratch.
		p := c.part.Bytes()[c.partN:]
		rest = len(p)
		n, err = t.calls.readv(c.fd, p, room)
	} else {
		n, err = t.calls.read(c.fd, room)
	}
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return 0
	case err != nil:
		c.fail(os.NewSyscallError("read", err))
		return 1
	case n == 0:
		c.end()
		return 1
	}
	t.msgs = t.msgs[:0]
	if c.part != nil {
		got := min(n, rest)
		c.partN += got
		n -= got
		if c.partN == c.part.Len() {
			t.msgs = append(t.msgs, Message{Segment: Segment{Data: c.part.Bytes(), Buf: c.part}})
			c.part = nil
		}
	}
	return max(1, c.parse(buf, room[:n]))
}

// parse cuts data, which lies in buf, into messages, delivers them together with
// those already in t.msgs, and keeps an unfinished rest.
func (c *tcpConn) parse(buf *hugepages.Buf, data []byte) int {
	t := c.tcp
	limit := t.loop.opts.MaxMessageBytes
	var bad error
	for len(data) > 0 || c.headerN == frameHeader {
		size, body, ok := c.frame(data)
		if !ok {
			break
		}
		if size > limit {
			bad = fmt.Errorf("%w: %s announced a message of %d bytes, the limit is %d: raise MaxMessageBytes here or send less",
				ErrProtocol, c.ep.Conn().remote, size, limit)
			break
		}
		if size > len(body) {
			bad = c.beginPart(buf, size, body)
			break
		}
		data = body[size:]
		t.msgs = append(t.msgs, Message{Segment: Segment{Data: body[:size:size], Buf: buf.Retain()}})
	}
	n := len(t.msgs)
	if n > 0 {
		c.ep.Deliver(t.msgs)
	}
	if bad != nil {
		c.fail(bad)
	}
	return n
}

// frame takes the next header, of which earlier bytes may be in c.header, and
// returns its message size and what follows it. ok is false, and the bytes are
// kept, if the header is not complete yet.
func (c *tcpConn) frame(data []byte) (size int, body []byte, ok bool) {
	if c.headerN == 0 && len(data) >= frameHeader {
		return int(binary.BigEndian.Uint32(data)), data[frameHeader:], true
	}
	n := copy(c.header[c.headerN:], data)
	c.headerN += n
	if c.headerN < frameHeader {
		return 0, nil, false
	}
	c.headerN = 0
	return int(binary.BigEndian.Uint32(c.header[:])), data[n:], true
}

// beginPart moves the start of an unfinished message to a buffer of its own. If
// the pool has none now, the connection keeps the read as it is and starves. The
// error is for a message that no pool buffer can ever hold.
func (c *tcpConn) beginPart(buf *hugepages.Buf, size int, start []byte) error {
	b, err := c.tcp.loop.pool.Get(size, hugepages.Receive)
	if errors.Is(err, hugepages.ErrTooLarge) {
		return fmt.Errorf("%w: %s announced a message of %d bytes: %w", ErrProtocol, c.ep.Conn().remote, size, err)
	}
	if err != nil {
		binary.BigEndian.PutUint32(c.header[:], uint32(size))
		c.headerN = frameHeader
		c.held, c.heldData = buf.Retain(), start
		c.starve()
		return nil
	}
	c.part, c.partN = b, copy(b.Bytes(), start)
	return nil
}

// starve stops reading until the pool has room.
func (c *tcpConn) starve() {
	c.starved = true
	c.tcp.starved = append(c.tcp.starved, c)
	c.tcp.retryAt = c.tcp.loop.now + int64(starvedRetry)
	c.setInterest()
}

// resume tries again after starving.
func (c *tcpConn) resume() int {
	n := 0
	if buf := c.held; buf != nil {
		data := c.heldData
		c.held, c.heldData = nil, nil
		c.tcp.msgs = c.tcp.msgs[:0]
		n = c.parse(buf, data)
		buf.Release()
	}
	if !c.shut {
		c.setInterest()
	}
	return n
}

// end reports that the peer closed its side; clean only between messages.
func (c *tcpConn) end() {
	if c.part != nil || c.headerN > 0 {
		c.fail(fmt.Errorf("netpoll: %s closed in the middle of a message: %w", c.ep.Conn().remote, io.ErrUnexpectedEOF))
		return
	}
	c.ep.Closed(nil)
}

// fail closes the connection because of err.
func (c *tcpConn) fail(err error) {
	c.failed = true
	c.ep.Closed(err)
}

// failSocket closes the connection with the socket's pending error.
func (c *tcpConn) failSocket() {
	errno := unix.ECONNRESET
	if e, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && e != 0 {
		errno = unix.Errno(e)
	}
	c.fail(os.NewSyscallError("read", errno))
}

// Send implements Wire.
func (c *tcpConn) Send(b *hugepages.Buf) {
	binary.BigEndian.PutUint32(b.Prepend(frameHeader), uint32(b.Len()-frameHeader))
	c.queue.push(b)
}

// Lends implements LendingWire: nothing waits for room in the socket.
func (c *tcpConn) Lends() (ok, cheap bool) { return c.queue.len() == 0, false }

// Flush implements Wire.
func (c *tcpConn) Flush() {
	for c.queue.len() > 0 && !c.shut {
		iov, bytes := c.gather()
		n, err := c.tcp.calls.writev(c.fd, iov)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			c.setInterest()
			return
		case err != nil && c.tcp.loop.lent:
			c.tcp.loop.faulty = true // it will meet the error again
			return
		case err != nil:
			c.fail(os.NewSyscallError("write", err))
			return
		}
		c.sent(n)
		if n < bytes && !c.shut {
			c.setInterest() // the socket buffer is full: epoll tells when it is not
			return
		}
	}
	if !c.shut && c.interest&unix.EPOLLOUT != 0 {
		c.setInterest()
	}
}

// gather lays the front of the queue out for one writev: small messages copied to lie
// together, large ones where they are.
func (c *tcpConn) gather() (iov []unix.Iovec, bytes int) {
	iov = c.tcp.iov[:0]
	if c.tcp.joined == nil && c.queue.len() > 1 {
		c.tcp.joined = make([]byte, 0, tcpJoinBytes)
	}
	joined := c.tcp.joined
	piece := 0 // bytes of the last iovec, if it is the end of joined
	for i := 0; i < c.queue.len() && len(iov) < tcpMaxIovecs && bytes < tcpMaxWrite; i++ {
		p := c.queue.at(i).Bytes()
		if i == 0 {
			p = p[c.written:]
		}
		bytes += len(p)
		if len(p) <= tcpJoin && c.queue.len() > 1 && len(joined)+len(p) <= cap(joined) {
			joined = append(joined, p...)
			if piece += len(p); piece > len(p) {
				iov[len(iov)-1].SetLen(piece)
				continue
			}
			p = joined[len(joined)-len(p):]
		} else {
			piece = 0
		}
		iov = append(iov, unix.Iovec{Base: unsafe.SliceData(p)})
		iov[len(iov)-1].SetLen(len(p))
	}
	return iov, bytes
}

// sent releases what n written bytes finished and reports it.
func (c *tcpConn) sent(n int) {
	messages, bytes := 0, 0
	for c.queue.len() > 0 {
		b := c.queue.at(0)
		left := b.Len() - c.written
		if n < left {
			c.written += n
			break
		}
		n -= left
		c.written = 0
		messages++
		bytes += b.Len() - frameHeader
		c.queue.pop().Release()
	}
	if messages > 0 {
		c.ep.Sent(messages, bytes)
	}
}

// SetReading implements Wire.
func (c *tcpConn) SetReading(on bool) {
	c.reading = on
	if !on {
		c.cool()
	}
	c.setInterest()
}

// setInterest tells epoll what the connection waits for.
func (c *tcpConn) setInterest() {
	var want uint32
	if c.isReading() || c.shut {
		want |= unix.EPOLLIN
	}
	if c.queue.len() > 0 && !c.shut {
		want |= unix.EPOLLOUT
	}
	if want == c.interest {
		return
	}
	c.interest = want
	if err := c.tcp.loop.wake.socket(unix.EPOLL_CTL_MOD, c.fd, c.gen, want); err != nil {
		c.tcp.loop.log.Error("epoll_ctl mod failed", "remote", c.ep.Conn().remote, "err", err)
	}
}

// heat puts the connection on the list of those read without asking epoll.
func (c *tcpConn) heat() {
	if c.hotIndex == 0 && len(c.tcp.hot) < hotConns && c.isReading() {
		c.tcp.hot = append(c.tcp.hot, c)
		c.hotIndex = len(c.tcp.hot)
		c.misses = 0
	}
}

func (c *tcpConn) cool() {
	if c.hotIndex == 0 {
		return
	}
	hot := c.tcp.hot
	last := hot[len(hot)-1]
	hot[c.hotIndex-1] = last
	last.hotIndex = c.hotIndex
	c.hotIndex = 0
	hot[len(hot)-1] = nil
	c.tcp.hot = hot[:len(hot)-1]
}

// Shut implements Wire. If everything was written, the socket closes in order:
// FIN, then what the peer still sends is discarded until its FIN. Closing at once
// with unread data would send RST, and that may destroy our last messages before
// the peer has read them. Otherwise the peer shall see a reset.
func (c *tcpConn) Shut() {
	orderly := c.queue.len() == 0 && !c.failed
	c.shut = true
	c.cool()
	for c.queue.len() > 0 {
		c.queue.pop().Release()
	}
	if c.part != nil {
		c.part.Release()
		c.part = nil
	}
	if c.held != nil {
		c.held.Release()
		c.held, c.heldData = nil, nil
	}
	if orderly && unix.Shutdown(c.fd, unix.SHUT_WR) == nil {
		c.setInterest()
		c.tcp.loop.After(lingerTimeout, c.closeFD)
		return
	}
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 0})
	c.closeFD()
}

// linger discards what a closed connection's peer still sends.
func (c *tcpConn) linger() {
	buf, err := c.tcp.buffer()
	if err != nil {
		c.closeFD()
		return
	}
	if n, err := rawRead(c.fd, buf.Bytes()); n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR {
		c.closeFD()
	}
}

func (c *tcpConn) closeFD() {
	if c.fd < 0 {
		return
	}
	c.tcp.conns[c.fd] = nil
	c.tcp.open--
	_ = unix.Close(c.fd) // leaves epoll with it
	c.fd = -1
}

// bufQueue is a queue of buffers in a ring that grows; Conn bounds it.
type bufQueue struct {
	ring  []*hugepages.Buf // length a power of two
	head  int
	count int
}

func (q *bufQueue) len() int                { return q.count }
func (q *bufQueue) at(i int) *hugepages.Buf { return q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *bufQueue) push(b *hugepages.Buf) {
	if q.count == len(q.ring) {
		grown := make([]*hugepages.Buf, max(16, 2*len(q.ring)))
		for i := range q.count {
			grown[i] = q.at(i)
		}
		q.ring, q.head = grown, 0
	}
	q.ring[(q.head+q.count)&(len(q.ring)-1)] = b
	q.count++
}

func (q *bufQueue) pop() *hugepages.Buf {
	b := q.ring[q.head]
	q.ring[q.head] = nil
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
	return b
}
