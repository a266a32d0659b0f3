package rdma

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// received handles the completion of a receive, whose buffer it takes.
func (c *conn) received(wc *WC, buf *hugepages.Buf) error {
	more := false
	if wc.HasImm {
		if wc.Imm&immCredit != 0 {
			c.rq.put(buf)
			if wc.Imm&(immMore|immYield) != 0 || wc.Bytes != 0 {
				return fmt.Errorf("%w: a control message with data", netpoll.ErrProtocol)
			}
			if c.owesControl {
				return fmt.Errorf("%w: a control message before the last one was answered", netpoll.ErrProtocol)
			}
			c.owesControl = true
			return c.takeGrant(wc.Imm)
		}
		if err := c.takeGrant(wc.Imm); err != nil {
			c.rq.put(buf)
			return err
		}
		more = wc.Imm&immMore != 0
	}
	if c.granted <= c.untold() {
		c.rq.put(buf)
		return fmt.Errorf("%w: it sent more than it was granted receives for", netpoll.ErrProtocol)
	}
	c.granted--
	c.rq.needed--
	if wc.HasImm && wc.Imm&immYield != 0 {
		c.rq.put(buf)
		return c.takeYield(wc)
	}
	c.hungry = true
	buf.SetWindow(0, wc.Bytes)
	if wc.HasImm && wc.Imm&immPacked != 0 {
		return c.unpack(wc, buf)
	}
	if !more && len(c.segments) == c.partStart && wc.Bytes <= c.el.loop.MaxMessageBytes() {
		c.messages = append(c.messages, netpoll.Message{Segment: netpoll.Segment{Data: buf.Bytes(), Buf: buf}})
		c.leases = append(c.leases, buf)
		c.waiting++
		return nil
	}
	c.segments = append(c.segments, netpoll.Segment{Data: buf.Bytes(), Buf: buf})
	c.partBytes += wc.Bytes
	switch {
	case c.partBytes > c.el.loop.MaxMessageBytes():
		return fmt.Errorf("%w: a message of more than %d bytes: raise MaxMessageBytes here or send less", netpoll.ErrProtocol, c.el.loop.MaxMessageBytes())
	case more && wc.Bytes != c.dev.receiveBytes:
		return fmt.Errorf("%w: a piece of %d bytes in the middle of a message, want %d", netpoll.ErrProtocol, wc.Bytes, c.dev.receiveBytes)
	case more: // the chain keeps this buffer until its end
		return nil
	}
	chain := c.segments[c.partStart:]
	c.messages = append(c.messages, netpoll.Message{Segment: chain[0], Rest: chain[1:len(chain):len(chain)]})
	c.leases = append(c.leases, nil)
	c.waiting++
	c.partStart, c.partBytes = len(c.segments), 0
	return nil
}

// unpack makes the messages of a packed SEND. They share its buffer.
func (c *conn) unpack(wc *WC, buf *hugepages.Buf) error {
	data, n := buf.Bytes(), 0
	for rest := data; len(rest) > 0; n++ {
		if n > 0 && len(rest) >= packedHeader && binary.LittleEndian.Uint32(rest) == packedPad {
			break
		}
		if len(rest) < packedHeader || uint64(binary.LittleEndian.Uint32(rest)) > uint64(min(len(rest)-packedHeader, c.el.loop.MaxMessageBytes())) {
			n = 0
			break
		}
		rest = rest[packedHeader+int(binary.LittleEndian.Uint32(rest)):]
	}
	if n == 0 || wc.Imm&immMore != 0 || len(c.segments) > c.partStart {
		buf.Release()
		return fmt.Errorf("%w: packed messages that are none, do not end where their SEND does, or lie inside another message", netpoll.ErrProtocol)
	}
	for i := range n {
		size := int(binary.LittleEndian.Uint32(data))
		if i > 0 { // the first has the reference that came with buf
			buf.Retain()
		}
		s := netpoll.Segment{Data: data[packedHeader : packedHeader+size : packedHeader+size], Buf: buf}
		c.messages = append(c.messages, netpoll.Message{Segment: s})
		c.leases = append(c.leases, nil)
		data = data[packedHeader+size:]
	}
	c.waiting++
	return nil
}

// takeGrant handles what the peer grants.
func (c *conn) takeGrant(imm uint32) error {
	n := int(imm & immGranted)
	c.credits += n
	if c.credits > bootstrap.MaxCredits || imm&immYield == 0 && imm&immYielded&^immPacked != 0 || imm&immControl != 0 && c.control {
		return fmt.Errorf("%w: immediate %#x grants more than %d receives, frees a control receive that is free, or sets unknown bits", netpoll.ErrProtocol, imm, bootstrap.MaxCredits)
	}
	if imm&immControl != 0 {
		c.control = true
	}
	if c.credits > 1 && !c.holding {
		c.holding, c.heldWRs = true, c.postedWRs
		if len(c.el.holders) == 0 {
			c.el.yieldAt = c.el.loop.Now() + int64(yieldAfter)
		}
		c.el.holders = append(c.el.holders, c)
	}
	c.setDirty()
	return nil
}

