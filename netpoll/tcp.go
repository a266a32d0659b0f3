package netpoll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
)

const (
	// tcpReadBytes is the read buffer that all connections of a loop share: one
	// read takes at most this much. Two typical TCP receive windows.
	tcpReadBytes = 128 << 10
	// maxHandshakes bounds the accepted connections of one listener that have not
	// finished their preamble.
	maxHandshakes = 256
	// hotConns is how many recently active connections are read directly, without
	// asking epoll first: while polling, that halves the system calls per message.
	hotConns = 4
	// hotMisses is how many empty direct reads make a connection cold again, and
	// hotEpollEvery how often epoll is asked while some connection is hot.
	hotMisses     = 4096
	hotEpollEvery = 8
	// lingerTimeout bounds how long a closed connection waits for the peer's FIN
	// (see tcpConn.Shut).
	lingerTimeout = 2 * time.Second
	// starvedRetry is how soon a connection that found the pool exhausted tries
	// again.
	starvedRetry = time.Millisecond
)

// TCP is the backend of tcp://host:port: length-framed messages, the loop's epoll
// instance, vectored writes.
type TCP struct {
	loop    *Loop
	conns   []*tcpConn // by descriptor, lingering ones included
	open    int        // of conns
	lastGen int32
	hot     []*tcpConn
	polls   uint
	scratch *hugepages.Buf // what reads fill; private to no connection
	starved []*tcpConn     // wait for pool memory
	calls   socketCalls
	retryAt int64
	iov     [tcpMaxIovecs]unix.Iovec
	joined  []byte // empty; room for the small messages of one writev, side by side
	msgs    []Message
	ctx     context.Context // ends when the backend closes
	cancel  context.CancelFunc
	setups  sync.WaitGroup // handshake and accept goroutines
}

// socketCalls are the system calls of the data path; tests put faults in them.
type socketCalls struct {
	read   func(fd int, p []byte) (int, error)
	readv  func(fd int, a, b []byte) (int, error)
	writev func(fd int, iov []unix.Iovec) (int, error)
}

// NewTCP makes a TCP backend for one loop.
func NewTCP() *TCP {
	ctx, cancel := context.WithCancel(context.Background())
	return &TCP{ctx: ctx, cancel: cancel, calls: socketCalls{rawRead, rawReadv, rawWritev}}
}

// Scheme is "tcp".
func (t *TCP) Scheme() string { return "tcp" }

// Attach implements Poller.
func (t *TCP) Attach(l *Loop) error {
	t.loop = l
	return nil
}

func tcpAddress(u *url.URL) (string, error) {
	if u.Port() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		return "", fmt.Errorf("netpoll: address %q: want tcp://host:port", u)
	}
	return u.Host, nil
}

type tcpListener struct {
	ln     net.Listener
	backed *TCP
}

func (ln *tcpListener) URL() string  { return "tcp://" + ln.ln.Addr().String() }
func (ln *tcpListener) Close() error { return ln.ln.Close() }

// Listen implements Backend.
func (t *TCP) Listen(u *url.URL, h Handler) (Listener, error) {
	addr, err := tcpAddress(u)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, ListenError(u.String(), err)
	}
	t.setups.Add(1)
	go t.accept(ln, h)
	return &tcpListener{ln: ln, backed: t}, nil
}

// ListenError explains why an address could not be bound and what to do.
func ListenError(url string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: the port is in use: stop the other process (ss -ltnp shows it) or choose another port (0 picks a free one): %w", url, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("cannot listen on %s: ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher port: %w", url, err)
	case errors.Is(err, syscall.EMFILE):
		return fmt.Errorf("cannot listen on %s: this process may open no more files: raise ulimit -n: %w", url, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot listen on %s: no interface here has that address (ip addr shows them): %w", url, err)
	}
	return fmt.Errorf("cannot listen on %s: %w", url, err)
}

