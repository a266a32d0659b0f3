package netpoll

import (
	"net/url"

	"github.com/millrace/millrace/hugepages"
)

// Poller is the half of a backend that the loop drives. All methods run on the
// loop's goroutine.
type Poller interface {
	// Attach gives the backend its loop, once, before anything else. The backend
	// registers with Loop.WatchFD every descriptor that must end the loop's sleep.
	Attach(l *Loop) error
	// Poll never blocks: it reaps completions, dispatches at most about budget
	// messages to handlers, flushes what they sent, and returns how much work it
	// found (0 = none).
	Poll(budget int) (work int)
	// Arm prepares for the loop to block: it arms notifications and then looks
	// once more. idle is false if there is work after all. deadline is the
	// Loop.Now() value in nanoseconds at which Poll must run even without a
	// notification; 0 means none.
	Arm() (deadline int64, idle bool)
	// Close closes all connections with ErrLoopClosed and frees the device.
	Close() error
}

// Backend is one transport of a loop, chosen by the scheme of a URL.
type Backend interface {
	Poller
	// Scheme is the URL scheme that the backend serves: "tcp", "rdma", "dpdk".
	Scheme() string
	// Listen accepts connections at u for h. It may block for the time that
	// setting up a device takes and is called off the loop's goroutine.
	Listen(u *url.URL, h Handler) (Listener, error)
	// Dial connects to u. It returns at once; done runs once on the loop's
	// goroutine, after h.OnOpen on success.
	Dial(u *url.URL, h Handler, done func(*Conn, error))
}

// Listener is a bound address of a backend.
type Listener interface {
	// URL is the address in the form that Dial takes, with the port that was
	// really bound.
	URL() string
	// Close stops accepting; connections stay. Any goroutine.
	Close() error
}

// Transport says what a connection really runs on, and why.
type Transport struct {
	Scheme string // tcp, rdma, dpdk
	Device string // epoll, softroce+udp, net_memif0, rxe0, …
	Label  string // kernel, user-space, soft-roce, rnic
	Reason string // why this one: "asked for", or why a better one was not used
	Note   string // what its ends agreed on beside the usual; mostly empty
}

// Wire is a backend's half of one connection. All methods run on the loop's
// goroutine.
type Wire interface {
	// Send takes one reference of b, whose bytes are one message, and queues it.
	// The queue's bound is Conn's affair. The bytes leave at Flush at the latest.
	Send(b *hugepages.Buf)
	// Flush hands all that is queued to the transport as far as it takes it now;
	// the rest follows from Poll.
	Flush()
	// SetReading pauses or resumes the reading side.
	SetReading(on bool)
	// Shut closes the transport and releases every queued Buf. The backend must
	// not call Endpoint.Closed because of it.
	Shut()
}
