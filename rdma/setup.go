package rdma

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma/bootstrap"
)

const (
	// maxHandshakes bounds the set-ups of one listener under way; more wait in the
	// kernel's accept queue.
	maxHandshakes = 64
)

// keepAlive finds a dead host behind a silent bootstrap connection within
// 5 + 3 × 2 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// address checks a URL and returns its TCP address and the device it asks for.
func (el *EventLoop) address(u *url.URL) (addr, device string, err error) {
	q, err := url.ParseQuery(u.RawQuery)
	device = q.Get(el.opts.DeviceParam)
	q.Del(el.opts.DeviceParam)
	if err != nil || len(q) > 0 || u.Port() == "" || (u.Path != "" && u.Path != "/") || u.User != nil {
		return "", "", fmt.Errorf("rdma: address %q: want %s://host:port or %s://host:port?%s=NAME", u, el.opts.Scheme, el.opts.Scheme, el.opts.DeviceParam)
	}
	return u.Host, device, nil
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

type listener struct {
	ln  net.Listener
	url string
}

func (l *listener) URL() string  { return l.url }
func (l *listener) Close() error { return l.ln.Close() }

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

// Listen implements netpoll.Backend. u is where the bootstrap listens.
func (el *EventLoop) Listen(u *url.URL, h netpoll.Handler) (netpoll.Listener, error) {
	addr, want, err := el.address(u)
	if err != nil {
		return nil, err
	}
	var d *device
	if !el.fabric.PerPeer() {
		// Made now, so that what is wrong with it is told now.
		if d, err = el.offered(Peer{}); err != nil {
			return nil, fmt.Errorf("cannot listen on %s: %w", u, err)
		}
		defer el.drop(d)
	}
	if err := el.checkDevice(want, d); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, netpoll.ListenError(u.String(), err)
	}
	if !el.begin() {
		_ = ln.Close()
		return nil, netpoll.ErrLoopClosed
	}
	go el.accept(ln, h)
	bound := *u
	bound.Host = ln.Addr().String()
	return &listener{ln, bound.String()}, nil
}

func (el *EventLoop) accept(ln net.Listener, h netpoll.Handler) {
	defer el.setups.Done()
	slots := make(chan struct{}, maxHandshakes)
	for {
		nc, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, or a connection that died in the queue
			el.loop.Logger().Error("accept failed; trying again", "listen", ln.Addr(), "err", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		slots <- struct{}{}
		if !el.begin() {
			_ = nc.Close()
			return
		}
		go func() {
			defer el.setups.Done()
			c, err := el.serve(nc, h)
			<-slots
			if err != nil && el.ctx.Err() != nil {
				return // because the event loop closes
			}
			if err != nil {
				el.loop.Logger().Warn("connection refused", "listen", ln.Addr(), "remote", nc.RemoteAddr(), "err", err)
				return
			}
			el.watch(nc, c)
		}()
	}
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
		c, nc, err := el.dial(u, h, tell)
		if err != nil {
			fail(err)
			return
		}
		el.watch(nc, c)
	}()
}

// dial is the active side of the bootstrap.
func (el *EventLoop) dial(u *url.URL, h netpoll.Handler, opened func(*netpoll.Conn, error)) (*conn, net.Conn, error) {
	addr, want, err := el.address(u)
	if err != nil {
		return nil, nil, err
	}
	unlock, err := el.lockAddress(addr)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(el.ctx, bootstrap.StepTimeout)
	defer cancel()
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot reach %s: %w (is the server running there?)", u, err)
	}
	var c *conn
	err = el.handshake(nc, h, opened, func() error {
		var err error
		c, err = el.join(nc, want)
		return err
	}, &c)
	return c, nc, err
}

// serve is the passive side of the bootstrap.
func (el *EventLoop) serve(nc net.Conn, h netpoll.Handler) (c *conn, err error) {
	err = el.handshake(nc, h, nil, func() error {
		var err error
		c, err = el.offer(nc)
		return err
	}, &c)
	return c, err
}

