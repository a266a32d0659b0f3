package roles

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

// runningLoop is a netpoll.Loop on a goroutine of its own.
type runningLoop struct {
	*netpoll.Loop
	ended chan error
}

// startLoop makes and runs a loop for a role; the URL says which transport.
func startLoop(spec role.Spec) (*runningLoop, error) {
	backends, err := transports.Backends(transports.With(spec.URL, spec.Device))
	if err != nil {
		return nil, err
	}
	idle, err := netpoll.ParseIdlePolicy(spec.Idle)
	if err != nil {
		return nil, err
	}
	forSleepers(idle, 1)
	l, err := netpoll.NewLoop(netpoll.Options{
		Backends: backends, Idle: idle, MaxMessageBytes: maxMessageBytes, MaxQueuedBytes: spec.QueueBytes, Logger: warnings(),
	})
	if err != nil {
		return nil, err
	}
	r := &runningLoop{l, make(chan error, 1)}
	go func() { r.ended <- l.Run() }()
	return r, nil
}

// shutdown drains the loop within two seconds.
func (l *runningLoop) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return l.Shutdown(ctx)
}

// describe tells the parent what a connection really runs on.
func describe(t netpoll.Transport) role.Event {
	return role.Event{Device: t.Device, Label: t.Label, Reason: t.Reason}
}

// serveLoop listens with h until the parent says Stop.
func serveLoop(ctx context.Context, spec role.Spec, c *role.Control, h netpoll.Handler) error {
	l, err := startLoop(spec)
	if err != nil {
		return err
	}
	ln, err := l.Listen(spec.URL, h)
	if err != nil {
		return errors.Join(err, l.shutdown())
	}
	c.Emit(role.Event{Kind: role.Ready, URL: ln.URL()})
	return c.ServeUntilStop(ctx, loopMeter(l.Loop), l.ended, func() role.Event {
		_ = l.shutdown() // the clients are gone: nothing is left to lose
		return role.Event{}
	})
}

// echoHandler sends every message back.
type echoHandler struct{ netpoll.BaseHandler }

func (echoHandler) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		b, err := c.Alloc(ms[i].Len())
		if err != nil {
			c.Close(fmt.Errorf("echo: %w", err))
			return
		}
		copyMessage(b.Bytes(), &ms[i])
		if err := c.Send(b); err != nil {
			b.Release()
			c.Close(fmt.Errorf("echo: %w", err))
			return
		}
	}
}

// copyMessage gathers the pieces of m into dst.
func copyMessage(dst []byte, m *netpoll.Message) {
	n := copy(dst, m.Data)
	for i := range m.Rest {
		n += copy(dst[n:], m.Rest[i].Data)
	}
}

// loopEcho sends every message back from a netpoll.Loop.
func loopEcho(ctx context.Context, spec role.Spec, c *role.Control) error {
	return serveLoop(ctx, spec, c, echoHandler{})
}
