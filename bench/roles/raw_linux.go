package roles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
)

// The floor of a transport: one socket, raw non-blocking system calls, spinning.

// rawSocket is a connected, non-blocking socket. One goroutine.
type rawSocket struct {
	file *os.File // keeps fd open
	fd   uintptr
	// stream: a read may give less than a message.
	stream bool
	// patience is how long one read or write may take; 0: without end.
	patience time.Duration
	stop     atomic.Bool
}

type rawKind struct {
	scheme  string // of URLs
	network string // of package net
	device  string // as reported
	label   string
	// maxBytes is the largest message: on UDP it has to fit one datagram.
	maxBytes int
}

var (
	rawTCP = rawKind{"tcp", "tcp", "epoll", "kernel", messages.MaxMessageBytes}
	rawUDP = rawKind{"rdma", "udp", "softroce+udp", "user-space", 65507}
)

// spinYield is how many empty reads pass between two looks at the scheduler, so
// that the process still hears its parent.
const spinYield = 1 << 14

// wait is called while the socket is not ready, since began.
func (s *rawSocket) wait(spins int, began *time.Time) error {
	if spins%spinYield != 0 {
		return nil
	}
	runtime.Gosched()
	if s.stop.Load() {
		return io.EOF
	}
	if began.IsZero() {
		*began = time.Now()
	} else if s.patience > 0 && time.Since(*began) > s.patience {
		return fmt.Errorf("no answer within %v", s.patience)
	}
	return nil
}

func (s *rawSocket) read(p []byte) (int, error) {
	var began time.Time
	for spins := 1; ; spins++ {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, s.fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			if err := s.wait(spins, &began); err != nil {
				return 0, err
			}
		case errno == unix.ECONNREFUSED && !s.stream: // the other end's socket closed
			return 0, io.EOF
		case errno != 0:
			return 0, os.NewSyscallError("read", errno)
		case n == 0 && s.stream:
			return 0, io.EOF
		default:
			return int(n), nil
		}
	}
}

func (s *rawSocket) write(p []byte) error {
	var began time.Time
	for spins := 1; ; spins++ {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, s.fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			if err := s.wait(spins, &began); err != nil {
				return err
			}
		case errno != 0:
			return os.NewSyscallError("write", errno)
		case int(n) == len(p):
			return nil
		default:
			p = p[n:]
		}
	}
}

// readMessage reads exactly len(p) bytes of a stream, or one datagram.
func (s *rawSocket) readMessage(p []byte) (int, error) {
	n, err := s.read(p)
	for err == nil && s.stream && n < len(p) {
		var more int
		more, err = s.read(p[n:])
		n += more
	}
	return n, err
}

// takeOver moves a connected socket from package net to raw use.
func takeOver(c interface{ File() (*os.File, error) }, stream bool) (*rawSocket, error) {
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	s := &rawSocket{file: f, fd: f.Fd(), stream: stream} // Fd makes it blocking
	if err := unix.SetNonblock(int(s.fd), true); err != nil {
		return nil, err
	}
	return s, nil
}

// address takes the host and port out of a URL.
func (k rawKind) address(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", err
	}
	return u.Host, nil
}

// rawEcho sends back what arrives on the first connection.
func rawEcho(k rawKind) role.Func {
	return func(ctx context.Context, spec role.Spec, c *role.Control) error {
		addr, err := k.address(spec.URL)
		if err != nil {
			return err
		}
		var local string
		var accept func() (*rawSocket, error)
		var abort func() error
		if k.network == "tcp" {
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			local, abort = ln.Addr().String(), ln.Close
			accept = func() (*rawSocket, error) {
				nc, err := ln.Accept()
				if err != nil {
					return nil, err
				}
				defer nc.Close()
				return takeOver(nc.(*net.TCPConn), true)
			}
		} else {
			pc, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			local, abort = pc.LocalAddr().String(), pc.Close
			accept = func() (*rawSocket, error) { return acceptUDP(pc.(*net.UDPConn)) }
		}
		defer func() { _ = abort() }()
		var socket atomic.Pointer[rawSocket]
		fail := make(chan error, 1)
		go func() {
			s, err := accept()
			if err != nil {
				return
			}
			socket.Store(s)
			if err := echoRaw(s); err != nil && !errors.Is(err, io.EOF) {
				fail <- err
			}
		}()
		c.Emit(role.Event{Kind: role.Ready, URL: k.scheme + "://" + local})
		return c.ServeUntilStop(ctx, nil, fail, func() role.Event {
			if s := socket.Load(); s != nil {
				s.stop.Store(true)
			}
			return role.Event{}
		})
	}
}

