package rdma

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// setup is one bootstrap connection on its way to a connection of the loop, on a
// goroutine of its own.
type setup struct {
	el           *EventLoop
	nc           net.Conn
	handler      netpoll.Handler
	opened       func(*netpoll.Conn, error) // of Dial; may be nil
	device       string                     // that the active side's URL asks for
	fallback     bool                       // to stay on TCP is allowed here
	peerFallback bool                       // and there, as far as it is known
	known        atomic.Bool                // the peer has said a good Hello
	evicted      atomic.Bool
	since        time.Time // accepted
	conn         *conn     // once made
}

// unable wraps what keeps this end from using RDMA, as opposed to a peer that
// breaks the exchange.
type unable struct{ error }

func (u unable) Unwrap() error { return u.error }

// run does the exchange and opens the connection that it made. If there is an
// error, the peer is told, and nothing is left of nc and the connection. Otherwise
// the connection is open: s.conn's, or, if that is nil, one on TCP.
func (s *setup) run(exchange func() error) error {
	el := s.el
	stop := context.AfterFunc(el.ctx, func() { _ = s.nc.Close() })
	err := exchange()
	if err == nil {
		err = s.nc.SetDeadline(time.Time{})
	}
	if err == nil {
		err = el.do(func() error {
			// From here on Shut closes nc, after a farewell.
			stop()
			nconn, err := s.conn.open(s.handler, newLiveness(el, s.nc))
			if err == nil && s.opened != nil {
				s.opened(nconn, nil)
			}
			return err
		})
	}
	if err == nil {
		return nil
	}
	s.abort()
	reason, err := s.fallBack(err)
	if err == nil {
		stop()
		reason = "fall-back from " + el.opts.Scheme + ": " + reason
		el.stats.fallbacks.Add(1)
		el.loop.Logger().Warn("connection stays on TCP", "remote", s.nc.RemoteAddr(), "reason", reason)
		return el.loop.AdoptTCP(s.nc, s.handler, reason, s.opened)
	}
	bootstrap.Refuse(s.nc, err)
	stop()
	_ = s.nc.Close()
	return err
}

// abort gives up the RDMA connection that was made, which is not open.
func (s *setup) abort() {
	if c := s.conn; c != nil {
		s.conn = nil
		// Not run if the loop closes: then Close does it.
		_ = s.el.do(func() error { c.abort(); return nil })
	}
}

// fallBack agrees with the peer to stay on TCP because of err, and returns why. If
// they do not agree, the error is what to end with.
func (s *setup) fallBack(err error) (reason string, _ error) {
	if peer := (*bootstrap.FallbackError)(nil); errors.As(err, &peer) {
		if !s.fallback {
			return "", fmt.Errorf("%w; this end does not: it takes %s=tcp in both addresses", err, fallbackParam)
		}
		return "the peer: " + peer.Reason, bootstrap.Send(s.nc, &bootstrap.Fallback{Reason: peer.Reason})
	}
	version := (*bootstrap.VersionError)(nil)
	switch {
	case !s.fallback:
		return "", err
	case errors.As(err, &version):
		if !version.Fallback {
			return "", err
		}
	case !errors.As(err, new(unable)) || !s.peerFallback || s.el.ctx.Err() != nil:
		return "", err
	}
	if e := bootstrap.Send(s.nc, &bootstrap.Fallback{Reason: bootstrap.Reason(err)}); e != nil {
		return "", errors.Join(err, e)
	}
	_, e := bootstrap.Receive(s.nc)
	if peer := (*bootstrap.FallbackError)(nil); errors.As(e, &peer) {
		return bootstrap.Reason(err), nil
	}
	return "", errors.Join(err, e)
}

// make turns a reference to d into s.conn.
func (s *setup) make(d *device) error {
	err := s.el.do(func() (err error) {
		s.conn, err = s.el.newConn(d, s.nc.RemoteAddr().String())
		return err
	})
	if err != nil {
		return unable{err}
	}
	return nil
}

// connect connects s.conn's queue pair, without ICRC if both ends agreed to that.
func (s *setup) connect(peer bootstrap.QP, unsummed bool) (own bootstrap.QP, err error) {
	err = s.el.do(func() error {
		own = s.conn.describe()
		return s.conn.connect(peer, unsummed)
	})
	if err != nil {
		err = unable{err}
	}
	return own, err
}

