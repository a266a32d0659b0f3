package wire

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Code says why a request was refused. A Code is an error, so that errors.Is
// finds it in what a client returns.
type Code uint16

// Codes are part of the protocol: they are only ever added to.
const (
	// UnsupportedVersion: the peers' protocol versions differ.
	UnsupportedVersion Code = 1
	// BadRequest: the frame could not be parsed or was not expected.
	BadRequest Code = 2
	// UnknownTopic: nothing was ever produced to the topic.
	UnknownTopic Code = 3
	// InvalidTopic: the name breaks the rules for topic names.
	InvalidTopic Code = 4
	// OffsetOutOfRange: a fetch before the earliest or after the latest offset;
	// Error.A and Error.B are these two.
	OffsetOutOfRange Code = 5
	// CorruptBatch: a produced batch is damaged or none.
	CorruptBatch Code = 6
	// TooLarge: the batch is larger than the broker takes; Error.A is the limit.
	TooLarge Code = 7
	// TooManyTopics: the broker's limit of topics is reached.
	TooManyTopics Code = 8
	// TooManyRequests: a bound on waiting requests is reached; Error.A is the limit.
	TooManyRequests Code = 9
	// StorageFull: no room on the broker's disk.
	StorageFull Code = 10
	// StorageFailed: an I/O error; for a Produce the outcome is unknown.
	StorageFailed Code = 11
	// ShuttingDown: the broker or proxy is going away; the request was not carried out.
	ShuttingDown Code = 12
	// BrokerUnreachable: the proxy has no link to the broker; the request was not sent.
	BrokerUnreachable Code = 13
	// OutcomeUnknown: the link broke after the request was sent and before it was
	// answered.
	OutcomeUnknown Code = 14
)

var codeTexts = [...]string{
	UnsupportedVersion: "unsupported protocol version",
	BadRequest:         "bad request",
	UnknownTopic:       "unknown topic",
	InvalidTopic:       "invalid topic name",
	OffsetOutOfRange:   "offset out of range",
	CorruptBatch:       "corrupt batch",
	TooLarge:           "batch too large",
	TooManyTopics:      "too many topics",
	TooManyRequests:    "too many waiting requests",
	StorageFull:        "storage full",
	StorageFailed:      "storage failed",
	ShuttingDown:       "shutting down",
	BrokerUnreachable:  "broker unreachable",
	OutcomeUnknown:     "outcome unknown",
}

func (c Code) Error() string {
	if int(c) < len(codeTexts) && codeTexts[c] != "" {
		return codeTexts[c]
	}
	return fmt.Sprintf("error code %d", uint16(c))
}

// MaybeStored tells whether a refused Produce may have been stored all the same,
// so that sending it again may store it twice.
func (c Code) MaybeStored() bool { return c == OutcomeUnknown || c == StorageFailed }

// Error is the answer to a request that was refused. errors.Is(err, code) holds
// for its Code.
type Error struct {
	Correlation uint32
	Code        Code
	A, B        uint64 // depend on the code
	Text        string // what, why and how to mend
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Code.Error()
	}
	return e.Code.Error() + ": " + e.Text
}

// Unwrap is the code.
func (e *Error) Unwrap() error { return e.Code }

// ErrorBytes is the size that e has as a frame.
func ErrorBytes(e *Error) int { return errorBytes + len(clip(e.Text)) }

// AppendError appends e, its text cut to 1024 bytes.
func AppendError(dst []byte, e *Error) []byte {
	dst = appendHeader(dst, KindError, 0, uint16(e.Code), e.Correlation)
	dst = binary.LittleEndian.AppendUint64(dst, e.A)
	dst = binary.LittleEndian.AppendUint64(dst, e.B)
	return append(dst, clip(e.Text)...)
}

func clip(s string) string {
	if len(s) <= maxErrorText {
		return s
	}
	n := maxErrorText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// ParseError reads an Error; it copies the text.
func ParseError(p []byte) (*Error, error) {
	if err := expect(p, KindError, errorBytes); err != nil {
		return nil, err
	}
	text := p[errorBytes:]
	if len(text) > maxErrorText || !utf8.Valid(text) {
		return nil, bad("an Error with %d bytes of text that is not UTF-8 of at most %d", len(text), maxErrorText)
	}
	le := binary.LittleEndian
	return &Error{le.Uint32(p[4:]), Code(le.Uint16(p[2:])), le.Uint64(p[8:]), le.Uint64(p[16:]), string(text)}, nil
}
