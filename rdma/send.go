package rdma

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/hugepages"
)

// outgoing is one message between Wire.Send and its acknowledgement.
type outgoing struct {
	buf    *hugepages.Buf
	size   int            // payload bytes
	posted int            // of those, in work requests
	last   uint64         // sequence number of the last work request, once all is posted
	placed bool           // the bytes lie in the device's registered memory
	whole  bool           // all is posted
	pack   *hugepages.Buf // the copy that this message and some before it travel in
}

// release frees what the message holds.
func (m *outgoing) release() {
	m.buf.Release()
	if m.pack != nil {
		m.pack.Release()
	}
}

// sendQueue is a ring of messages that grows; Conn bounds it.
type sendQueue struct {
	ring  []outgoing // length a power of two
	head  int
	count int
}

func (q *sendQueue) at(i int) *outgoing { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *sendQueue) push(m outgoing) {
	if q.count == len(q.ring) {
		grown := make([]outgoing, max(16, 2*len(q.ring)))
		for i := range q.count {
			grown[i] = *q.at(i)
		}
		q.ring, q.head = grown, 0
	}
	q.count++
	*q.at(q.count - 1) = m
}

func (q *sendQueue) pop() outgoing {
	m := q.ring[q.head]
	q.ring[q.head] = outgoing{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
	return m
}

// Send implements netpoll.Wire.
func (c *conn) Send(b *hugepages.Buf) {
	c.sends++
	c.sendq.push(outgoing{buf: b, size: b.Len(), placed: b.Arena() == c.dev.arena})
	c.setDirty()
}

// Flush implements netpoll.Wire. It flushes every connection of the event loop
// that has something queued, so that the Flush of each of many costs one burst of
// the device in all.
func (c *conn) Flush() {
	c.el.flush()
	if c.lane != nil && c.ep.Draining() { // somebody waits now for what was posted Late
		c.lane.Ask()
	}
}

// Lends implements netpoll.LendingWire: nothing waits for the peer, for completions, or
// for the end.
func (c *conn) Lends() (ok, cheap bool) {
	ok = c.failure == nil && c.broken == nil && !c.leaving && !c.starved && !c.el.stalled && c.credits > 0 &&
		c.unposted == c.sendq.count && int(c.postedWRs-c.doneWRs) < c.dev.sendWRs
	return ok, c.lane != nil
}

func (c *conn) setDirty() {
	if !c.dirty && !c.shut {
		c.dirty = true
		c.el.dirty = append(c.el.dirty, c)
	}
}

// post hands what credits and the send queue's depth allow to the device, in one
// list. Every signalEvery-th request and the last are signalled. It returns how
// many requests.
func (c *conn) post() int {
	if c.broken != nil || c.lane != nil && c.sendq.count == c.unposted+1 && c.sendAlone() {
		return 0
	}
	wrs := c.el.sendWRs[:0]
	room := min(c.dev.sendWRs-int(c.postedWRs-c.doneWRs), cap(wrs))
	for len(wrs) < room && c.credits > 0 && c.unposted < c.sendq.count {
		if c.unposted+1 < c.sendq.count {
			if n, bytes, full := c.packable(); n > 1 {
				if full && c.dev.attr.Caps.Has(CapTrains) {
					bytes = c.segmentBytes
				}
				if b, err := c.el.loop.Pool().Get(bytes, hugepages.Send); err == nil {
					wrs = append(wrs, c.pack(b, n))
					continue
				} // else one by one
			}
		}
		m := c.sendq.at(c.unposted)
		if !m.placed && !c.place(m) {
			break
		}
		wrs = wrs[:len(wrs)+1]
		c.nextSegment(m, &wrs[len(wrs)-1])
	}
	if c.stalls() {
		c.el.stalled = true
	}
	for i := signalEvery - 1; i < len(wrs); i += signalEvery {
		wrs[i].Signaled = true
	}
	if len(wrs) == 0 && room > 0 {
		switch {
		case c.control && c.creditDue():
			c.control = false
			c.el.stats.creditMessages.Add(1)
			if !c.sendNow(nil, immCredit) {
				wrs = append(wrs, c.bare(immCredit))
			}
		case c.yield && c.credits > 1 && c.unposted == c.sendq.count:
			n := min(c.credits-2, immYielded>>immYieldedShift)
			c.credits -= n + 1
			wrs = append(wrs, c.bare(immYield|uint32(n)<<immYieldedShift))
			c.el.stats.yields.Add(1)
		}
	}
	c.yield = false
	if len(wrs) == 0 {
		return 0
	}
	last := &wrs[len(wrs)-1]
	last.Signaled = true
	last.Late = c.ep != nil && c.ep.Roomy()
	n, err := c.qp.PostSend(wrs)
	if n < len(wrs) {
		// The device took fewer than its queue has room for: the pair is in error,
		// and a completion says why.
		c.setBroken(fmt.Errorf("posting a send: %w", errors.Join(err, stateError(c.qp))))
	}
	n = len(wrs)
	for i := range wrs {
		wrs[i].Data = nil
	}
	c.dev.posted = true
	c.el.stats.doorbells.Add(1)
	c.await()
	return n
}

// stalls tells whether what waits can be posted only when earlier sends complete.
func (c *conn) stalls() bool {
	return c.unposted < c.sendq.count && int(c.postedWRs-c.doneWRs) >= c.dev.sendWRs
}

// packMax is the longest message, in bytes, that is copied to save it a work
// request and a packet of its own.
const packMax = 1 << 10

// packedHeader is the length in front of a packed message. packedPad in its place
// begins what is left of the SEND.
const (
	packedHeader = 4
	packedPad    = 1<<32 - 1
)

// packable is how many of the messages to be posted next fit into one SEND
// together, and how many bytes that has. full: another one is there that does not fit,
// but padding does.
func (c *conn) packable() (n, bytes int, full bool) {
	for c.unposted+n < c.sendq.count {
		m := c.sendq.at(c.unposted + n)
		if m.size > packMax || m.posted > 0 {
			break
		}
		if bytes+packedHeader+m.size > c.segmentBytes {
			return n, bytes, bytes+packedHeader <= c.segmentBytes
		}
		bytes += packedHeader + m.size
		n++
	}
	return n, bytes, false
}

// pack is one work request for the next n messages, copied into b, which may be longer:
// where trains of packets are cheap, none shall end because its last packet is short.
func (c *conn) pack(b *hugepages.Buf, n int) SendWR {
	c.postedWRs++
	c.credits--
	dst := b.Bytes()
	for range n {
		m := c.sendq.at(c.unposted)
		binary.LittleEndian.PutUint32(dst, uint32(m.size))
		dst = dst[packedHeader+copy(dst[packedHeader:], m.buf.Bytes()):]
		m.last, m.whole = c.postedWRs, true
		c.unposted++
	}
	if len(dst) > 0 {
		binary.LittleEndian.PutUint32(dst, packedPad)
		c.el.stats.paddedBytes.Add(uint64(len(dst)))
		clear(dst[packedHeader:]) // the buffer's earlier contents are not the peer's business
	}
	c.sendq.at(c.unposted - 1).pack = b
	c.el.stats.packedMessages.Add(uint64(n))
	return SendWR{ID: c.postedWRs, Op: OpSendImm, Imm: immPacked | c.grants(), Data: b.Bytes()}
}

// bare is a request that carries no data.
func (c *conn) bare(imm uint32) SendWR {
	c.postedWRs++
	return SendWR{ID: c.postedWRs, Op: OpSendImm, Imm: imm | c.grants()}
}

// nextSegment cuts the next work request from m into wr, one of el.sendWRs: what of it no
// message uses is zero.
func (c *conn) nextSegment(m *outgoing, wr *SendWR) {
	data := m.buf.Bytes()[m.posted:]
	imm := uint32(0)
	if len(data) > c.segmentBytes {
		data = data[:c.segmentBytes]
		imm = immMore
	}
	m.posted += len(data)
	c.postedWRs++
	c.credits--
	if imm == 0 {
		m.last, m.whole = c.postedWRs, true
		c.unposted++
	}
	imm |= c.grants()
	wr.ID, wr.Op, wr.Imm, wr.Data, wr.Signaled, wr.Late = c.postedWRs, OpSend, imm, data, false, false
	if imm != 0 {
		wr.Op = OpSendImm
	}
}

// grants says in an immediate what the peer may use now. Receives that are not posted
// yet wait for others, unless the peer runs short, or has no control receive left.
func (c *conn) grants() uint32 {
	if c.owesControl || c.creditDue() {
		c.rq.flush()
		if c.rq.failed != nil {
			c.setBroken(c.rq.failed)
			return 0
		}
	}
	c.settleFresh()
	imm := uint32(c.owed)
	c.owed = 0
	if c.owesControl {
		c.owesControl = false
		imm |= immControl
	}
	return imm
}

// place copies a message from memory that the device does not know into the
// pool's. False: not now, the pool is exhausted; or never, and the connection
// will close.
func (c *conn) place(m *outgoing) bool {
	b, err := c.el.loop.Pool().Get(m.size, hugepages.Send)
	switch {
	case errors.Is(err, hugepages.ErrExhausted):
		c.starve()
		return false
	case err != nil:
		c.setBroken(fmt.Errorf("a message in memory that %s has not registered: %w", c.dev.attr.Name, err))
		return false
	}
	copy(b.Bytes(), m.buf.Bytes())
	m.buf.Release()
	m.buf, m.placed = b, true
	c.el.stats.copiedMessages.Add(1)
	c.el.stats.copiedBytes.Add(uint64(m.size))
	return true
}

// sent handles the completion of the work request with sequence number seq, and
// so of all before it: their buffers are free again, in order.
func (c *conn) sent(seq uint64) {
	c.doneWRs = seq
	for c.sendq.count > 0 {
		m := c.sendq.at(0)
		if !m.whole || m.last > seq {
			break
		}
		c.sentMessages++
		c.sentBytes += m.size
		c.unposted--
		done := c.sendq.pop()
		done.release()
	}
	if c.unposted < c.sendq.count || c.creditDue() {
		c.setDirty()
	}
}

func stateError(qp QP) error {
	if qp.State() == QPError {
		return errors.New("the queue pair is in error")
	}
	return nil
}
