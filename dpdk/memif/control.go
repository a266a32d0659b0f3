package memif

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrProtocol is wrapped where a peer breaks the memif protocol.
	ErrProtocol = errors.New("memif: protocol error")
	// ErrRefused is wrapped where a peer refuses the connection; the text has its
	// reason.
	ErrRefused = errors.New("memif: refused by the peer")
)

// Config describes one end of a port. Both ends of a connection must name the
// same ID and secret; ring and buffer sizes are the client's to choose.
type Config struct {
	Name   string // shown to the peer, at most 31 bytes
	ID     uint32 // interface id on the socket
	Secret string // at most 23 bytes; empty: none
	// RingLog2 is the binary logarithm of the slots of each ring; default 8. Small
	// rings keep the buffers in the CPU's cache: 2 × 256 × 4352 B = 2.2 MB.
	RingLog2 uint8
	// BufferBytes is the room of one frame; default 4352: a RoCE packet with the
	// largest path MTU, 4096, and all its headers, in whole cache lines.
	BufferBytes int
}

const (
	defaultRingLog2    = 8
	defaultBufferBytes = 4352
	maxRingLog2        = 14
	minBufferBytes     = 64
	maxBufferBytes     = 64 << 10
	// handshakeTimeout bounds the set-up where ctx does not end it earlier.
	handshakeTimeout = 5 * time.Second
)

func (c *Config) check() error {
	if c.RingLog2 == 0 {
		c.RingLog2 = defaultRingLog2
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = defaultBufferBytes
	}
	switch {
	case c.RingLog2 > maxRingLog2:
		return fmt.Errorf("memif: ring of 2^%d slots: the protocol's limit is 2^%d", c.RingLog2, maxRingLog2)
	case c.BufferBytes < minBufferBytes || c.BufferBytes > maxBufferBytes:
		return fmt.Errorf("memif: buffers of %d bytes: want %d to %d", c.BufferBytes, minBufferBytes, maxBufferBytes)
	case len(c.Name) >= nameBytes:
		return fmt.Errorf("memif: name %q is longer than %d bytes", c.Name, nameBytes-1)
	case len(c.Secret) >= secretBytes:
		return fmt.Errorf("memif: secret longer than %d bytes", secretBytes-1)
	}
	return nil
}

// control is the socket over which a port is set up and which tells, by its end,
// that the peer is gone.
type control struct{ c *net.UnixConn }

func (k control) send(m *message, fd int) error {
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	if _, _, err := k.c.WriteMsgUnix(m[:], oob, nil); err != nil {
		return fmt.Errorf("memif: sending %s: %w", kindName(m.kind()), err)
	}
	return nil
}

// recv receives one message; fd is -1 if none came with it, else the caller's.
func (k control) recv() (m *message, fd int, err error) {
	m, fd = new(message), -1
	oob := make([]byte, unix.CmsgSpace(4)*4)
	n, on, flags, _, err := k.c.ReadMsgUnix(m[:], oob)
	fds := rights(oob[:max(0, on)])
	for i, f := range fds {
		if i == 0 && err == nil && n == messageBytes {
			fd = f
		} else {
			_ = unix.Close(f)
		}
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, -1, fmt.Errorf("memif: the peer did not answer within the time limit: %w", err)
	case err != nil:
		return nil, -1, fmt.Errorf("memif: the peer closed the control socket: %w", err)
	case n == 0:
		return nil, -1, fmt.Errorf("memif: the peer closed the control socket")
	case n != messageBytes || flags&unix.MSG_TRUNC != 0:
		return nil, -1, fmt.Errorf("%w: control message of %d bytes, want %d", ErrProtocol, n, messageBytes)
	}
	return m, fd, nil
}

func rights(oob []byte) (fds []int) {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range cmsgs {
		if got, err := unix.ParseUnixRights(&cmsgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds
}

// expect receives a message of kind that carries no descriptor.
func (k control) expect(kind uint16) (*message, error) {
	m, fd, err := k.recv()
	if err != nil {
		return nil, err
	}
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	if m.kind() == typeDisconnect {
		return nil, fmt.Errorf("%w: %s", ErrRefused, disconnectReason(m))
	}
	if m.kind() != kind {
		return nil, fmt.Errorf("%w: got %s, want %s", ErrProtocol, kindName(m.kind()), kindName(kind))
	}
	return m, nil
}

// call sends m and waits for its ACK.
func (k control) call(m *message, fd int) error {
	if err := k.send(m, fd); err != nil {
		return err
	}
	_, err := k.expect(typeAck)
	return err
}

// guard bounds a handshake by ctx and handshakeTimeout; end undoes it.
func (k control) guard(ctx context.Context) (end func()) {
	_ = k.c.SetDeadline(time.Now().Add(handshakeTimeout))
	stop := context.AfterFunc(ctx, func() { _ = k.c.SetDeadline(time.Unix(1, 0)) })
	return func() {
		stop()
		_ = k.c.SetDeadline(time.Time{})
	}
}
