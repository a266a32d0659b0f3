package rdma

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/millrace/millrace/netpoll"
)

const (
	// maxHandshakes bounds the set-ups of one listener under way; more wait in the
	// kernel's accept queue. As many as netpoll's for TCP.
	maxHandshakes = 256
	// helloPatience is how long a peer may say nothing while others wait: a good one's
	// Hello comes with its connection.
	helloPatience = 250 * time.Millisecond
	// refusalsPerSecond bounds what a flood of bad peers writes to the log.
	refusalsPerSecond = 10
)

var errEvicted = errors.New("rdma: it said nothing while many others waited")

type listener struct {
	el       *EventLoop
	ln       net.Listener
	url      string
	handler  netpoll.Handler
	fallback bool

	mu     sync.Mutex
	setups []*setup // under way, the oldest first

	second     int64 // of refused
	refused    int
	suppressed int
}

// URL implements netpoll.Listener.
func (l *listener) URL() string { return l.url }

// Close implements netpoll.Listener.
func (l *listener) Close() error { return l.ln.Close() }

func (l *listener) accept() {
	defer l.el.setups.Done()
	slots := make(chan struct{}, maxHandshakes)
	for {
		nc, err := netpoll.Accept(l.ln, l.el.loop.Logger())
		if err != nil {
			return
		}
		for taken := false; !taken; {
			select {
			case slots <- struct{}{}:
				taken = true
			case <-time.After(l.evict(len(slots))):
			}
		}
		if !l.el.begin() {
			_ = nc.Close()
			return
		}
		s := &setup{el: l.el, nc: nc, handler: l.handler, fallback: l.fallback, since: time.Now()}
		l.add(s)
		go func() {
			defer l.el.setups.Done()
			err := s.run(s.offer)
			l.remove(s)
			<-slots
			if s.evicted.Load() {
				err = errEvicted
			}
			switch {
			case err == nil:
				s.watch()
			case l.el.ctx.Err() == nil: // else because the event loop closes
				l.refuse(nc.RemoteAddr(), err)
			}
		}()
	}
}

func (l *listener) add(s *setup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setups = append(l.setups, s)
}

func (l *listener) remove(s *setup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.setups {
		if l.setups[i] == s {
			l.setups = append(l.setups[:i], l.setups[i+1:]...)
			return
		}
	}
}

// evict makes room where peers connect and say nothing: the oldest of them goes, if
// it has had its time. It returns when to look again.
func (l *listener) evict(taken int) time.Duration {
	if taken < maxHandshakes {
		return helloPatience
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.setups {
		if s.known.Load() {
			continue
		}
		if wait := helloPatience - time.Since(s.since); wait > 0 {
			return wait
		}
		s.known.Store(true)
		s.evicted.Store(true)
		_ = s.nc.Close()
		break
	}
	return time.Millisecond
}

// refuse counts and logs a refused peer.
func (l *listener) refuse(remote net.Addr, err error) {
	l.el.stats.refused.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now().Unix(); now != l.second {
		if l.suppressed > 0 {
			l.el.loop.Logger().Warn("more connections were refused", "listen", l.ln.Addr(), "count", l.suppressed)
		}
		l.second, l.refused, l.suppressed = now, 0, 0
	}
	if l.refused++; l.refused > refusalsPerSecond {
		l.suppressed++
		return
	}
	l.el.loop.Logger().Warn("connection refused", "listen", l.ln.Addr(), "remote", remote, "err", err)
}
