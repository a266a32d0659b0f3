package netpoll

import (
	"errors"
	"net"
)

var kernelTCP = Transport{Scheme: "tcp", Device: "epoll", Label: "kernel", Reason: "asked for"}

// AdoptTCP makes a connected socket, on which neither side has sent anything of
// tcp:// yet, a connection of the loop's TCP backend: it exchanges preambles and
// opens the connection, whose Transport gives reason. done, which may be nil, runs as that of
// Backend.Dial if there is no error. It closes nc in every case: the loop gets a
// duplicate. For backends that fall back to TCP. Any goroutine but the loop's.
func (l *Loop) AdoptTCP(nc net.Conn, h Handler, reason string, done func(*Conn, error)) error {
	what := kernelTCP
	what.Reason = reason
	for _, b := range l.opts.Backends {
		if t, ok := b.(*TCP); ok {
			return t.setUp(nc, h, what, done)
		}
	}
	_ = nc.Close()
	return errors.New("netpoll: the loop has no TCP backend to adopt the connection: give it one")
}

// HasTCP tells whether AdoptTCP can work. Any goroutine.
func (l *Loop) HasTCP() bool {
	for _, b := range l.opts.Backends {
		if _, ok := b.(*TCP); ok {
			return true
		}
	}
	return false
}
