package bootstrap

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/millrace/millrace/netpoll"
)

const (
	magic       = "MLRB"
	version     = 2
	headerBytes = 10
	// maxBody bounds what a peer can make this side hold before it is known.
	maxBody = 4096

	// flagFallback, in a Hello or Offer: this side would stay on TCP.
	flagFallback = 1 << 0
)

// VersionError is a frame of another version.
type VersionError struct {
	Version  int
	Fallback bool // a Hello or Offer of a side that would stay on TCP
}

// Error names both versions.
func (e *VersionError) Error() string {
	return fmt.Sprintf("the peer speaks bootstrap version %d, this side %d: run the same millrace release on both ends", e.Version, version)
}

// Unwrap makes it a netpoll.ErrProtocol.
func (*VersionError) Unwrap() error { return netpoll.ErrProtocol }

type kind uint8

const (
	kindHello kind = 1 + iota
	kindOffer
	kindAccept
	kindReady
	kindStale
	kindRefusal
	kindBye
	kindVerified
	kindFallback
	kindBeat
)

func (k kind) String() string {
	names := [...]string{"none", "hello", "offer", "accept", "ready", "stale", "refusal", "bye", "verified", "fallback", "beat"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Message is one frame's content: *Hello, *Offer, *Accept, *Ready, *Verified,
// *Stale, *Fallback, *Refusal, *Beat or *Bye.
type Message interface {
	kind() kind
	validate() error
}

func newMessage(k kind) Message {
	switch k {
	case kindHello:
		return new(Hello)
	case kindOffer:
		return new(Offer)
	case kindAccept:
		return new(Accept)
	case kindReady:
		return new(Ready)
	case kindStale:
		return new(Stale)
	case kindRefusal:
		return new(Refusal)
	case kindBye:
		return new(Bye)
	case kindVerified:
		return new(Verified)
	case kindFallback:
		return new(Fallback)
	case kindBeat:
		return new(Beat)
	}
	return nil
}

// Append appends m as a frame to b. It fails if m breaks the bounds that the
// peer would check.
func Append(b []byte, m Message) ([]byte, error) {
	if err := m.validate(); err != nil {
		return b, fmt.Errorf("rdma: bootstrap %v: %w", m.kind(), err)
	}
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false) // '<' is one byte, as maxBody counts it
	if err := e.Encode(m); err != nil {
		return b, fmt.Errorf("rdma: bootstrap %v: %w", m.kind(), err)
	}
	body := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if len(body) > maxBody {
		return b, fmt.Errorf("rdma: bootstrap %v of %d bytes, limit %d: shorten the link parameters", m.kind(), len(body), maxBody)
	}
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	flags := byte(0)
	if f := fallbackOf(m); f != nil && *f {
		flags = flagFallback
	}
	b = append(b, byte(m.kind()), flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...), nil
}

// fallbackOf is the field of m that travels in the header; nil if it has none.
func fallbackOf(m Message) *bool {
	switch m := m.(type) {
	case *Hello:
		return &m.Fallback
	case *Offer:
		return &m.Fallback
	}
	return nil
}

// Read reads one frame from r, and nothing beyond it. Errors wrap
// netpoll.ErrProtocol where the peer is to blame, io.EOF at the end between
// frames.
func Read(r io.Reader) (Message, error) {
	var h [headerBytes]byte
	// What is foreign may be shorter than a header.
	n, err := io.ReadAtLeast(r, h[:], len(magic))
	if n >= 1 && string(h[:min(n, 4)]) != magic[:min(n, 4)] {
		return nil, foreign(h[:n])
	}
	if err == nil && n < len(h) {
		var more int
		more, err = io.ReadFull(r, h[n:])
		n += more
	}
	if err != nil {
		return nil, short(err, n)
	}
	k, length := kind(h[6]), int(binary.BigEndian.Uint16(h[8:]))
	m := newMessage(k)
	v := int(binary.BigEndian.Uint16(h[4:]))
	// These two are the same in all versions.
	same := v == version || k == kindRefusal || k == kindFallback
	var fallback *bool
	if m != nil {
		fallback = fallbackOf(m)
	}
	switch {
	case length > maxBody || same && h[7]&^flagFallback != 0 || same && h[7] != 0 && m != nil && fallback == nil:
		return nil, fmt.Errorf("%w: bootstrap %v with a bad header (version %d, flags %#x, %d bytes, limit %d)", netpoll.ErrProtocol, k, v, h[7], length, maxBody)
	case same && m == nil:
		return nil, fmt.Errorf("%w: unknown bootstrap frame %d", netpoll.ErrProtocol, h[6])
	}
	body := make([]byte, length)
	if n, err := io.ReadFull(r, body); err != nil {
		return nil, short(err, headerBytes+n)
	}
	if !same {
		return nil, &VersionError{Version: v, Fallback: fallback != nil && h[7]&flagFallback != 0}
	}
	if err := decode(body, m, v == version); err != nil {
		return nil, fmt.Errorf("%w: bootstrap %v: %w", netpoll.ErrProtocol, m.kind(), err)
	}
	if fallback != nil {
		*fallback = h[7]&flagFallback != 0
	}
	return m, nil
}

// decode is strict with peers of this version: what is unknown is a mistake.
func decode(body []byte, m Message, strict bool) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(m); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(body)) {
		return errors.New("bytes after the JSON object")
	}
	return m.validate()
}

// foreign names the protocol of a peer that does not speak this one.
func foreign(got []byte) error {
	what := "another protocol"
	if bytes.HasPrefix(got, []byte("MLRC")) {
		what = "millrace tcp://"
	}
	return fmt.Errorf("%w: the peer speaks %s (it began with %q); this is the bootstrap of an RDMA or DPDK address: use the same URL scheme on both ends",
		netpoll.ErrProtocol, what, got)
}

// short explains a frame that did not come, or not wholly.
func short(err error, got int) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: the peer sent %d bytes of a bootstrap frame within %v: it is not a millrace peer, or overloaded", netpoll.ErrProtocol, got, StepTimeout)
	case errors.Is(err, io.EOF) && got == 0:
		return io.EOF
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: the peer closed in the middle of a bootstrap frame", netpoll.ErrProtocol)
	}
	return err
}
