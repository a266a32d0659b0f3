package rdma

import (
	"errors"
	"fmt"
	"io"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// conn is a netpoll.Wire over one queue pair. The loop's goroutine owns it.
//
// Its memory while it is idle: two receive buffers, 2 × (8,188 + 132) B; its part
// of two completion queues, (64 + 128) × sizeof(WC), 40 B; and what its device needs
// for a queue pair with 128 sends. Under load its messages take up to 64 receive
// buffers, of all connections together at most EventLoopOptions.SharedReceives.
type conn struct {
	el       *EventLoop
	dev      *device
	group    *cqGroup
	qp       QP
	qpn      uint32
	ep       *netpoll.Endpoint // nil until open
	peer     bootstrap.QP
	remote   string
	unsummed bool         // no ICRC
	lane     LaneQP       // nil but where that is
	heard    bool         // a message was delivered since it took one
	boot     *liveness    // nil until open
	verified chan<- error // waits for the first acknowledgement; see probe

	// Sending; see protocol.go.
	sendq        sendQueue
	unposted     int // first message of sendq with something left to post
	segmentBytes int // the peer's receive buffer
	credits      int // data receives of the peer's that may be used
	control      bool
	postedWRs    uint64
	doneWRs      uint64
	sentMessages int // finished, not yet reported to ep
	sentBytes    int

	// Receiving.
	rq          *receiveQueue
	granted     int               // data receives that the peer may use, those included that it is not told of yet
	owed        int               // of granted, posted and not yet told
	fresh       int               // of granted, perhaps not yet posted
	freshAt     uint64            // rq.flushes when the last of them was granted
	owesControl bool              // the peer's last CREDIT was taken, and CONTROL not returned
	hungry      bool              // used receives since the last topUp
	share       int               // of the device's budget
	messages    []netpoll.Message // complete, not yet delivered
	segments    []netpoll.Segment // of messages, then of an unfinished one
	partStart   int               // where the unfinished one starts
	partBytes   int
	leases      []*hugepages.Buf // of each of messages, the receive that it fills alone; nil: it shares it, or needs several
	waiting     int              // receives that messages wait in
	reading     bool
	delivering  bool

	// Yielding.
	holding bool   // in EventLoop.holders
	yield   bool   // post a YIELD
	heldWRs uint64 // postedWRs at the last look

	// Membership of the event loop's lists.
	dirty, ready, starved, leaving, awaiting bool

	held    bool   // holdGrants set it aside in the last poll
	sends   uint64 // messages given to Send
	heldFor uint64 // sends when it was last set aside for a first poll

	failure error // why this end closes; kept, the first wins
	broken  error // the device refuses work; closes unless a completion tells more
	gone    error // how the peer's end ended; goneBye: in order
	goneBye bool
	since   uint64 // EventLoop.polls when leaving began
	shut    bool
}

// newConn makes the queue pair and posts its receives. It takes the caller's
// reference to d.
func (el *EventLoop) newConn(d *device, remote string) (*conn, error) {
	c := &conn{el: el, dev: d, remote: remote, reading: true, control: true, rq: d.srq}
	if err := c.makeQP(); err != nil {
		el.release(d)
		return nil, err
	}
	if c.rq == nil {
		c.rq = &receiveQueue{el: el, queue: c.qp, bytes: d.receiveBytes}
	}
	c.qpn = c.qp.Num()
	d.conns[c.qpn] = c
	c.group.conns++
	el.activate(d)
	c.setShare()
	c.granted = -controlReceives // the first one is not for data
	for c.granted < minReceives-controlReceives {
		if err := c.grant(); err != nil {
			c.Shut()
			return nil, fmt.Errorf("rdma: a connection needs %d receive buffers of %d bytes: %w", minReceives, d.receiveBytes, err)
		}
	}
	c.rq.flush()
	c.owed, c.fresh = 0, 0 // describe tells
	if err := c.rq.failed; err != nil {
		c.Shut()
		return nil, fmt.Errorf("rdma: %s: %w", d.attr.Name, err)
	}
	return c, nil
}

func (c *conn) makeQP() (err error) {
	d := c.dev
	if !d.budget.admit() {
		return fmt.Errorf("rdma: the %d receives of this loop on %s are granted to others, and a connection needs %d: raise SharedReceives, or close connections",
			d.budget.receives, d.attr.Name, minReceives)
	}
	if c.group, err = d.group(c.el); err != nil {
		return err
	}
	cfg := QPConfig{SendCQ: c.group.send, RecvCQ: c.group.recv, SendWRs: d.sendWRs}
	if d.srq != nil {
		cfg.SRQ = d.sharedQueue
	} else {
		cfg.RecvWRs = d.receives
	}
	if c.qp, err = d.pd.CreateQP(cfg); err != nil {
		return fmt.Errorf("rdma: %s: queue pair: %w", d.attr.Name, err)
	}
	return nil
}

// describe is what the peer must know.
func (c *conn) describe() bootstrap.QP {
	a := &c.dev.attr
	return bootstrap.QP{
		Device: a.Name, Label: a.Label, GID: a.GID, UDPPort: a.UDPPort, QPN: c.qpn, PSN: c.qp.StartPSN(), PathMTU: a.PathMTU,
		Credits: c.granted, ReceiveBytes: c.dev.receiveBytes,
		MaxMessage: min(c.el.loop.MaxMessageBytes(), bootstrap.MaxMessageBytes),
	}
}

// connect takes the queue pair to RTS.
func (c *conn) connect(peer bootstrap.QP, unsummed bool) error {
	a := &c.dev.attr
	if peer.GID.Is4() != a.GID.Is4() {
		return fmt.Errorf("rdma: %s has the address %v, the peer's %s %v: use addresses of one family", a.Name, a.GID, peer.Device, peer.GID)
	}
	if a.MaxMsg > 0 && peer.ReceiveBytes > a.MaxMsg {
		return fmt.Errorf("rdma: the peer's receive buffers of %d bytes are larger than the largest message of %s, %d: lower ReceiveBytes there", peer.ReceiveBytes, a.Name, a.MaxMsg)
	}
	c.peer, c.segmentBytes, c.credits, c.unsummed = peer, peer.ReceiveBytes, peer.Credits, unsummed
	err := c.qp.Connect(Remote{
		Addr: peer.GID, UDPPort: peer.UDPPort, QPN: peer.QPN, StartPSN: peer.PSN, PathMTU: min(peer.PathMTU, a.PathMTU), Unsummed: unsummed,
	})
	if err != nil {
		return fmt.Errorf("rdma: %s: connecting to %v: %w", a.Name, peer.GID, err)
	}
	if unsummed {
		if c.lane, _ = c.qp.(LaneQP); c.lane != nil {
			c.lane.SetTaker(c)
		}
	}
	return nil
}

// open makes the connection visible to its handler.
func (c *conn) open(h netpoll.Handler, boot *liveness) (*netpoll.Conn, error) {
	if c.failure != nil {
		return nil, c.failure
	}
	c.boot = boot
	a := &c.dev.attr
	note := ""
	if c.unsummed {
		note = "no ICRC, and no acknowledgement of lone messages: the way is shared memory"
	}
	c.ep = netpoll.NewEndpoint(c.el.loop, h, c, netpoll.Transport{
		Scheme: c.el.opts.Scheme, Device: a.Name, Label: a.Label, Reason: "asked for", Note: note,
	}, c.remote)
	c.ep.LimitMessage(c.peer.MaxMessage)
	c.setReady()
	c.ep.Open()
	return c.ep.Conn(), nil
}

// complete handles one work completion.
func (c *conn) complete(wc *WC) {
	var buf *hugepages.Buf
	if wc.Op == WCRecv {
		buf = c.rq.take(wc.ID)
	}
	switch {
	case c.failure != nil || c.shut || wc.Status != Success:
		if buf != nil {
			c.rq.put(buf)
		}
		if c.failure == nil && !c.shut {
			c.fail(fmt.Errorf("rdma: connection to %s over %s failed: %v%s", c.remote, c.dev.attr.Name, wc.Status, c.likelyCause(wc.Status)))
		}
	case wc.Op == WCSend:
		c.sent(wc.ID)
		c.verify(nil)
	default:
		if err := c.received(wc, buf); err != nil {
			c.failReceive(err)
		}
	}
	c.setReady()
}

// likelyCause says what usually is behind a failure, and what to look at.
func (c *conn) likelyCause(s Status) string {
	switch s {
	case RetryExceeded:
		return fmt.Sprintf(": nothing is acknowledged: the peer stands still, or its packets are lost between %v and UDP port %d of %v (a firewall?)",
			c.dev.attr.GID, c.peer.UDPPort, c.peer.GID)
	case RNRRetryExceeded:
		return ": the peer's device answers, but nothing receives there: its process hangs"
	}
	return ""
}

// failReceive is fail for what the peer sent.
func (c *conn) failReceive(err error) { c.fail(fmt.Errorf("rdma: %s: %w", c.remote, err)) }

// fail closes the connection once this poll's messages are delivered.
func (c *conn) fail(err error) {
	if c.failure == nil {
		c.failure = err
		c.verify(err)
		c.setReady()
	}
}

// probe sends a control message that grants nothing before the connection is open,
// and tells to verified when it was acknowledged, or why not.
func (c *conn) probe(verified chan<- error) {
	if c.failure != nil {
		verified <- c.failure
		return
	}
	c.verified = verified
	c.control = false
	wr := c.bare(immCredit)
	wr.Signaled = true
	if n, err := c.qp.PostSend([]SendWR{wr}); n < 1 {
		c.fail(fmt.Errorf("posting a send: %w", errors.Join(err, stateError(c.qp))))
	}
	c.await()
}

// verify ends a probe.
func (c *conn) verify(err error) {
	if c.verified != nil {
		c.verified <- err
		c.verified = nil
	}
}

// setBroken notes that the device refused work. The completion of an error is
// usually on its way and has the better reason: give it the next poll.
func (c *conn) setBroken(err error) {
	if c.broken == nil {
		c.broken = fmt.Errorf("rdma: connection to %s over %s failed: %w", c.remote, c.dev.attr.Name, err)
		c.leave()
	}
}

// peerGone notes the end of the bootstrap connection: bye nil, or how it ended.
func (c *conn) peerGone(bye bool, err error) {
	if !c.shut && c.gone == nil && !c.goneBye {
		c.goneBye, c.gone = bye, err
		c.leave()
	}
}

func (c *conn) leave() {
	if !c.leaving {
		c.leaving, c.since = true, c.el.polls
		c.el.leaving = append(c.el.leaving, c)
	}
}

func (c *conn) setReady() {
	if !c.ready && !c.shut {
		c.ready = true
		c.el.ready = append(c.el.ready, c)
	}
}

func (c *conn) starve() {
	if !c.starved {
		c.starved = true
		if len(c.el.starved) == 0 {
			c.el.retryAt = c.el.loop.Now() + int64(starvedRetry)
		}
		c.el.starved = append(c.el.starved, c)
	}
}

// settle does for a connection what this poll's completions ask for.
func (c *conn) settle() int {
	c.ready = false
	if c.sentMessages > 0 {
		n, bytes := c.sentMessages, c.sentBytes
		c.sentMessages, c.sentBytes = 0, 0
		c.ep.Sent(n, bytes)
	}
	if c.shut {
		return 1
	}
	n := c.deliver()
	if c.shut {
		return n
	}
	if c.failure != nil {
		if c.ep != nil {
			c.ep.Closed(c.failure)
		}
		return n + 1
	}
	if c.tellFirst(n) {
		c.topUp()
	} else {
		c.el.later = append(c.el.later, c)
	}
	return n
}

// tellFirst tells whether receives are posted again before what the handler of n messages
// sent leaves: the peer would need a message of its own to hear of them. As a rule they
// follow behind it.
func (c *conn) tellFirst(n int) bool { return 2*(c.untold()+n+1) >= c.granted }

// end closes a connection whose peer is gone, or whose device is broken, after
// everything that arrived was delivered. It reports whether it is over.
func (c *conn) end() bool {
	switch {
	case c.shut:
		return true
	case c.broken != nil:
		c.fail(c.broken)
	case c.gone != nil:
		c.fail(c.gone)
	case len(c.messages) > 0: // paused; the rest comes when reading resumes
		return false
	case len(c.segments) > 0:
		c.fail(fmt.Errorf("rdma: %s closed in the middle of a message: %w", c.remote, io.ErrUnexpectedEOF))
	default:
		c.ep.Closed(nil)
		return true
	}
	if c.ep != nil {
		c.ep.Closed(c.failure)
	}
	return true
}

// Unsent implements netpoll.UnsentWire: what the peer's device has not acknowledged.
func (c *conn) Unsent(bufs []*hugepages.Buf) []*hugepages.Buf {
	c.el.reapSends()
	for i := range c.sendq.count {
		bufs = append(bufs, c.sendq.at(i).buf)
	}
	return bufs
}

// Shut implements netpoll.Wire. It also ends a connection that was never open.
func (c *conn) Shut() {
	if c.shut {
		return
	}
	if c.awaiting {
		c.el.reapSends()
	}
	c.shut = true
	orderly := c.failure == nil && c.sendq.count == 0
	if err := c.qp.Close(); err != nil {
		c.el.loop.Logger().Error("queue pair not closed", "device", c.dev.attr.Name, "remote", c.remote, "err", err)
	}
	for c.sendq.count > 0 {
		unsent := c.sendq.pop()
		unsent.release()
	}
	for i := c.partStart; i < len(c.segments); i++ {
		c.segments[i].Buf.Release()
	}
	c.segments = c.segments[:c.partStart]
	if !c.delivering { // else deliver does it, on the way out
		c.releaseMessages()
	}
	if c.rq == c.dev.srq {
		c.rq.needed -= controlReceives + c.granted
	} else {
		c.rq.close()
	}
	c.dev.budget.shares -= c.share
	c.share = 0
	c.el.stats.receives.Store(int64(c.el.receives))
	delete(c.dev.conns, c.qpn)
	c.group.conns--
	c.el.deactivate(c.dev)
	if c.boot != nil {
		c.boot.close(orderly, c.failure)
	}
}