// Accept waits for the next connection of ln. It tries again where the process is out of
// descriptors, or a connection died in the queue, and says so in the log once each time.
// The only error is net.ErrClosed. Any goroutine.
func Accept(ln net.Listener, log *slog.Logger) (net.Conn, error) {
	for failed := false; ; failed = true {
		nc, err := ln.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return nc, err
		}
		if !failed {
			log.Error("accept failed; trying again (ulimit -n bounds open files)", "listen", ln.Addr(), "err", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// accept runs on a goroutine of its own: connection set-up is not the data path,
// and the net package does it well.
func (t *TCP) accept(ln net.Listener, h Handler) {
	defer t.setups.Done()
	slots := make(chan struct{}, maxHandshakes)
	for {
		nc, err := Accept(ln, t.loop.log)
		if err != nil {
			return
		}
		slots <- struct{}{}
		t.setups.Add(1)
		go func() {
			defer t.setups.Done()
			defer func() { <-slots }()
			if err := t.setUp(nc, h, kernelTCP, nil); err != nil {
				t.loop.log.Warn("connection refused", "listen", ln.Addr(), "err", err)
			}
		}()
	}
}

// Dial implements Backend.
func (t *TCP) Dial(u *url.URL, h Handler, done func(*Conn, error)) {
	t.setups.Add(1)
	go func() {
		defer t.setups.Done()
		err := func() error {
			addr, err := tcpAddress(u)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(t.ctx, handshakeTimeout)
			defer cancel()
			var d net.Dialer
			nc, err := d.DialContext(ctx, "tcp", addr)
			if err != nil {
				return fmt.Errorf("cannot reach %s: %w (is the server running there?)", u, err)
			}
			return t.setUp(nc, h, kernelTCP, done)
		}()
		if err != nil && t.loop.Submit(func() { done(nil, err) }) != nil {
			t.loop.log.Debug("dial failed while the loop closed", "url", u, "err", err)
		}
	}()
}

// setUp exchanges preambles and moves the socket from the net package to the
// loop. It closes nc in every case: the loop gets a duplicate descriptor.
func (t *TCP) setUp(nc net.Conn, h Handler, what Transport, done func(*Conn, error)) error {
	defer nc.Close()
	stop := context.AfterFunc(t.ctx, func() { _ = nc.Close() })
	defer stop()
	limit, err := Handshake(nc, t.loop.opts.MaxMessageBytes)
	if err != nil {
		return err
	}
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	fd, remote := -1, nc.RemoteAddr().String()
	if cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		return fmt.Errorf("netpoll: duplicating the socket to %s: %w", remote, errors.Join(cerr, err))
	}
	err = t.loop.Submit(func() {
		c, err := t.adopt(fd, remote, limit, h, what)
		if done != nil {
			done(c, err)
		} else if err != nil {
			t.loop.log.Error("connection dropped", "remote", remote, "err", err)
		}
	})
	if err != nil {
		_ = unix.Close(fd)
	}
	return err
}

// adopt starts serving fd; the loop's goroutine.
func (t *TCP) adopt(fd int, remote string, limit int, h Handler, what Transport) (*Conn, error) {
	t.lastGen = max(1, t.lastGen+1) // after 2³¹ connections from the start
	c := &tcpConn{tcp: t, fd: fd, gen: t.lastGen, reading: true, interest: unix.EPOLLIN}
	if err := t.loop.wake.socket(unix.EPOLL_CTL_ADD, fd, c.gen, c.interest); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("netpoll: epoll_ctl add: %w", err)
	}
	for fd >= len(t.conns) {
		t.conns = append(t.conns, nil)
	}
	t.conns[fd] = c
	t.open++
	c.ep = NewEndpoint(t.loop, h, c, what, remote)
	c.ep.LimitMessage(limit)
	c.ep.Open()
	return c.ep.Conn(), nil
}

// Poll implements Poller.
func (t *TCP) Poll(budget int) int {
	if t.open == 0 {
		return 0
	}
	work := 0
	if len(t.starved) > 0 && t.loop.now >= t.retryAt {
		work += t.feedStarved()
	}
	if events, asked := t.loop.wake.ready(); asked { // the loop slept: these became ready, and no others
		return work + t.serve(events)
	}
	for i := 0; i < len(t.hot); i++ {
		c := t.hot[i]
		n := c.read()
		work += n
		if n > 0 {
			c.misses = 0
		} else if c.misses++; c.misses >= hotMisses || !c.isReading() {
			c.cool()
			i--
		}
	}
	t.polls++
	if len(t.hot) > 0 && t.polls%hotEpollEvery != 0 {
		return work
	}
	events, err := t.loop.wake.poll(budget)
	if err != nil {
		if err != unix.EINTR {
			t.loop.log.Error("epoll_wait failed", "err", err)
		}
		return work
	}
	return work + t.serve(events)
}

func (t *TCP) serve(events []unix.EpollEvent) int {
	work := 0
	for i := range events {
		ev := &events[i]
		c := t.conns[ev.Fd]
		if c == nil || c.gen != ev.Pad {
			continue // closed since
		}
		if ev.Events&unix.EPOLLOUT != 0 && !c.shut {
			work++
			c.Flush()
		}
		if ev.Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
			continue
		}
		switch {
		case c.shut:
			c.linger()
		case !c.isReading():
			// Only an error or a reset can have woken a paused connection.
			if ev.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
				work++
				c.failSocket()
			}
		default:
			got := c.read()
			work += got
			if got > 0 {
				c.heat()
			}
		}
	}
	return work
}

// Arm implements Poller. The loop's sleep begins with a look at the sockets: epoll
// is level-triggered.
func (t *TCP) Arm() (int64, bool) {
	if len(t.starved) > 0 {
		return max(1, t.retryAt), true
	}
	return 0, true
}

// Close implements Poller.
func (t *TCP) Close() error {
	if t.loop == nil {
		return nil // never attached
	}
	t.cancel()
	for _, c := range t.conns {
		if c == nil {
			continue
		}
		if !c.shut {
			c.ep.Closed(ErrLoopClosed)
		}
		if c.fd >= 0 {
			c.closeFD()
		}
	}
	if t.scratch != nil {
		t.scratch.Release()
		t.scratch = nil
	}
	// Set-up goroutines may be waiting to submit; the loop no longer runs, so give
	// their submissions an end.
	t.loop.queue.close()
	t.setups.Wait()
	return nil
}

// buffer makes sure that scratch is there and nobody else's.
func (t *TCP) buffer() (*hugepages.Buf, error) {
	if t.scratch != nil && t.scratch.Refs() == 1 {
		return t.scratch, nil
	}
	// A handler retained messages of the last read; its lease keeps that buffer.
	b, err := t.loop.pool.Get(tcpReadBytes, hugepages.Receive)
	if err != nil {
		return nil, err
	}
	if t.scratch != nil {
		t.scratch.Release()
	}
	t.scratch = b
	return b, nil
}

// feedStarved gives connections that found the pool exhausted another try.
func (t *TCP) feedStarved() int {
	waiting := t.starved
	t.starved = nil
	work := 0
	for _, c := range waiting {
		c.starved = false
		if !c.shut {
			work += c.resume()
		}
	}
	if len(t.starved) > 0 {
		t.retryAt = t.loop.now + int64(starvedRetry)
	}
	return work
}