// takeYield handles receives that an idle peer gives back.
func (c *conn) takeYield(wc *WC) error {
	n := int(wc.Imm & immYielded >> immYieldedShift)
	// What it was not told of yet it shall not hear of either.
	c.granted -= c.untold()
	c.rq.needed -= c.untold()
	c.owed, c.fresh = 0, 0
	if wc.Imm&immMore != 0 || wc.Bytes != 0 || len(c.segments) > c.partStart || n > c.granted {
		return fmt.Errorf("%w: a yield with data, inside a message, or of %d receives where it held %d", netpoll.ErrProtocol, n, c.granted)
	}
	c.granted -= n
	c.rq.needed -= n
	c.el.stats.yieldedReceives.Add(uint64(n))
	// The sender kept one, unless it was granted none when it sent this.
	c.hungry = c.granted == 0
	return nil
}

// deliver hands what has arrived to the handler, and collects the buffers that it
// did not keep.
func (c *conn) deliver() int {
	n := len(c.messages)
	if n == 0 || !c.reading || c.ep == nil {
		return 0
	}
	c.delivering, c.heard = true, true
	c.ep.Lend(c.messages)
	c.delivering = false
	if c.dirty && len(c.el.ready) == 1 && c.lane == nil && !c.tellFirst(n) {
		c.el.flush() // an answer need not wait for what follows
	}
	for i, b := range c.leases {
		c.leases[i] = nil
		switch {
		case b == nil:
			c.messages[i].Release()
			continue
		case b.Refs() > 1: // kept by the handler
			b.Release()
		default:
			c.el.spare = append(c.el.spare, b)
		}
		c.messages[i] = netpoll.Message{}
	}
	c.messages, c.leases, c.waiting = c.messages[:0], c.leases[:0], 0
	if len(c.segments) > 0 { // the start of an unfinished message stays
		rest := copy(c.segments, c.segments[c.partStart:])
		clear(c.segments[rest:])
		c.segments = c.segments[:rest]
		c.partStart = 0
	}
	return n
}

// releaseMessages drops what was not delivered.
func (c *conn) releaseMessages() {
	for i := range c.messages {
		c.messages[i].Release()
	}
	c.messages, c.leases, c.waiting = nil, nil, 0
}

// topUp grants the peer receives in place of those that its data used. What the
// pool has no buffer for now is tried again later. A paused connection grants
// nothing, which is what holds the peer back.
func (c *conn) topUp() {
	if c.hungry && c.reading && c.ep != nil {
		c.hungry = false
		for target := c.dev.budget.target(c); c.granted+c.waiting < target; {
			if err := c.grant(); err != nil {
				if !errors.Is(err, hugepages.ErrExhausted) {
					c.setBroken(err)
					break
				}
				c.hungry = true
				c.el.stats.starved.Add(1)
				c.starve()
				break
			}
		}
		if c.creditDue() {
			c.setDirty()
		}
	}
	c.setShare()
}

// releaseSpare gives back what handlers left, but for what the next message in a lane takes.
func (el *EventLoop) releaseSpare() {
	keep := 0
	if len(el.active) > 0 {
		keep = min(el.spareKept, len(el.spare))
	}
	for i, b := range el.spare[keep:] {
		b.Release()
		el.spare[keep+i] = nil
	}
	el.spare = el.spare[:keep]
}

// grant sees to it that one receive more will be posted, of which the peer is told
// with data or a CREDIT after that.
func (c *conn) grant() error {
	c.settleFresh()
	if err := c.rq.need(&c.el.spare); err != nil {
		return err
	}
	c.granted++
	c.fresh++
	c.freshAt = c.rq.flushes
	return nil
}

// settleFresh makes those that have been posted meanwhile ready to be told.
func (c *conn) settleFresh() {
	if c.fresh > 0 && (len(c.rq.pending) == 0 || c.freshAt != c.rq.flushes) {
		c.owed += c.fresh
		c.fresh = 0
	}
}

// untold is how many of the granted receives the peer has not heard of.
func (c *conn) untold() int { return c.owed + c.fresh }

// creditDue tells whether grants should wait for data no longer: the peer has used
// half of what it could know of, or all.
func (c *conn) creditDue() bool { return c.untold() > 0 && 2*c.untold() >= c.granted }

// setShare enters into the budget what the connection may hold now. One receive
// for data is its own even while it is not granted.
func (c *conn) setShare() {
	share := controlReceives + max(1, c.granted+c.waiting)
	if c.dev.srq == nil { // nobody else can use what stays posted here
		share = max(share, c.rq.posted+c.waiting)
	}
	c.dev.budget.shares += share - c.share
	c.share = share
}

// SetReading implements netpoll.Wire. While reading is off, at most what was
// granted fills up and waits; then the peer is out of credits.
func (c *conn) SetReading(on bool) {
	c.reading = on
	if on {
		c.setReady()
	}
}
