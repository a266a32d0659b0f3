package broker

import (
	"errors"

	"github.com/millrace/millrace/broker/wire"
)

var (
	// ErrClosed: the client or proxy was closed.
	ErrClosed = errors.New("broker: closed")
	// ErrValueTooLarge refuses a value that no message to the broker can hold.
	ErrValueTooLarge = errors.New("broker: value too large: raise MaxMessageBytes on client, proxy and broker, or split it")
	// ErrStop is what a Consume callback returns to end without an error.
	ErrStop = errors.New("broker: stop consuming")
)

func unreachable(text string) *wire.Error {
	return &wire.Error{Code: wire.BrokerUnreachable, Text: text}
}
