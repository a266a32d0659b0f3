package rdma

import (
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// LaneQP is implemented by a queue pair whose device may share memory with the peer's
// (CapUnsummed). Nothing is lost there, so a short message that has nothing in front of
// it needs neither work queue nor completion queue nor acknowledgement: what lies in the
// peer's ring is the peer's, as what TCP has put into the peer's socket is.
type LaneQP interface {
	// LaneFree tells that SendNow may have its way: nothing is under way before it. now
	// is as for Device.Progress.
	LaneFree(now int64) bool
	// SendNow sends data as one SEND, with the immediate imm unless that is 0, and is
	// done with it: there is no completion. false: not now, or not on this pair; post it.
	SendNow(data []byte, imm uint32, now int64) bool
	// Ask asks the peer to acknowledge at once what was posted Late.
	Ask()
	// SetTaker makes t the one that messages of one packet are offered to.
	SetTaker(t Taker)
}

// Taker takes messages within Device.Progress.
type Taker interface {
	// Take copies data, a message of one packet, with its immediate or 0. The receive
	// that it would have filled stays posted. false: it fills one, and completes. It is
	// not called while completions of the queue pair wait in its receive CQ.
	Take(data []byte, imm uint32) bool
}

// arrivedPolls is in how many polls a device has certainly received what lay in its link
// before: rings have 2^14 slots at most, and a poll takes 64 packets.
const arrivedPolls = 1<<14/64 + 1

// sendNow sends data, which may be none, past the work queue if it can. flags are of the
// immediate.
func (c *conn) sendNow(data []byte, flags uint32) bool {
	if c.lane == nil || len(data) > c.segmentBytes || !c.lane.LaneFree(c.el.loop.Now()) {
		return false
	}
	if c.postedWRs != c.doneWRs {
		if c.el.reapSends(); c.postedWRs != c.doneWRs {
			return false
		}
	}
	imm := c.grants()
	if c.broken != nil || !c.lane.SendNow(data, flags|imm, c.el.loop.Now()) {
		c.owed += int(imm & immGranted)
		c.owesControl = c.owesControl || imm&immControl != 0
		return false
	}
	c.postedWRs++
	c.doneWRs++
	c.el.lone++
	return true
}

// sendAlone is sendNow for the only message that is queued: one for each time that messages
// came, as requests and answers go, for those that follow each other cost less together.
// The connection is told here that it is done with, unless it might close because of that.
func (c *conn) sendAlone() bool {
	m := c.sendq.at(c.unposted)
	if !c.heard || c.credits == 0 || m.posted > 0 || !c.ep.Roomy() || !c.sendNow(m.buf.Bytes(), 0) {
		return false
	}
	c.credits--
	c.heard, c.yield = false, false
	done := c.sendq.pop()
	c.ep.Sent(1, done.size)
	done.release()
	return true
}

// Take implements Taker. What is unusual goes the usual way.
func (c *conn) Take(data []byte, imm uint32) bool {
	el := c.el
	if imm&^(immGranted|immControl) != 0 || !c.reading || c.shut || c.failure != nil || c.ep == nil || len(c.segments) > c.partStart ||
		c.granted <= c.untold() || len(data) > min(c.dev.receiveBytes, el.loop.MaxMessageBytes()) {
		return false
	}
	var buf *hugepages.Buf
	if n := len(el.spare); n > 0 {
		buf = el.spare[n-1]
		el.spare = el.spare[:n-1]
	} else {
		var err error
		if buf, err = el.loop.Pool().Get(c.dev.receiveBytes, hugepages.Receive); err != nil {
			return false
		}
	}
	el.spareKept = 1
	c.setReady()
	if imm != 0 {
		if err := c.takeGrant(imm); err != nil {
			el.spare = append(el.spare, buf)
			c.failReceive(err)
			return true
		}
	}
	buf.SetWindow(0, len(data))
	b := buf.Bytes()
	copy(b, data)
	c.messages = append(c.messages, netpoll.Message{Segment: netpoll.Segment{Data: b, Buf: buf}})
	c.leases = append(c.leases, buf)
	c.owed++ // its receive was not used
	c.hungry = c.hungry || c.granted == 1
	if c.creditDue() {
		c.setDirty()
	}
	return true
}

// arrived tells whether all that the peer sent before it left has been received: it may
// have gone without waiting for an acknowledgement.
func (c *conn) arrived() bool {
	return c.dev.quietAt > c.since || c.el.polls-c.since > arrivedPolls
}
