package roles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/netpoll"
)

// dialTimeout bounds setting up one connection, devices included.
const dialTimeout = 10 * time.Second

// loopPing measures round trips to loopEcho through the whole path of a
// netpoll.Loop, one message at a time on each connection.
func loopPing(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return err
	}
	l, err := startLoop(spec)
	if err != nil {
		return err
	}
	defer l.Stop()
	p := &pinger{ms: ms, t: newTally(), done: make(chan error, 1)}
	conns := make([]*netpoll.Conn, max(1, spec.Connections))
	for i := range conns {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		conns[i], err = l.Dial(dctx, spec.URL, p)
		cancel()
		if err != nil {
			return err
		}
	}
	ready := describe(conns[0].Transport())
	ready.Kind = role.Ready
	c.Emit(ready)
	w, err := open(ctx, spec, c)
	if err != nil {
		return err
	}
	meter := loopMeter(l.Loop)
	err = l.Do(func() {
		p.w, p.open = w, len(conns)
		p.watch = newStopwatch()
		for i, conn := range conns {
			conn.Context = &pingConn{next: i}
			p.ping(conn)
		}
	})
	if err != nil {
		return err
	}
	select {
	case err := <-p.done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	return finish(ctx, c, w, meter, p.t.result(w), func() { _ = l.shutdown() })
}

// pinger is the handler of all connections; the loop's goroutine.
type pinger struct {
	netpoll.BaseHandler
	ms    [][]byte
	w     *window
	t     *tally
	watch *stopwatch
	open  int // connections still at it
	done  chan error
}

type pingConn struct {
	next  int
	sent  []byte // in flight; nil: none
	began time.Time
}

func (p *pinger) ping(c *netpoll.Conn) {
	pc := c.Context.(*pingConn)
	pc.began = p.watch.now()
	if !p.w.next(pc.began) {
		pc.sent = nil
		if p.open--; p.open == 0 {
			p.finish(nil)
		}
		return
	}
	m := p.ms[pc.next%len(p.ms)]
	pc.next++
	b, err := c.Alloc(len(m))
	if err != nil {
		p.finish(err)
		return
	}
	copy(b.Bytes(), m)
	if err := c.Send(b); err != nil {
		b.Release()
		p.finish(err)
		return
	}
	pc.sent = m
}

// OnMessages takes the echo and sends the next message.
func (p *pinger) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	pc := c.Context.(*pingConn)
	for i := range ms {
		if pc.sent == nil {
			p.t.extra.Add(1)
			continue
		}
		took := p.watch.now().Sub(pc.began)
		got, err := ms[i].Contiguous(c.Loop().Pool())
		switch {
		case err != nil:
			p.finish(err)
			return
		case !bytes.Equal(got, pc.sent):
			p.finish(errEcho)
			return
		}
		if p.w.counts(pc.began) {
			p.t.add(took, len(got))
		}
		p.ping(c)
	}
}

// OnClose ends the measurement if it was under way.
func (p *pinger) OnClose(c *netpoll.Conn, err error) {
	if err == nil {
		err = errors.New("closed by the other end")
	}
	p.finish(fmt.Errorf("connection %s: %w", c.RemoteAddr(), err))
}

// finish reports the end; only the first counts.
func (p *pinger) finish(err error) {
	select {
	case p.done <- err:
	default:
	}
}
