package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/netpoll"
)

const (
	// streamBytes may be under way on a stream, unacknowledged.
	streamBytes = 512 << 10
	// writeBytes is the most that one write of a stream takes.
	writeBytes = 64 << 10
	readBytes  = 256 << 10
	// silence after which a server is given up.
	silence = 5 * time.Second
	// yieldEvery is how many empty polls pass between two looks at the scheduler,
	// so that the process hears its parent.
	yieldEvery = 1 << 14
)

// load is the client: one thread that spins over all its connections.
type load struct {
	spec   role.Spec
	epoll  int
	conns  []*loadConn
	byFD   map[int32]*loadConn
	begin  time.Time // of the measurement
	end    time.Time
	now    time.Time
	done   int64 // messages answered, or acknowledged, in the measurement
	rt     *measure.Histogram
	frames []byte // messages with headers, one after the other
	read   []byte
	want   []byte // one answer
}

type loadConn struct {
	file   *os.File // keeps fd open
	fd     uintptr
	left   []byte      // of a write that took only a part
	part   []byte      // of an answer that came in part
	sent   []time.Time // when each message under way was sent; a ring
	first  int         // oldest of sent
	flying int         // messages under way
	owed   int         // messages to send when left is gone
}

// client measures until the time is over.
func client(ctx context.Context, spec role.Spec, c *role.Control) error {
	l := &load{spec: spec, byFD: map[int32]*loadConn{}, rt: measure.NewHistogram(), read: make([]byte, readBytes)}
	per := max(1, writeBytes/(headerBytes+spec.Size), spec.Window)
	for range per {
		l.frames = binary.BigEndian.AppendUint32(l.frames, uint32(spec.Size))
		for i := range spec.Size {
			l.frames = append(l.frames, byte(i))
		}
	}
	l.want = l.frames[:headerBytes+spec.Size]
	if spec.Window == 0 {
		l.want = append(binary.BigEndian.AppendUint32(nil, ackBytes), l.frames[headerBytes:][:ackBytes]...)
	}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(l.epoll)
	for range spec.Connections {
		lc, err := l.dial(ctx)
		if err != nil {
			return err
		}
		defer lc.file.Close()
	}
	c.Emit(role.Event{Kind: role.Ready})
	if err := c.Expect(ctx, role.Start); err != nil {
		return err
	}
	if err := l.run(ctx, func() { c.Emit(role.Event{Kind: role.Measuring}) }); err != nil {
		return err
	}
	c.Emit(role.Event{Kind: role.Measured, Result: &role.Result{
		Messages: l.done, Bytes: l.done * int64(spec.Size), Elapsed: l.now.Sub(l.begin), RT: l.rt.Quantiles(),
	}})
	return c.Expect(ctx, role.Stop)
}

func (l *load) dial(ctx context.Context) (*loadConn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", l.spec.URL)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	if _, err := netpoll.Handshake(nc, netpoll.DefaultMaxMessageBytes); err != nil {
		return nil, err
	}
	f, err := nc.(*net.TCPConn).File()
	if err != nil {
		return nil, err
	}
	lc := &loadConn{file: f, fd: f.Fd(), sent: make([]time.Time, max(1, l.spec.Window))} // Fd makes it blocking
	if err := unix.SetNonblock(int(lc.fd), true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), f.Close())
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, int(lc.fd), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(lc.fd)}); err != nil {
		return nil, errors.Join(os.NewSyscallError("epoll_ctl", err), f.Close())
	}
	l.conns = append(l.conns, lc)
	l.byFD[int32(lc.fd)] = lc
	return lc, nil
}

func (l *load) run(ctx context.Context, measuring func()) error {
	l.now = time.Now()
	l.begin = l.now.Add(l.spec.Warmup)
	l.end = l.begin.Add(l.spec.Duration)
	window := l.spec.Window
	if window == 0 {
		window = max(ackEvery(l.spec.Size), streamBytes/l.spec.Size)
	}
	for _, c := range l.conns {
		c.owed = window
		if err := l.send(c); err != nil {
			return err
		}
	}
	told, heard := false, l.now
	events := make([]unix.EpollEvent, 64)
	for polls := 1; ; polls++ {
		n := 0
		if len(l.conns) > 1 {
			r, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
			if errno != 0 && errno != unix.EINTR {
				return os.NewSyscallError("epoll_pwait", errno)
			} else if errno == 0 {
				n = int(r)
			}
		} else { // reading is the cheapest way to ask one connection
			n, events[0].Fd = 1, int32(l.conns[0].fd)
		}
		l.now = time.Now()
		work := false
		for _, e := range events[:n] {
			got, err := l.receive(l.byFD[e.Fd])
			if err != nil {
				return err
			}
			work = work || got
		}
		for _, c := range l.conns {
			if c.owed > 0 || len(c.left) > 0 {
				if err := l.send(c); err != nil {
					return err
				}
			}
		}
		switch {
		case work:
			heard = l.now
		case l.now.Sub(heard) > silence:
			return fmt.Errorf("the server has said nothing for %v", silence)
		}
		if !told && l.now.After(l.begin) {
			told, l.begin, l.end = true, l.now, l.now.Add(l.spec.Duration)
			measuring()
		} else if told && l.now.After(l.end) && l.done > 0 {
			return nil
		}
		if polls%yieldEvery == 0 {
			runtime.Gosched()
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
}

// send writes what c owes, as far as the socket takes it.
func (l *load) send(c *loadConn) error {
	size := headerBytes + l.spec.Size
	for {
		if len(c.left) == 0 {
			n := min(c.owed, len(l.frames)/size)
			if n == 0 {
				return nil
			}
			c.owed -= n
			c.left = l.frames[:n*size]
			if l.spec.Window > 0 {
				now := time.Now()
				for range n {
					c.sent[(c.first+c.flying)%len(c.sent)] = now
					c.flying++
				}
			}
		}
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, c.fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.left))), uintptr(len(c.left)))
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			return nil
		case errno != 0:
			return os.NewSyscallError("write", errno)
		}
		c.left = c.left[n:]
	}
}

// receive takes what one read finds.
func (l *load) receive(c *loadConn) (bool, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, c.fd, uintptr(unsafe.Pointer(unsafe.SliceData(l.read))), uintptr(len(l.read)))
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return false, nil
	case errno != 0:
		return false, os.NewSyscallError("read", errno)
	case n == 0:
		return false, errors.New("the server closed a connection")
	}
	data := l.read[:n]
	for len(data) > 0 {
		k := min(len(data), len(l.want)-len(c.part))
		if !bytes.Equal(data[:k], l.want[len(c.part):][:k]) {
			return false, errors.New("the answer differs from what was sent")
		}
		c.part = l.want[:len(c.part)+k]
		data = data[k:]
		if len(c.part) == len(l.want) {
			c.part = nil
			l.answered(c)
		}
	}
	return true, nil
}

func (l *load) answered(c *loadConn) {
	messages := 1
	if l.spec.Window == 0 {
		messages = ackEvery(l.spec.Size)
	} else {
		began := c.sent[c.first]
		c.first = (c.first + 1) % len(c.sent)
		c.flying--
		if began.After(l.begin) {
			l.rt.Record(time.Since(began))
		}
	}
	c.owed += messages
	if l.now.After(l.begin) {
		l.done += int64(messages)
	}
}
