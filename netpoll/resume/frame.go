package resume

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/netpoll"
)

const (
	version     = 1
	headerBytes = 20
	idBytes     = 16
	maxReason   = 256

	flagResumed = 1 << 0
)

type kind uint8

const (
	kindHello kind = 1 + iota
	kindWelcome
	kindData
	kindAck
	kindBye
	kindRefusal
)

type header struct {
	kind     kind
	flags    uint16
	seq, ack uint64
}

func (h *header) put(b []byte) {
	b[0], b[1] = byte(h.kind), version
	binary.BigEndian.PutUint16(b[2:], h.flags)
	binary.BigEndian.PutUint64(b[4:], h.seq)
	binary.BigEndian.PutUint64(b[12:], h.ack)
}

// parse takes the header off m, whose Data is the payload then.
func parse(m *netpoll.Message) (h header, err error) {
	b := m.Data
	if len(b) < headerBytes {
		return h, fmt.Errorf("%w: resume: %d bytes where a header has %d", netpoll.ErrProtocol, len(b), headerBytes)
	}
	h = header{kind(b[0]), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint64(b[12:])}
	switch {
	case b[1] != version:
		return h, fmt.Errorf("%w: resume: the peer speaks version %d, this end %d: run the same millrace release on both ends", netpoll.ErrProtocol, b[1], version)
	case h.kind < kindHello || h.kind > kindRefusal || h.flags&^flagResumed != 0 || h.flags != 0 && h.kind != kindHello || h.seq == 0 || h.ack == 0:
		return h, fmt.Errorf("%w: resume: bad header % x", netpoll.ErrProtocol, b[:headerBytes])
	}
	m.Data = b[headerBytes:]
	bytes := m.Len()
	switch {
	case h.kind == kindHello && bytes == idBytes && len(m.Data) == idBytes, h.kind == kindData:
	case h.kind == kindRefusal && bytes == len(m.Data) && bytes <= maxReason:
	case bytes == 0 && h.kind != kindHello:
	default:
		return h, fmt.Errorf("%w: resume: %d bytes behind the header of kind %d", netpoll.ErrProtocol, bytes, h.kind)
	}
	return h, nil
}

var (
	// ErrLost ends a session that the peer does not know: its process was started
	// anew, or gave the session up. What was not acknowledged may have arrived.
	ErrLost = errors.New("resume: the peer does not know the session any more: it restarted, or waited too long")
	// ErrExpired ends a session that was without a connection for Options.Patience.
	ErrExpired = errors.New("resume: no connection for too long")
)
