package rdma

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// address is what a URL of this backend says.
type address struct {
	host     string // TCP address of the bootstrap
	device   string // asked for, or empty
	fallback bool   // to stay on TCP is better than to fail
}

// fallbackParam is the URL parameter that allows a fall-back; its one value is tcp.
const fallbackParam = "fallback"

// address checks a URL.
func (el *EventLoop) address(u *url.URL) (a address, err error) {
	q, err := url.ParseQuery(u.RawQuery)
	a.host, a.device = u.Host, q.Get(el.opts.DeviceParam)
	fallback := q.Get(fallbackParam)
	a.fallback = fallback == "tcp"
	q.Del(el.opts.DeviceParam)
	q.Del(fallbackParam)
	if err != nil || len(q) > 0 || u.Port() == "" || (u.Path != "" && u.Path != "/") || u.User != nil || fallback != "" && !a.fallback {
		return a, fmt.Errorf("rdma: address %q: want %s://host:port, with %s=NAME or %s=tcp behind ? if need be", u, el.opts.Scheme, el.opts.DeviceParam, fallbackParam)
	}
	if a.fallback && !el.loop.HasTCP() {
		return a, fmt.Errorf("rdma: address %q: falling back to TCP needs netpoll.NewTCP() among the loop's backends", u)
	}
	return a, nil
}

// checkDevice compares what a URL asks for with what the loop has.
func (el *EventLoop) checkDevice(want string, d *device) error {
	if want == "" || want == el.fabric.Name() || d != nil && want == d.attr.Name {
		return nil
	}
	have := el.fabric.Name()
	if d != nil {
		have = d.attr.Name
	}
	return fmt.Errorf("rdma: the address asks for %s %q, this loop has %q: start it with that device, or leave the parameter out", el.opts.DeviceParam, want, have)
}

// do runs fn on the loop's goroutine and waits for it. When the event loop
// closes first, fn is not run or its result does not matter: Close cleans up.
func (el *EventLoop) do(fn func() error) error {
	done := make(chan error, 1)
	err := el.submit(func() {
		if el.closed {
			done <- netpoll.ErrLoopClosed
			return
		}
		done <- fn()
	})
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-el.ctx.Done():
		return netpoll.ErrLoopClosed
	}
}

// submit is Loop.Submit that waits for room in the queue.
func (el *EventLoop) submit(fn func()) error {
	for {
		err := el.loop.Submit(fn)
		if !errors.Is(err, netpoll.ErrBackpressure) {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-el.ctx.Done():
			return netpoll.ErrLoopClosed
		}
	}
}

// begin counts a goroutine of the control path; false if the event loop closed.
func (el *EventLoop) begin() bool {
	el.mu.Lock()
	defer el.mu.Unlock()
	if el.ctx.Err() != nil {
		return false
	}
	el.setups.Add(1)
	return true
}

// Listen implements netpoll.Backend. u is where the bootstrap listens. With
// fallback=tcp in u it listens even where the device cannot be had; its connections
// then stay on TCP.
func (el *EventLoop) Listen(u *url.URL, h netpoll.Handler) (netpoll.Listener, error) {
	a, err := el.address(u)
	if err != nil {
		return nil, err
	}
	var d *device
	if !el.fabric.PerPeer() {
		// Made now, so that what is wrong with it is told now.
		d, err = el.offered(Peer{})
		switch {
		case err == nil:
			defer el.drop(d)
		case a.fallback:
			el.loop.Logger().Warn("connections will stay on TCP", "listen", u, "err", err)
		default:
			return nil, fmt.Errorf("cannot listen on %s: %w", u, err)
		}
	}
	if err := el.checkDevice(a.device, d); err != nil && !a.fallback {
		return nil, err
	}
	ln, err := net.Listen("tcp", a.host)
	if err != nil {
		return nil, netpoll.ListenError(u.String(), err)
	}
	if !el.begin() {
		_ = ln.Close()
		return nil, netpoll.ErrLoopClosed
	}
	bound := *u
	bound.Host = ln.Addr().String()
	l := &listener{el: el, ln: ln, url: bound.String(), handler: h, fallback: a.fallback}
	go l.accept()
	return l, nil
}

// Dial implements netpoll.Backend.
func (el *EventLoop) Dial(u *url.URL, h netpoll.Handler, done func(*netpoll.Conn, error)) {
	told := false // on the loop's goroutine
	tell := func(c *netpoll.Conn, err error) {
		if !told {
			told = true
			done(c, err)
		}
	}
	fail := func(err error) {
		if el.submit(func() { tell(nil, err) }) != nil {
			el.loop.Logger().Debug("dial failed while the loop closed", "url", u, "err", err)
		}
	}
	if !el.begin() {
		fail(netpoll.ErrLoopClosed)
		return
	}
	go func() {
		defer el.setups.Done()
		s, err := el.dial(u, h, tell)
		if err != nil {
			fail(err)
			return
		}
		s.watch()
	}()
}

// dial is the active side of the bootstrap.
func (el *EventLoop) dial(u *url.URL, h netpoll.Handler, opened func(*netpoll.Conn, error)) (*setup, error) {
	a, err := el.address(u)
	if err != nil {
		return nil, err
	}
	unlock, err := el.lockAddress(a.host)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(el.ctx, bootstrap.StepTimeout)
	defer cancel()
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "tcp", a.host)
	if err != nil {
		return nil, fmt.Errorf("cannot reach %s: %w (is the server running there?)", u, err)
	}
	s := &setup{el: el, nc: nc, handler: h, opened: opened, fallback: a.fallback, peerFallback: true, device: a.device}
	return s, s.run(s.join)
}

// abort ends a connection that did not come to be open.
func (c *conn) abort() {
	if c.ep == nil {
		c.Shut()
	}
}

// offered takes a reference to the device for a peer that dials.
func (el *EventLoop) offered(p Peer) (*device, error) {
	d, _, err := el.acquire(el.offerKey(p), func(ctx context.Context) (Device, map[string]string, error) {
		return el.fabric.Offer(ctx, p)
	})
	return d, err
}

// drop gives a reference back off the loop's goroutine.
func (el *EventLoop) drop(d *device) {
	if el.submit(func() { el.release(d) }) != nil {
		return // the loop has closed, and the device with it
	}
}

// lockAddress lets one dial at a time to an address through, where peers have
// devices of their own: the second then shares what the first one made.
func (el *EventLoop) lockAddress(addr string) (unlock func(), err error) {
	if !el.fabric.PerPeer() {
		return func() {}, nil
	}
	el.mu.Lock()
	turn := el.dialing[addr]
	if turn == nil {
		turn = &dialTurn{taken: make(chan struct{}, 1)}
		el.dialing[addr] = turn
	}
	turn.users++
	el.mu.Unlock()
	leave := func() {
		el.mu.Lock()
		defer el.mu.Unlock()
		if turn.users--; turn.users == 0 {
			delete(el.dialing, addr)
		}
	}
	select {
	case turn.taken <- struct{}{}:
		return func() { <-turn.taken; leave() }, nil
	case <-el.ctx.Done():
		leave()
		return nil, netpoll.ErrLoopClosed
	}
}

// dialTurn is held by one of the users that dial an address.
type dialTurn struct {
	taken chan struct{}
	users int // under EventLoop.mu
}
