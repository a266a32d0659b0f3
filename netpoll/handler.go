package netpoll

// Handler receives what happens on connections. Every method runs on the
// goroutine of the connection's loop, never concurrently for one loop, and must
// not block: a handler that blocks stalls every connection of the loop (see
// Stats.Stalls).
type Handler interface {
	// OnOpen runs once, before any other method, when the connection is ready to
	// send on.
	OnOpen(c *Conn)
	// OnMessages delivers the messages that one poll found, in order. They are
	// leased: see Message. The slice itself is reused after the return.
	OnMessages(c *Conn, ms []Message)
	// OnWritable runs once after a Send was refused with ErrBackpressure, when
	// half of the send queue is free again.
	OnWritable(c *Conn)
	// OnClose runs once, last. err is nil after an orderly close by either side.
	// Messages that were accepted by Send and not yet handed to the transport are
	// lost with the connection, unless the handler is an UnsentHandler; their buffers
	// are released.
	OnClose(c *Conn, err error)
}

// BaseHandler does nothing on every event. Embed it to implement only some.
type BaseHandler struct{}

func (BaseHandler) OnOpen(*Conn)                {}
func (BaseHandler) OnMessages(*Conn, []Message) {}
func (BaseHandler) OnWritable(*Conn)            {}
func (BaseHandler) OnClose(*Conn, error)        {}
