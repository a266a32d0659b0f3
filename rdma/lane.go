package rdma

import (
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma/bootstrap"
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
	// Hand is Take within Loner.Lone. What it refuses is there for the next Progress.
	Hand(data []byte, imm uint32) bool
}

// Loner is implemented by a device with CapUnsummed that can do less than a whole Progress
// where one short message is all that waits, as between requests and answers.
type Loner interface {
	// Lone hands that message to its Taker, once. false: there is none, or it is not that
	// simple, or Progress is due. now is as for Device.Progress.
	Lone(now int64) bool
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
	c.el.loop.Recycle(done.buf)
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

// Hand implements Taker: deliverHanded follows. It takes what needs nothing but a buffer
// that the last message left, and leaves the rest to Take.
func (c *conn) Hand(data []byte, imm uint32) bool {
	el := c.el
	n := len(el.spare)
	if imm&^immGranted != 0 || c.credits+int(imm) > bootstrap.MaxCredits || !c.holding && c.credits+int(imm) > 1 ||
		!c.reading || c.shut || c.failure != nil || c.ep == nil || c.ready || c.sentMessages > 0 || c.sendq.count > 0 ||
		len(c.messages) > 0 || len(c.segments) > 0 || c.hungry || c.granted <= max(1, c.untold()) || n == 0 || len(data) > min(c.dev.receiveBytes, el.loop.MaxMessageBytes()) {
		return false
	}
	buf := el.spare[n-1]
	el.spare = el.spare[:n-1]
	c.credits += int(imm)
	c.owed++ // its receive was not used
	buf.SetWindow(0, len(data))
	m := &el.handed[0]
	m.Data, m.Buf = buf.Bytes(), buf
	copy(m.Data, data)
	el.handedTo = c
	return true
}

// pollLone delivers a message that came alone, and sends what its handler does. It is called
// if something was sent in a lane since the last such message, as between requests and
// answers: messages that come one way do better to gather.
func (el *EventLoop) pollLone(now int64) (work int) {
	for _, d := range el.active {
		if d.loner != nil && d.loner.Lone(now) {
			el.answered = el.lone
			el.deliverHanded()
			return 1 // the handler may have closed others
		}
	}
	return 0
}

// deliverHanded delivers what Hand took, and sends what its handler does.
func (el *EventLoop) deliverHanded() {
	c, buf := el.handedTo, el.handed[0].Buf
	c.heard = true
	c.ep.Lend(el.handed[:])
	if buf.Refs() > 1 || c.shut { // kept by the handler
		buf.Release()
	} else {
		el.spare = append(el.spare, buf)
	}
	if !c.shut && c.creditDue() {
		c.setDirty()
	}
	el.flush()
}

// loneEvery: of so many polls that find a message alone one does all that a poll does.
const loneEvery = 16

// nothingElse tells that behind a message that came alone nothing else waits for this poll.
func (el *EventLoop) nothingElse(now int64) bool {
	return len(el.active) == 1 && el.drained && !el.stalled && len(el.ready) == 0 && len(el.dirty) == 0 &&
		len(el.leaving) == 0 && len(el.starved) == 0 && (el.reapAt == 0 || now < el.reapAt)
}

// arrived tells whether all that the peer sent before it left has been received: it may
// have gone without waiting for an acknowledgement.
func (c *conn) arrived() bool {
	return c.dev.quietAt > c.since || c.el.polls-c.since > arrivedPolls
}
