package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"time"

	cloudwego "github.com/cloudwego/netpoll"
	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/logging"

	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/netpoll"
)

// The wire format of tcp:// (docs/PROTOCOL.md): both sides send a preamble, then
// messages.
const (
	preambleBytes = 12
	headerBytes   = 4
	ackBytes      = 8 // of a message that acknowledges a part of a stream
)

// ackEvery is how many messages of a stream are acknowledged together.
func ackEvery(size int) int { return max(1, 128<<10/size) }

// acks counts the messages of one connection of a stream.
type acks struct{ every, have int }

func newAcks(spec role.Spec) *acks { return &acks{every: ackEvery(spec.Size)} }

// due counts one message and tells whether an acknowledgement is.
func (a *acks) due() bool {
	if a.have++; a.have < a.every {
		return false
	}
	a.have = 0
	return true
}

// serveMillrace is netpoll.Loop under the idle policy that the role's name ends with.
func serveMillrace(ctx context.Context, spec role.Spec, c *role.Control) error {
	runtime.GOMAXPROCS(spec.Workers)
	idle := netpoll.Balanced()
	switch spec.Role {
	case "millrace-latency":
		idle = netpoll.Latency()
		runtime.GOMAXPROCS(1)
	case "millrace-efficient":
		idle = netpoll.Efficient()
	}
	l, err := netpoll.NewLoop(netpoll.Options{Idle: idle})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	defer l.Stop()
	if _, err := l.Listen("tcp://"+spec.URL, &loopHandler{spec: spec}); err != nil {
		return err
	}
	c.Emit(role.Event{Kind: role.Ready})
	return c.ServeUntilStop(ctx, nil, ended, func() role.Event { return role.Event{} })
}

type loopHandler struct {
	netpoll.BaseHandler
	spec role.Spec
}

func (h *loopHandler) OnOpen(c *netpoll.Conn) { c.Context = newAcks(h.spec) }

func (h *loopHandler) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		n := ms[i].Len()
		if h.spec.Window == 0 {
			if !c.Context.(*acks).due() {
				continue
			}
			n = ackBytes
		}
		b, err := c.Alloc(n)
		if err == nil {
			// Over TCP a message is one piece.
			copy(b.Bytes(), ms[i].Data)
			if err = c.Send(b); err != nil {
				b.Release()
			}
		}
		if err != nil {
			c.Close(err)
			return
		}
	}
}

// serveGnet is gnet with one event loop.
func serveGnet(ctx context.Context, spec role.Spec, c *role.Control) error {
	runtime.GOMAXPROCS(spec.Workers)
	h := &gnetHandler{spec: spec, booted: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- gnet.Run(h, "tcp://"+spec.URL, gnet.WithNumEventLoop(1), gnet.WithTCPNoDelay(gnet.TCPNoDelay), gnet.WithLogLevel(logging.ErrorLevel))
	}()
	select {
	case <-h.booted:
	case err := <-ended:
		return err
	}
	if err := listening(spec.URL); err != nil {
		return err
	}
	c.Emit(role.Event{Kind: role.Ready})
	return c.ServeUntilStop(ctx, nil, ended, func() role.Event { return role.Event{} })
}

type gnetHandler struct {
	gnet.BuiltinEventEngine
	spec   role.Spec
	booted chan struct{}
	out    []byte // of one OnTraffic; there is one event loop
}

func (h *gnetHandler) OnBoot(gnet.Engine) gnet.Action {
	close(h.booted)
	return gnet.None
}