// hello is the datagram with which a UDP client announces itself.
const hello = "millrace bench"

func acceptUDP(pc *net.UDPConn) (*rawSocket, error) {
	buf := make([]byte, 64)
	n, from, err := pc.ReadFromUDPAddrPort(buf)
	if err != nil {
		return nil, err
	}
	if string(buf[:n]) != hello {
		return nil, fmt.Errorf("unexpected datagram from %s", from)
	}
	s, err := takeOver(pc, false)
	if err != nil {
		return nil, err
	}
	ap := from.Addr().Unmap()
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(from.Port())}
	if ap.Is4() {
		sa.(*unix.SockaddrInet4).Addr = ap.As4()
	} else {
		sa = &unix.SockaddrInet6{Port: int(from.Port()), Addr: ap.As16()}
	}
	if err := unix.Connect(int(s.fd), sa); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return s, s.write([]byte(hello))
}

func echoRaw(s *rawSocket) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := s.read(buf)
		if err != nil {
			return err
		}
		if err := s.write(buf[:n]); err != nil {
			return err
		}
	}
}

// rawPing measures round trips to rawEcho.
func rawPing(k rawKind) role.Func {
	return func(ctx context.Context, spec role.Spec, c *role.Control) error {
		ms, err := messages.Load(spec.Input, spec.Size)
		if err != nil {
			return err
		}
		// A floor without framing: empty messages have no round trip, and what no
		// datagram holds has none here.
		ms = filter(ms, func(m []byte) bool { return len(m) > 0 && len(m) <= k.maxBytes })
		if len(ms) == 0 {
			return noneFits(strings.ToUpper(k.network)+" write", k.maxBytes)
		}
		addr, err := k.address(spec.URL)
		if err != nil {
			return err
		}
		var d net.Dialer
		nc, err := d.DialContext(ctx, k.network, addr)
		if err != nil {
			return err
		}
		defer nc.Close()
		s, err := takeOver(nc.(interface{ File() (*os.File, error) }), k.network == "tcp")
		if err != nil {
			return err
		}
		defer s.file.Close()
		s.patience = answerTimeout
		stop := context.AfterFunc(ctx, func() { s.stop.Store(true) })
		defer stop()
		largest := len(hello)
		for _, m := range ms {
			largest = max(largest, len(m))
		}
		buf := make([]byte, largest)
		if k.network == "udp" {
			if err := s.write([]byte(hello)); err != nil {
				return err
			}
			if n, err := s.readMessage(buf); err != nil || string(buf[:n]) != hello {
				return fmt.Errorf("no answer from %s: %w", addr, err)
			}
		}
		c.Emit(role.Event{Kind: role.Ready, Device: k.device, Label: k.label})
		w, err := open(ctx, spec, c)
		if err != nil {
			return err
		}
		t, watch := newTally(), newStopwatch()
		for i := 0; ; i++ {
			m := ms[i%len(ms)]
			began := watch.now()
			if w.over(began) {
				break
			}
			if err := s.write(m); err != nil {
				return err
			}
			n, err := s.readMessage(buf[:len(m)])
			if err != nil {
				return err
			}
			took := watch.now().Sub(began)
			if !bytes.Equal(buf[:n], m) {
				return errEcho
			}
			if w.counts(began) {
				t.add(took, n)
			}
		}
		return finish(ctx, c, w, nil, t.result(w), func() {})
	}
}

// noneFits skips a floor that has no framing of its own.
func noneFits(carrier string, most int) error {
	return &role.Unavailable{
		Reason: fmt.Sprintf("no message has between 1 and %d bytes, which one %s carries", most, carrier),
		Fix:    "the floor needs smaller messages (--size); the rows of layer message have no such limit",
	}
}

func filter(ms [][]byte, keep func([]byte) bool) [][]byte {
	var out [][]byte
	for _, m := range ms {
		if keep(m) {
			out = append(out, m)
		}
	}
	return out
}
