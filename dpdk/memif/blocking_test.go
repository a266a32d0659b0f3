package memif

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A client that gives event descriptors in blocking mode used to stop the server's loop
// when it went to sleep.
func TestBlockingEventDescriptors(t *testing.T) {
	p, nc, r := serveByHand(t)
	defer nc.Close()
	defer r.close()
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	k := control{nc.(*net.UnixConn)}
	for _, m := range []struct {
		m  *message
		fd int
	}{
		{initialize{version: protocolVersion, name: "blocking"}.encode(), -1}, {addRegion{size: 1 << 16}.encode(), r.fd},
		{addRing{flags: ringFlagClientToServer, log2: 4}.encode(), event}, {addRing{offset: 4096, log2: 4}.encode(), event},
		{named(typeConnect, "blocking"), -1},
	} {
		if err := k.send(m.m, m.fd); err != nil {
			t.Fatal(err)
		}
	}
	waitUp(t, p)
	idle := make(chan bool)
	go func() { idle <- p.Arm() }()
	select {
	case ok := <-idle:
		if !ok {
			t.Error("frames that nobody sent")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the owner waits for the peer")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
