package broker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// mute greets, and then says nothing: a broker that stands still as its clients see it.
type mute struct{ netpoll.BaseHandler }

func (mute) OnOpen(c *netpoll.Conn) {
	b, err := c.Alloc(wire.HelloBytes)
	if err != nil {
		c.Close(err)
		return
	}
	wire.AppendHello(b.Bytes()[:0], wire.Hello{Version: wire.Version, Role: wire.RoleBroker, MaxFrameBytes: 4 << 20})
	if err := c.Send(b); err != nil {
		b.Release()
	}
}

// startMute starts a mute peer, and returns a client of it.
func startMute(t *testing.T, ctx context.Context) *Client {
	loop, err := netpoll.NewLoop(netpoll.Options{Backends: []netpoll.Backend{netpoll.NewTCP()}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- loop.Run() }()
	t.Cleanup(func() {
		loop.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	ln, err := loop.Listen("tcp://127.0.0.1:0", mute{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Connect(ctx, ClientConfig{URL: ln.URL(), Logger: quietLogger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(ctx) })
	return c
}

// A client waited for ever for the answers of a broker that stood still, for over TCP
// nothing told it. An idle connection stays.
func TestBrokerStandsStill(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	c := startMute(t, ctx)
	var first *netpoll.Conn
	look := func() (conn *netpoll.Conn) {
		_ = c.host.loop.Do(func() { conn = c.link.conn })
		return conn
	}
	_ = c.host.loop.Do(func() {
		first = c.link.conn
		c.link.patience = 30 * time.Millisecond
		c.link.timer.Stop()
		c.link.watch(0)
	})
	time.Sleep(150 * time.Millisecond)
	if look() != first {
		t.Error("an idle connection was closed")
	}
	_, err := c.Produce(ctx, "t", &serialize.Record{Value: []byte("x")})
	if !errors.Is(err, wire.OutcomeUnknown) || !strings.Contains(err.Error(), "stands still") {
		t.Errorf("got %v", err)
	}
}

// The watch that came due in the cycle in which the connection was lost used it.
func TestWatchOfLostConnection(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	c := startMute(t, ctx)
	l := c.link
	produced := make(chan error, 1)
	go func() {
		_, err := c.Produce(ctx, "t", &serialize.Record{Value: []byte("x")})
		produced <- err
	}()
	for sent := false; !sent; {
		_ = c.host.loop.Do(func() { sent = l.calls.used > 0 })
	}
	lost := errors.New("lost")
	_ = c.host.loop.Do(func() {
		l.loop.After(100*time.Microsecond, func() { l.conn.Close(lost) })
		l.timer.Stop()
		l.patience = time.Millisecond
		l.watch(l.patience)              // has heard nothing for so long
		time.Sleep(5 * time.Millisecond) // then both are due in one cycle
	})
	if err := <-produced; err == nil || !strings.Contains(err.Error(), lost.Error()) {
		t.Errorf("got %v", err)
	}
	for up := false; !up; {
		_ = c.host.loop.Do(func() { up = l.state == linkUp })
	}
}
