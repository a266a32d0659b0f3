package netpoll

import "github.com/millrace/millrace/hugepages"

// UnsentHandler is what a Handler implements that wants back what a connection did
// not get to send.
type UnsentHandler interface {
	// OnUnsent runs before OnClose, once at most, with the messages that Send took and
	// that were not finished when the connection closed, oldest first: not
	// acknowledged by the peer's device (RDMA, DPDK), or not wholly handed to the
	// kernel (TCP) or put into memory that the peer shares (memif). The first ones may have arrived all the same. The windows are the
	// payloads, to be read; whoever wants a buffer beyond the return Retains it, and
	// may send it again then. The slice is the loop's.
	OnUnsent(c *Conn, bufs []*hugepages.Buf)
}

// UnsentWire is what a Wire implements that can tell what it has not sent.
type UnsentWire interface {
	// Unsent appends what was queued by Send and is not finished, with the payload as
	// its window. It is called once, before Shut, which releases it.
	Unsent(bufs []*hugepages.Buf) []*hugepages.Buf
}

// handBack gives what is queued to a handler that wants it.
func (c *Conn) handBack() {
	h, ok := c.handler.(UnsentHandler)
	if !ok || c.queuedMsgs == 0 {
		return
	}
	if w, ok := c.wire.(UnsentWire); ok {
		if bufs := w.Unsent(make([]*hugepages.Buf, 0, c.queuedMsgs)); len(bufs) > 0 {
			h.OnUnsent(c, bufs)
		}
	}
}

// Unsent implements UnsentWire.
func (c *tcpConn) Unsent(bufs []*hugepages.Buf) []*hugepages.Buf {
	for i := range c.queue.len() {
		b := c.queue.at(i)
		b.TrimFront(frameHeader)
		bufs = append(bufs, b)
	}
	return bufs
}
