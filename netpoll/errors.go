package netpoll

import "errors"

var (
	// ErrBackpressure refuses work because a bounded queue is full. The caller
	// keeps what it offered; OnWritable tells when to try again.
	ErrBackpressure = errors.New("netpoll: queue full (back-pressure): wait for OnWritable or retry later")
	// ErrClosed refuses a Send on a connection that is closed or draining.
	ErrClosed = errors.New("netpoll: connection closed")
	// ErrLoopClosed is the reason of a close when the loop stops.
	ErrLoopClosed = errors.New("netpoll: loop closed")
	// ErrDrainTimeout is the reason of a close when a drain met its deadline.
	ErrDrainTimeout = errors.New("netpoll: drain deadline passed with messages still queued")
	// ErrMessageTooLarge refuses a message beyond Options.MaxMessageBytes.
	ErrMessageTooLarge = errors.New("netpoll: message larger than the limit (raise MaxMessageBytes on both ends)")
	// ErrProtocol is wrapped by every error caused by a peer that breaks the
	// wire protocol or speaks another one.
	ErrProtocol = errors.New("netpoll: protocol error")
)
