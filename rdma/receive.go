package rdma

import (
	"fmt"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// lease remembers which receive a delivered message's last buffer came from.
type lease struct {
	slot int
	buf  *hugepages.Buf // a reference of the connection's own
}

// received handles the completion of a receive.
func (c *conn) received(wc *WC) error {
	slot := int(wc.ID)
	buf := c.receives[slot]
	c.receives[slot] = nil
	more := false
	if wc.HasImm {
		if wc.Imm&immCredit != 0 {
			c.vacate(slot, buf)
			c.toOweControl = true
			if wc.Imm&immMore != 0 || wc.Bytes != 0 {
				return fmt.Errorf("%w: a control message with data", netpoll.ErrProtocol)
			}
			return c.takeReturns(wc.Imm)
		}
		if err := c.takeReturns(wc.Imm); err != nil {
			buf.Release()
			return err
		}
		more = wc.Imm&immMore != 0
	}
	buf.SetWindow(0, wc.Bytes)
	c.segments = append(c.segments, netpoll.Segment{Data: buf.Bytes(), Buf: buf})
	c.partBytes += wc.Bytes
	switch {
	case c.partBytes > c.el.loop.MaxMessageBytes():
		return fmt.Errorf("%w: a message of more than %d bytes: raise MaxMessageBytes here or send less", netpoll.ErrProtocol, c.el.loop.MaxMessageBytes())
	case more && wc.Bytes != c.dev.receiveBytes:
		return fmt.Errorf("%w: a piece of %d bytes in the middle of a message, want %d", netpoll.ErrProtocol, wc.Bytes, c.dev.receiveBytes)
	case more:
		// The chain keeps this buffer until its end; the receive needs another.
		c.vacant = append(c.vacant, slot)
		return nil
	}
	chain := c.segments[c.partStart:]
	c.messages = append(c.messages, netpoll.Message{Segment: chain[0], Rest: chain[1:len(chain):len(chain)]})
	c.leases = append(c.leases, lease{slot, buf.Retain()})
	c.partStart, c.partBytes = len(c.segments), 0
	return nil
}

// takeReturns handles what the peer gave back.
func (c *conn) takeReturns(imm uint32) error {
	n := int(imm & immReturned)
	c.credits += n
	if imm&immZero != 0 || c.credits > c.peer.Credits || imm&immControl != 0 && c.control {
		return fmt.Errorf("%w: immediate %#x returns what was not taken, or sets unknown bits", netpoll.ErrProtocol, imm)
	}
	if imm&immControl != 0 {
		c.control = true
	}
	c.setDirty()
	return nil
}

// deliver hands what has arrived to the handler, and posts the buffers again
// that it did not keep.
func (c *conn) deliver() int {
	n := len(c.messages)
	if n == 0 || !c.reading || c.ep == nil {
		return 0
	}
	c.delivering = true
	c.ep.Deliver(c.messages)
	c.delivering = false
	c.messages = c.messages[:0]
	// The start of an unfinished message stays.
	rest := copy(c.segments, c.segments[c.partStart:])
	clear(c.segments[rest:])
	c.segments = c.segments[:rest]
	c.partStart = 0
	for i, l := range c.leases {
		c.leases[i] = lease{}
		switch {
		case c.shut || l.buf.Refs() > 1: // kept by the handler
			l.buf.Release()
			c.vacant = append(c.vacant, l.slot)
		default:
			c.vacate(l.slot, l.buf)
			c.toOwe++
		}
	}
	c.leases = c.leases[:0]
	return n
}

// vacate lists a receive to be posted by refill, with buf.
func (c *conn) vacate(slot int, buf *hugepages.Buf) {
	buf.SetWindow(0, c.dev.receiveBytes)
	c.receives[slot] = buf
	c.reposts = append(c.reposts, RecvWR{ID: uint64(slot), Data: buf.Bytes()})
}

// refill posts receives again. What the pool has no buffer for now stays vacant
// and is tried again later; its credit is not returned meanwhile. A paused
// connection takes no new buffers, which is what holds the peer back.
func (c *conn) refill() {
	for len(c.vacant) > 0 && c.reading && c.ep != nil {
		buf, err := c.el.loop.Pool().Get(c.dev.receiveBytes, hugepages.Receive)
		if err != nil {
			c.el.stats.starved.Add(1)
			c.starve()
			break
		}
		slot := c.vacant[len(c.vacant)-1]
		c.vacant = c.vacant[:len(c.vacant)-1]
		c.vacate(slot, buf)
		c.toOwe++
	}
	if len(c.reposts) == 0 {
		return
	}
	if n, err := c.qp.PostRecv(c.reposts); n < len(c.reposts) {
		c.setBroken(fmt.Errorf("posting a receive: %w", err))
	}
	clear(c.reposts)
	c.reposts = c.reposts[:0]
	// Only now may the peer hear of them.
	c.owed += c.toOwe
	c.toOwe = 0
	c.owesControl = c.owesControl || c.toOweControl
	c.toOweControl = false
	if c.owed >= c.creditBatch {
		c.setDirty()
	}
}

// SetReading implements netpoll.Wire. While reading is off, at most all R
// receives fill up and wait; then the peer is out of credits.
func (c *conn) SetReading(on bool) {
	c.reading = on
	if on {
		c.setReady()
	}
}