// handshake runs one side's exchange and opens the connection that it made. On
// error the peer is told, and nothing is left of nc and the connection.
func (el *EventLoop) handshake(nc net.Conn, h netpoll.Handler, opened func(*netpoll.Conn, error), exchange func() error, c **conn) error {
	stop := context.AfterFunc(el.ctx, func() { _ = nc.Close() })
	err := exchange()
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err == nil {
		_ = nc.(*net.TCPConn).SetKeepAliveConfig(keepAlive) // without it a dead host is noticed by retransmission alone
		err = el.do(func() error {
			// From here on Shut closes nc, after a farewell.
			stop()
			nconn, err := (*c).open(h, &liveness{el, nc})
			if err == nil && opened != nil {
				opened(nconn, nil)
			}
			return err
		})
	}
	if err == nil {
		return nil
	}
	if failed := *c; failed != nil {
		// Not run if the loop closes: then Close does it.
		_ = el.do(func() error { failed.abort(); return nil })
	}
	bootstrap.Refuse(nc, err)
	stop()
	_ = nc.Close()
	return err
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

// establish turns a reference to d into a connection.
func (el *EventLoop) establish(d *device, remote string) (c *conn, err error) {
	err = el.do(func() (err error) {
		c, err = el.newConn(d, remote)
		return err
	})
	return c, err
}

// offer is the passive exchange: Hello, Offer, Accept, Ready.
func (el *EventLoop) offer(nc net.Conn) (*conn, error) {
	hello, err := bootstrap.Expect[*bootstrap.Hello](nc)
	if err != nil {
		return nil, err
	}
	if hello.Fabric != el.fabric.Name() {
		return nil, fmt.Errorf("rdma: the peer's loop runs on %q, this one on %q: start both with the same kind of device", hello.Fabric, el.fabric.Name())
	}
	p := Peer{Instance: hello.Instance, Loop: hello.Loop, Addr: nc.RemoteAddr().String()}
	for retried := false; ; retried = true {
		d, shared, err := el.acquire(el.offerKey(p), func(ctx context.Context) (Device, map[string]string, error) {
			return el.fabric.Offer(ctx, p)
		})
		if err != nil {
			return nil, fmt.Errorf("rdma: no device for %s: %w", p.Addr, err)
		}
		shared = shared && el.fabric.PerPeer()
		c, err := el.establish(d, p.Addr)
		if err != nil {
			return nil, err
		}
		err = bootstrap.Send(nc, &bootstrap.Offer{
			Instance: bootstrap.Self(), Loop: el.id, Shared: shared, Link: d.link, QP: c.describe(),
		})
		if err != nil {
			return c, err
		}
		m, err := bootstrap.Receive(nc)
		if err != nil {
			return c, err
		}
		switch m := m.(type) {
		case *bootstrap.Accept:
			if err := el.do(func() error { return c.connect(m.QP) }); err != nil {
				return c, err
			}
			return c, bootstrap.Send(nc, &bootstrap.Ready{})
		case *bootstrap.Stale:
			if !shared || retried {
				return c, bootstrap.Unexpected(nc, m)
			}
			el.forget(d)
			if err := el.do(func() error { c.abort(); return nil }); err != nil {
				return nil, err
			}
		default:
			return c, bootstrap.Unexpected(nc, m)
		}
	}
}

// join is the active exchange.
func (el *EventLoop) join(nc net.Conn, want string) (*conn, error) {
	err := bootstrap.Send(nc, &bootstrap.Hello{Instance: bootstrap.Self(), Loop: el.id, Fabric: el.fabric.Name()})
	if err != nil {
		return nil, err
	}
	offer, err := bootstrap.Expect[*bootstrap.Offer](nc)
	if err != nil {
		return nil, err
	}
	p := Peer{Instance: offer.Instance, Loop: offer.Loop, Addr: nc.RemoteAddr().String()}
	key := el.joinKey(p, offer.Link)
	if offer.Shared && !el.holds(key) {
		if err := bootstrap.Send(nc, &bootstrap.Stale{}); err != nil {
			return nil, err
		}
		if offer, err = bootstrap.Expect[*bootstrap.Offer](nc); err != nil {
			return nil, err
		}
		key = el.joinKey(p, offer.Link)
	}
	d, _, err := el.acquire(key, func(ctx context.Context) (Device, map[string]string, error) {
		dev, err := el.fabric.Join(ctx, p, offer.Link)
		return dev, nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("rdma: no device to reach %s: %w", p.Addr, err)
	}
	if err := el.checkDevice(want, d); err != nil {
		el.drop(d)
		return nil, err
	}
	c, err := el.establish(d, p.Addr)
	if err != nil {
		return nil, err
	}
	var own bootstrap.QP
	err = el.do(func() error {
		own = c.describe()
		return c.connect(offer.QP)
	})
	if err != nil {
		return c, err
	}
	if err := bootstrap.Send(nc, &bootstrap.Accept{QP: own}); err != nil {
		return c, err
	}
	_, err = bootstrap.Expect[*bootstrap.Ready](nc)
	return c, err
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

// liveness is the bootstrap connection after the exchange: silent, and its end
// tells the end of the peer.
type liveness struct {
	el *EventLoop
	nc net.Conn
}

// close says farewell, or why not, and closes.
func (l *liveness) close(orderly bool, failure error) {
	l.el.setups.Add(1)
	go func() {
		defer l.el.setups.Done()
		if failure != nil {
			bootstrap.Refuse(l.nc, failure)
		} else {
			// A peer that is gone needs no farewell.
			_ = bootstrap.Send(l.nc, &bootstrap.Bye{Orderly: orderly})
		}
		_ = l.nc.Close()
	}()
}

// watch waits for the end of an open connection's bootstrap connection. It runs
// on the goroutine that set the connection up.
func (el *EventLoop) watch(nc net.Conn, c *conn) {
	m, err := bootstrap.Read(nc)
	if errors.Is(err, net.ErrClosed) {
		return // by this end
	}
	bye := false
	switch m := m.(type) {
	case *bootstrap.Bye:
		if bye = m.Orderly; !bye {
			err = ErrPeerAborted
		}
	case *bootstrap.Refusal:
		err = fmt.Errorf("rdma: %s closed the connection: %s", c.remote, m.Reason)
	case nil:
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		err = fmt.Errorf("rdma: %s died or cannot be reached any more: its bootstrap connection ended: %w", c.remote, err)
	default:
		err = bootstrap.Unexpected(nc, m)
	}
	if el.submit(func() { c.peerGone(bye, err) }) != nil {
		return // the loop has closed, and the connection with it
	}
}
