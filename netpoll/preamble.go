package netpoll

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// TCP wire format. Each side first sends a preamble of 12 bytes:
//
//	0  "MLRC"
//	4  version, 16 bits, big-endian: 1
//	6  flags, 16 bits: 0
//	8  the largest message that this side accepts, 32 bits, big-endian
//
// then messages, each a 32-bit big-endian length and that many bytes.
const (
	preambleMagic   = "MLRC"
	preambleVersion = 1
	preambleBytes   = 12
	frameHeader     = 4

	// handshakeTimeout bounds connecting and the exchange of preambles.
	handshakeTimeout = 5 * time.Second
)

// Handshake exchanges preambles on c within five seconds and returns the largest
// message that both sides accept. It reads nothing beyond the peer's preamble,
// so that c can then be used with any kind of I/O.
func Handshake(c net.Conn, maxMessageBytes int) (int, error) {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return 0, err
	}
	var own, peer [preambleBytes]byte
	copy(own[:], preambleMagic)
	binary.BigEndian.PutUint16(own[4:], preambleVersion)
	binary.BigEndian.PutUint32(own[8:], uint32(maxMessageBytes))
	if _, err := c.Write(own[:]); err != nil {
		return 0, fmt.Errorf("netpoll: sending the preamble to %s: %w", c.RemoteAddr(), err)
	}
	if n, err := io.ReadFull(c, peer[:]); err != nil {
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("%w: %s sent %d of %d preamble bytes within %v: it is not a millrace tcp:// peer, or overloaded",
				ErrProtocol, c.RemoteAddr(), n, preambleBytes, handshakeTimeout)
		case n > 0 && string(peer[:min(n, 4)]) != preambleMagic[:min(n, 4)]:
			return 0, foreign(c, peer[:n])
		}
		return 0, fmt.Errorf("%w: %s closed during the preamble: it is not a millrace tcp:// peer, or refused this one", ErrProtocol, c.RemoteAddr())
	}
	if string(peer[:4]) != preambleMagic {
		return 0, foreign(c, peer[:])
	}
	if v := binary.BigEndian.Uint16(peer[4:]); v != preambleVersion {
		return 0, fmt.Errorf("%w: %s speaks version %d, this side %d: run the same millrace release on both ends", ErrProtocol, c.RemoteAddr(), v, preambleVersion)
	}
	if f := binary.BigEndian.Uint16(peer[6:]); f != 0 {
		return 0, fmt.Errorf("%w: %s asks for unknown features %#x: run the same millrace release on both ends", ErrProtocol, c.RemoteAddr(), f)
	}
	limit := int(binary.BigEndian.Uint32(peer[8:]))
	if limit == 0 {
		return 0, fmt.Errorf("%w: %s accepts messages of 0 bytes", ErrProtocol, c.RemoteAddr())
	}
	return min(limit, maxMessageBytes), c.SetDeadline(time.Time{})
}

func foreign(c net.Conn, got []byte) error {
	return fmt.Errorf("%w: %s speaks another protocol (it began with %q): this is a millrace tcp:// address", ErrProtocol, c.RemoteAddr(), got)
}