// OnTraffic answers all whole messages with one write.
func (h *gnetHandler) OnTraffic(c gnet.Conn) gnet.Action {
	if c.Context() == nil {
		if c.InboundBuffered() < preambleBytes {
			return gnet.None
		}
		p, err := c.Next(preambleBytes)
		if err != nil {
			return gnet.Close
		}
		if _, err := c.Write(p); err != nil { // what this end accepts is what the peer does
			return gnet.Close
		}
		c.SetContext(newAcks(h.spec))
	}
	in, err := c.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	h.out = h.out[:0]
	rest := in
	for len(rest) >= headerBytes {
		n := headerBytes + int(binary.BigEndian.Uint32(rest))
		if len(rest) < n {
			break
		}
		h.out = answer(h.out, rest[:n], h.spec, c.Context().(*acks))
		rest = rest[n:]
	}
	if taken := len(in) - len(rest); taken > 0 { // Discard(0) discards all
		if _, err := c.Discard(taken); err != nil {
			return gnet.Close
		}
	}
	if len(h.out) > 0 {
		if _, err := c.Write(h.out); err != nil {
			return gnet.Close
		}
	}
	return gnet.None
}

// answer appends what one message, header included, is answered with.
func answer(out, message []byte, spec role.Spec, a *acks) []byte {
	if spec.Window > 0 {
		return append(out, message...)
	}
	if a.due() {
		out = binary.BigEndian.AppendUint32(out, ackBytes)
		out = append(out, message[headerBytes:][:ackBytes]...)
	}
	return out
}

// serveNetpoll is cloudwego's netpoll with one poller.
func serveNetpoll(ctx context.Context, spec role.Spec, c *role.Control) error {
	runtime.GOMAXPROCS(spec.Workers)
	if err := cloudwego.Configure(cloudwego.Config{PollerNum: 1}); err != nil {
		return err
	}
	ln, err := cloudwego.CreateListener("tcp", spec.URL)
	if err != nil {
		return err
	}
	type state struct {
		*acks
		open bool
	}
	type key struct{}
	loop, err := cloudwego.NewEventLoop(
		func(ctx context.Context, conn cloudwego.Connection) error {
			st := ctx.Value(key{}).(*state)
			r := conn.Reader()
			if !st.open {
				p, err := r.Next(preambleBytes)
				if err != nil {
					return err
				}
				if _, err := conn.Write(p); err != nil {
					return err
				}
				st.open = true
			}
			err := answerAll(conn, spec, st.acks)
			if rerr := r.Release(); err == nil {
				err = rerr
			}
			return err
		},
		cloudwego.WithOnPrepare(func(cloudwego.Connection) context.Context {
			return context.WithValue(context.Background(), key{}, &state{acks: newAcks(spec)})
		}))
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- loop.Serve(ln) }()
	c.Emit(role.Event{Kind: role.Ready})
	return c.ServeUntilStop(ctx, nil, ended, func() role.Event { return role.Event{} })
}

// answerAll answers what has come with one write. It waits for the end of a message
// that has begun, as is this package's way.
func answerAll(conn cloudwego.Connection, spec role.Spec, a *acks) error {
	r, w := conn.Reader(), conn.Writer()
	for first := true; first || r.Len() >= headerBytes; first = false {
		h, err := r.Peek(headerBytes)
		if err != nil {
			return err
		}
		n := headerBytes + int(binary.BigEndian.Uint32(h))
		if r.Len() < n && w.MallocLen() > 0 {
			if err := w.Flush(); err != nil { // the peer may wait for it
				return err
			}
		}
		m, err := r.Next(n)
		if err != nil {
			return err
		}
		if spec.Window > 0 || a.due() {
			if spec.Window == 0 {
				n = headerBytes + ackBytes
			}
			out, err := w.Malloc(n)
			if err != nil {
				return err
			}
			binary.BigEndian.PutUint32(out, uint32(n-headerBytes))
			copy(out[headerBytes:], m[headerBytes:])
		}
	}
	if w.MallocLen() == 0 {
		return nil
	}
	return w.Flush()
}

// listening waits until somebody does at addr.
func listening(addr string) error {
	var err error
	for range 100 {
		var c net.Conn
		if c, err = net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("nobody listens: %w", err)
}
