package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version of the protocol. Both sides send it in their Hello and must agree.
const Version = 1

// Sizes and limits.
const (
	// HeaderBytes begin every frame: kind u8, a u8, b u16, correlation u32, where a
	// and b depend on the kind.
	HeaderBytes = 8
	helloBytes  = HeaderBytes + 12
	// MaxTopicBytes is the longest topic name.
	MaxTopicBytes = 200
	ackBytes      = 12
	// MaxAcks is how many acknowledgements one ProduceAck frame takes.
	MaxAcks        = 1<<16 - 1
	errorBytes     = HeaderBytes + 16
	maxErrorText   = 1024
	fetchBytes     = HeaderBytes + 16
	responseBytes  = HeaderBytes + 8
	topicInfoBytes = 17
	// MaxTopicInfos is how many topics one MetadataResponse takes.
	MaxTopicInfos = 1<<16 - 1

	helloMagic = "MLRB"
)

// Kind says what a frame is.
type Kind uint8

// Both sides send Hello; ProduceAck, Error and the responses are answers.
const (
	KindHello            Kind = 1
	KindProduce          Kind = 2
	KindProduceAck       Kind = 3
	KindError            Kind = 4
	KindFetch            Kind = 5
	KindFetchResponse    Kind = 6
	KindMetadata         Kind = 7
	KindMetadataResponse Kind = 8
)

func (k Kind) String() string {
	names := [...]string{"", "Hello", "Produce", "ProduceAck", "Error", "Fetch", "FetchResponse", "Metadata", "MetadataResponse"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return names[k]
}

// Role says what speaks.
type Role uint8

const (
	RoleClient Role = 1
	RoleProxy  Role = 2
	RoleBroker Role = 3
)

func (r Role) String() string {
	switch r {
	case RoleClient:
		return "client"
	case RoleProxy:
		return "proxy"
	case RoleBroker:
		return "broker"
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// ErrFrame is wrapped by every error of a parser.
var ErrFrame = errors.New("wire: bad frame")

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrFrame}, args...)...)
}

// Header is the begin of every frame.
type Header struct {
	Kind        Kind
	Correlation uint32 // chosen by the requester, repeated by the answer
}

// ParseHeader reads the begin of a frame.
func ParseHeader(p []byte) (Header, error) {
	if len(p) < HeaderBytes {
		return Header{}, bad("%d bytes; every frame has at least %d", len(p), HeaderBytes)
	}
	h := Header{Kind(p[0]), binary.LittleEndian.Uint32(p[4:])}
	if h.Kind < KindHello || h.Kind > KindMetadataResponse {
		return h, bad("unknown kind %d", p[0])
	}
	return h, nil
}

// SetCorrelation replaces the correlation of the frame in p, which a proxy does
// when it passes one on.
func SetCorrelation(p []byte, correlation uint32) { binary.LittleEndian.PutUint32(p[4:], correlation) }

func appendHeader(dst []byte, k Kind, a uint8, b uint16, correlation uint32) []byte {
	dst = append(dst, byte(k), a)
	dst = binary.LittleEndian.AppendUint16(dst, b)
	return binary.LittleEndian.AppendUint32(dst, correlation)
}

// expect checks kind and least length.
func expect(p []byte, k Kind, least int) error {
	switch {
	case len(p) < HeaderBytes || Kind(p[0]) != k:
		return bad("no %v", k)
	case len(p) < least:
		return bad("a %v of %d bytes, it has at least %d", k, len(p), least)
	}
	return nil
}

// topicOf returns the topic name of n bytes at the start of p.
func topicOf(p []byte, n int, optional bool) (topic, rest []byte, err error) {
	if n > MaxTopicBytes || n == 0 && !optional {
		return nil, nil, bad("a topic name of %d bytes; it has 1 to %d", n, MaxTopicBytes)
	}
	if n > len(p) {
		return nil, nil, bad("the topic name has %d bytes, the frame %d more", n, len(p))
	}
	return p[:n:n], p[n:], nil
}