// offer is the passive exchange: Hello, Offer, Accept, Ready, Verified.
func (s *setup) offer() error {
	el, nc := s.el, s.nc
	hello, err := bootstrap.Expect[*bootstrap.Hello](nc)
	if err != nil {
		return err
	}
	s.known.Store(true)
	s.peerFallback = hello.Fallback
	if hello.Fabric != el.fabric.Name() {
		return unable{fmt.Errorf("rdma: the peer's loop runs on %q, this one on %q: start both with the same kind of device", hello.Fabric, el.fabric.Name())}
	}
	p := Peer{Instance: hello.Instance, Loop: hello.Loop, Addr: nc.RemoteAddr().String()}
	for retried := false; ; retried = true {
		d, shared, err := el.acquire(el.offerKey(p), func(ctx context.Context) (Device, map[string]string, error) {
			return el.fabric.Offer(ctx, p)
		})
		if err != nil {
			return unable{fmt.Errorf("rdma: no device for %s: %w", p.Addr, err)}
		}
		shared = shared && el.fabric.PerPeer()
		if err := s.make(d); err != nil {
			return err
		}
		err = bootstrap.Send(nc, &bootstrap.Offer{
			Instance: bootstrap.Self(), Loop: el.id, Shared: shared, Link: d.link, QP: s.conn.describe(), Fallback: s.fallback,
		})
		if err != nil {
			return err
		}
		m, err := bootstrap.Receive(nc)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *bootstrap.Accept:
			if m.Unsummed && !d.attr.Caps.Has(CapUnsummed) {
				return fmt.Errorf("%w: the peer leaves the ICRC out, which %s does not offer", netpoll.ErrProtocol, d.attr.Name)
			}
			if _, err := s.connect(m.QP, m.Unsummed); err != nil {
				return err
			}
			if err := bootstrap.Send(nc, &bootstrap.Ready{}); err != nil || !s.fallback || !s.peerFallback {
				return err
			}
			_, err := bootstrap.Expect[*bootstrap.Verified](nc)
			return err
		case *bootstrap.Stale:
			if !shared || retried {
				return bootstrap.Unexpected(nc, m)
			}
			el.forget(d)
			s.abort()
		default:
			return bootstrap.Unexpected(nc, m)
		}
	}
}

// join is the active exchange.
func (s *setup) join() error {
	el, nc := s.el, s.nc
	if none, ok := el.fabric.(noFabric); ok {
		return unable{none.reason}
	}
	err := bootstrap.Send(nc, &bootstrap.Hello{Instance: bootstrap.Self(), Loop: el.id, Fabric: el.fabric.Name(), Fallback: s.fallback})
	if err != nil {
		return err
	}
	offer, err := bootstrap.Expect[*bootstrap.Offer](nc)
	if err != nil {
		return err
	}
	s.peerFallback = offer.Fallback
	p := Peer{Instance: offer.Instance, Loop: offer.Loop, Addr: nc.RemoteAddr().String()}
	key := el.joinKey(p, offer.Link)
	if offer.Shared && !el.holds(key) {
		if err := bootstrap.Send(nc, &bootstrap.Stale{}); err != nil {
			return err
		}
		if offer, err = bootstrap.Expect[*bootstrap.Offer](nc); err != nil {
			return err
		}
		key = el.joinKey(p, offer.Link)
	}
	d, _, err := el.acquire(key, func(ctx context.Context) (Device, map[string]string, error) {
		dev, err := el.fabric.Join(ctx, p, offer.Link)
		return dev, nil, err
	})
	if err != nil {
		return unable{fmt.Errorf("rdma: no device to reach %s: %w", p.Addr, err)}
	}
	if err := el.checkDevice(s.device, d); err != nil {
		el.drop(d)
		return unable{err}
	}
	if err := s.make(d); err != nil {
		return err
	}
	// A fabric gives its joining end CapUnsummed only where the offer does.
	unsummed := d.attr.Caps.Has(CapUnsummed)
	own, err := s.connect(offer.QP, unsummed)
	if err != nil {
		return err
	}
	if err := bootstrap.Send(nc, &bootstrap.Accept{QP: own, Unsummed: unsummed}); err != nil {
		return err
	}
	if _, err := bootstrap.Expect[*bootstrap.Ready](nc); err != nil || !s.fallback || !s.peerFallback {
		return err
	}
	if err := s.verify(); err != nil {
		return unable{err}
	}
	return bootstrap.Send(nc, &bootstrap.Verified{})
}

// verifyTimeout is how long the first message may take to be acknowledged. Shorter
// than the peer waits for Verified.
const verifyTimeout = 2 * time.Second

// verify sends a message on the queue pair: what keeps packets from the peer shall
// show before the connection is used.
func (s *setup) verify() error {
	c, verified := s.conn, make(chan error, 1)
	if err := s.el.do(func() error { c.probe(verified); return nil }); err != nil {
		return err
	}
	select {
	case err := <-verified:
		return err
	case <-s.el.ctx.Done():
		return netpoll.ErrLoopClosed
	case <-time.After(verifyTimeout):
		return fmt.Errorf("rdma: within %v%s", verifyTimeout, c.likelyCause(RetryExceeded))
	}
}

// noFabric has no device.
type noFabric struct{ reason error }

// NoFabric is the fabric of an event loop that cannot have a device, because of
// reason. Its connections fall back to TCP where their addresses allow that, and are
// refused otherwise.
func NoFabric(reason error) Fabric { return noFabric{reason} }

func (noFabric) Name() string  { return "none" }
func (noFabric) PerPeer() bool { return false }
func (f noFabric) Offer(context.Context, Peer) (Device, map[string]string, error) {
	return nil, nil, f.reason
}
func (f noFabric) Join(context.Context, Peer, map[string]string) (Device, error) {
	return nil, f.reason
}
func (noFabric) Drop(Device) error { return nil }
func (noFabric) Close() error      { return nil }
