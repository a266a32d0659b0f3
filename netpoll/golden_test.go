package netpoll_test

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/internal/docbytes"
	"github.com/millrace/millrace/netpoll"
)

// greet sends "hello" on every connection and collects what comes.
type greet struct {
	netpoll.BaseHandler
	got chan string
}

func (g *greet) OnOpen(c *netpoll.Conn) {
	b, err := c.Alloc(5)
	if err == nil {
		copy(b.Bytes(), "hello")
		err = c.Send(b)
	}
	if err != nil {
		c.Close(err)
	}
}

func (g *greet) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		g.got <- string(ms[i].Data)
	}
}

// The example of docs/PROTOCOL.md is what a connection sends, and what it takes.
func TestGoldenTCP(t *testing.T) {
	want := docbytes.Hex(t, "tcp")
	l, err := netpoll.NewLoop(netpoll.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- l.Run() }()
	defer func() {
		l.Stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	g := &greet{got: make(chan string, 16)}
	ln, err := l.Listen("tcp://127.0.0.1:0", g)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(ln.URL(), "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, len(want))
	if _, err := io.ReadFull(c, sent); err != nil || !bytes.Equal(sent, want) {
		t.Errorf("sends % x, %v", sent, err)
	}
	select {
	case m := <-g.got:
		if m != "hello" {
			t.Errorf("receives %q", m)
		}
	case <-time.After(10 * time.Second):
		t.Error("the example's message did not arrive")
	}
}
