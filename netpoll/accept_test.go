package netpoll

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
)

// refusing is a listener of a process that is out of descriptors, but for one connection.
type refusing struct {
	net.Listener
	left, at int
}

func (r *refusing) Accept() (net.Conn, error) {
	if r.left--; r.left == r.at {
		return r.Listener.Accept()
	}
	if r.left < 0 {
		return nil, net.ErrClosed
	}
	return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
}

// A server out of descriptors wrote a hundred lines a second to its log.
func TestAcceptFailsOnceInTheLog(t *testing.T) {
	var log bytes.Buffer
	tcp := NewTCP()
	loop, err := NewLoop(Options{Backends: []Backend{tcp}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close() // what is accepted ends at once
	tcp.setups.Add(1)
	tcp.accept(&refusing{ln, 10, 5}, BaseHandler{})
	loop.Stop()
	if err := loop.Run(); err != nil { // waits for the set-up, which logs too
		t.Error(err)
	}
	if n := strings.Count(log.String(), "accept failed"); n != 2 {
		t.Errorf("%d lines for two times without descriptors:\n%s", n, log.String())
	}
}
