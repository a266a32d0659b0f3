package memif_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

type echo struct{ netpoll.BaseHandler }

func (echo) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		b, err := c.Alloc(ms[i].Len())
		if err != nil {
			c.Close(err)
			return
		}
		at := copy(b.Bytes(), ms[i].Data)
		for _, s := range ms[i].Rest {
			at += copy(b.Bytes()[at:], s.Data)
		}
		if err := c.Send(b); err != nil {
			b.Release()
			c.Close(err)
			return
		}
	}
}

type collect struct {
	netpoll.BaseHandler
	got    chan []byte
	closed chan error
}

func (k *collect) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		p := append([]byte{}, ms[i].Data...)
		for _, s := range ms[i].Rest {
			p = append(p, s.Data...)
		}
		k.got <- p
	}
}
func (k *collect) OnClose(_ *netpoll.Conn, err error) { k.closed <- err }

func startLoop(t testing.TB, idle netpoll.IdlePolicy) *netpoll.Loop {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	l, err := netpoll.NewLoop(netpoll.Options{
		Pool: hugepages.NewPool(arena), Idle: idle,
		Backends: []netpoll.Backend{dpdk.NewEventLoop(&memif.Pairs{}, rdma.EventLoopOptions{})},
	})
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

// Messages of every size, there and back over dpdk://, also after the loops have
// gone to sleep.
func TestEventLoopEcho(t *testing.T) {
	for _, idle := range []netpoll.IdlePolicy{netpoll.Latency(), netpoll.Balanced(), netpoll.Efficient()} {
		t.Run(idle.Name, func(t *testing.T) {
			server, client := startLoop(t, idle), startLoop(t, idle)
			ln, err := server.Listen("dpdk://127.0.0.1:0", echo{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			k := &collect{got: make(chan []byte, 64), closed: make(chan error, 1)}
			c, err := client.Dial(ctx, ln.URL(), k)
			if err != nil {
				t.Fatal(err)
			}
			if tr := c.Transport(); tr.Scheme != "dpdk" || tr.Device != "memif" || tr.Label != "user-space" {
				t.Errorf("transport %+v", tr)
			}
			for i, n := range []int{0, 1, 128, 4096, 8192, 8193, 100_000, 1 << 20, 5} {
				want := bytes.Repeat([]byte{byte(i + 1)}, n)
				if err := client.Do(func() {
					b, err := c.Alloc(n)
					if err != nil {
						t.Error(err)
						return
					}
					copy(b.Bytes(), want)
					if err := c.Send(b); err != nil {
						b.Release()
						t.Error(err)
					}
				}); err != nil {
					t.Fatal(err)
				}
				select {
				case got := <-k.got:
					if !bytes.Equal(got, want) {
						t.Fatalf("%d bytes: got %d others", n, len(got))
					}
				case err := <-k.closed:
					t.Fatalf("closed: %v", err)
				case <-time.After(10 * time.Second):
					t.Fatalf("%d bytes did not come back", n)
				}
				if i%3 == 2 {
					time.Sleep(20 * time.Millisecond) // both loops sleep, unless they never do
				}
			}
		})
	}
}

type pinger struct {
	netpoll.BaseHandler
	left int
	done chan struct{}
}

func (p *pinger) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	if p.left--; p.left == 0 {
		close(p.done)
		return
	}
	p.send(c)
}

func (p *pinger) send(c *netpoll.Conn) {
	b, err := c.Alloc(128)
	if err != nil {
		panic(err)
	}
	if err := c.Send(b); err != nil {
		panic(err)
	}
}

// BenchmarkRoundTrip is one 128 B message there and back over dpdk://, between two
// spinning loops of one process.
func BenchmarkRoundTrip(b *testing.B) {
	server, client := startLoop(b, netpoll.Latency()), startLoop(b, netpoll.Latency())
	ln, err := server.Listen("dpdk://127.0.0.1:0", echo{})
	if err != nil {
		b.Fatal(err)
	}
	p := &pinger{left: b.N, done: make(chan struct{})}
	c, err := client.Dial(context.Background(), ln.URL(), p)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if err := client.Do(func() { p.send(c) }); err != nil {
		b.Fatal(err)
	}
	<-p.done
	b.StopTimer()
}
