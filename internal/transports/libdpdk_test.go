//go:build dpdk && cgo

package transports_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

type echo struct{ netpoll.BaseHandler }

func (echo) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if err := send(c, ms[i].Data); err != nil {
			c.Close(err)
		}
	}
}

func send(c *netpoll.Conn, p []byte) error {
	b, err := c.Alloc(len(p))
	if err != nil {
		return err
	}
	copy(b.Bytes(), p)
	if err = c.Send(b); err != nil {
		b.Release()
	}
	return err
}

type collect struct {
	netpoll.BaseHandler
	got chan []byte
}

func (k *collect) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		k.got <- append([]byte{}, ms[i].Data...)
	}
}

func loop(t *testing.T, url string) *netpoll.Loop {
	t.Helper()
	backends, err := transports.Backends(url)
	if err != nil {
		t.Fatal(err)
	}
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	l, err := netpoll.NewLoop(netpoll.Options{Pool: hugepages.NewPool(arena), Idle: netpoll.Balanced(), Backends: backends})
	if err != nil {
		t.Fatal(err)
	}
	run := make(chan error, 1)
	go func() { run <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-run; err != nil {
			t.Error(err)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// An address chooses a port of libdpdk or the one in pure Go for its own end; the
// other end may have chosen otherwise.
func TestPortsOfEitherKindMeet(t *testing.T) {
	if err := eal.Init(); err != nil {
		t.Skipf("libdpdk does not start here: %v", err)
	}
	for _, tc := range []struct{ name, listen, dial string }{
		{"libdpdk dials", "?port=memif", "?port=net_memif"},
		{"libdpdk on both ends", "?port=net_memif", "?port=net_memif0"},
		{"libdpdk listens", "?port=net_memif", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			url := "dpdk://127.0.0.1:0" + tc.listen
			server := loop(t, url)
			ln, err := server.Listen(url, echo{})
			if err != nil {
				t.Fatal(err)
			}
			to := transports.With(ln.URL(), tc.dial[min(len("?port="), len(tc.dial)):])
			client := loop(t, to)
			k := &collect{got: make(chan []byte, 1)}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			c, err := client.Dial(ctx, to, k)
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte("grist"), 300)
			sent := make(chan error, 1)
			if err := client.Do(func() { sent <- send(c, want) }); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-k.got:
				if !bytes.Equal(got, want) {
					t.Errorf("%d other bytes came back", len(got))
				}
			case <-ctx.Done():
				t.Error("nothing came back")
			}
		})
	}
}
