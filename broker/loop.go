package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// connPeer is a netpoll connection as a Peer.
type connPeer struct{ *netpoll.Conn }

// closeGrace is how long a connection that ends has to deliver its last answers.
const closeGrace = time.Second

func (p connPeer) SetReading(on bool) {
	if on {
		p.ResumeReading()
	} else {
		p.PauseReading()
	}
}

// Close says why, because the peer is to blame and may not tell.
func (p connPeer) Close(reason error) {
	p.Loop().Logger().Warn("connection ended", "remote", p.RemoteAddr(), "reason", reason)
	p.Drain(p.Loop().Now() + int64(closeGrace))
}

// Progress implements Progress.
func (p connPeer) Progress() (queued int, sent uint64) {
	queued = p.QueuedBytes()
	return queued, p.Stats().SentBytes - uint64(queued)
}

// sessionHandler makes each connection a session.
type sessionHandler struct{ open func(Peer) *Session }

func (h *sessionHandler) OnOpen(c *netpoll.Conn) { c.Context = h.open(connPeer{c}) }

func (h *sessionHandler) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	s := c.Context.(*Session)
	for i := range ms {
		s.Request(&ms[i])
	}
}

func (h *sessionHandler) OnWritable(c *netpoll.Conn) { c.Context.(*Session).Writable() }

func (h *sessionHandler) OnClose(c *netpoll.Conn, _ error) { c.Context.(*Session).Close() }

// loopScheduler is a loop as a Scheduler.
type loopScheduler struct{ *netpoll.Loop }

func (s loopScheduler) After(d time.Duration, fn func()) (stop func()) {
	t := s.Loop.After(d, fn)
	return func() { t.Stop() }
}

// poolBytes is the limit of the arena of a server, proxy or client that is not given a pool:
// the receive buffers of its connections, answers under way, and batches that
// wait for the disk (16 MiB) or the link.
const poolBytes = 128 << 20

// ownPool returns pool, or one of its own and how to free it.
func ownPool(pool *hugepages.Pool) (*hugepages.Pool, func() error, error) {
	if pool != nil {
		return pool, func() error { return nil }, nil
	}
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: poolBytes, Elastic: true})
	if err != nil {
		return nil, nil, fmt.Errorf("broker: memory: %w", err)
	}
	return hugepages.NewPool(arena), arena.Close, nil
}

// host is a loop on a goroutine of its own, with the memory that it uses.
type host struct {
	loop     *netpoll.Loop
	pool     *hugepages.Pool
	freePool func() error
	ran      chan error

	mu      sync.Mutex
	holds   int  // of memory; see hold
	stopped bool // and memory is freed with the last hold
}

// newHost makes the loop and runs it. What o.Pool lacks is made.
func newHost(o netpoll.Options) (*host, error) {
	h := &host{ran: make(chan error, 1)}
	var err error
	if h.pool, h.freePool, err = ownPool(o.Pool); err != nil {
		return nil, err
	}
	o.Pool = h.pool
	if h.loop, err = netpoll.NewLoop(o); err != nil {
		return nil, errors.Join(err, h.freePool())
	}
	go func() { h.ran <- h.loop.Run() }()
	return h, nil
}

// stop drains the connections until ctx ends, waits for the loop and frees the
// memory.
func (h *host) stop(ctx context.Context) error {
	err := errors.Join(h.loop.Shutdown(ctx), <-h.ran)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	if h.holds > 0 {
		return err
	}
	return errors.Join(err, h.freePool())
}

// hold keeps the memory until release, also beyond stop; false after stop.
func (h *host) hold() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	h.holds++
	return true
}

func (h *host) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holds--; h.holds == 0 && h.stopped {
		if err := h.freePool(); err != nil {
			h.loop.Logger().Error("memory of a closed client is not freed", "err", err)
		}
	}
}

// settlePoll is how often a shutdown looks whether all is done.
const settlePoll = time.Millisecond

// settle runs begin on the loop, and then waits until settled answers true, ctx
// ends or the loop has stopped.
func settle(ctx context.Context, loop *netpoll.Loop, begin func(), settled func() bool) {
	done := make(chan struct{})
	var look func()
	look = func() {
		if settled() {
			close(done)
			return
		}
		loop.After(settlePoll, look)
	}
	if loop.Do(func() { begin(); look() }) != nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	case <-loop.Done():
	}
}
