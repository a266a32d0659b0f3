package memif_test

import (
	"context"
	"strings"
	"testing"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma"
)

func startLoop(t testing.TB, idle netpoll.IdlePolicy) *netpoll.Loop {
	t.Helper()
	return looptest.Start(t, netpoll.Options{
		Idle: idle, Backends: []netpoll.Backend{dpdk.NewEventLoop(&memif.Pairs{}, rdma.EventLoopOptions{})},
	})
}

// Messages of every size, there and back over dpdk://, also after the loops have
// gone to sleep.
func TestEventLoopEcho(t *testing.T) {
	for _, idle := range []netpoll.IdlePolicy{netpoll.Latency(), netpoll.Balanced(), netpoll.Efficient()} {
		t.Run(idle.Name, func(t *testing.T) {
			server, client := startLoop(t, idle), startLoop(t, idle)
			ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
			if err != nil {
				t.Fatal(err)
			}
			c := looptest.Dial(t, client, ln.URL(), 0, 1, 128, 4096, 8192, 8193, 100_000, 1<<20, 5)
			if tr := c.Transport(); tr.Scheme != "dpdk" || tr.Device != "memif" || tr.Label != "user-space" || !strings.HasPrefix(tr.Note, "no ICRC") {
				t.Errorf("transport %+v", tr)
			}
		})
	}
}

// wrapped is Pairs whose ports are what wrap makes of them.
type wrapped struct {
	memif.Pairs
	wrap func(*memif.Port) dpdk.Port
}

func (p *wrapped) Serve(ctx context.Context) (dpdk.Port, map[string]string, error) {
	port, link, err := p.Pairs.Serve(ctx)
	if err != nil {
		return nil, nil, err
	}
	return p.wrap(port.(*memif.Port)), link, nil
}

func (p *wrapped) Join(ctx context.Context, link map[string]string) (dpdk.Port, error) {
	port, err := p.Pairs.Join(ctx, link)
	if err != nil {
		return nil, err
	}
	return p.wrap(port.(*memif.Port)), nil
}

// careful is Pairs of an end that does not know of packets without ICRC: it neither
// offers them nor takes them up.
func careful() dpdk.Pairs {
	return &wrapped{wrap: func(p *memif.Port) dpdk.Port { return carefulPort{p} }}
}

type carefulPort struct{ *memif.Port }

func (p carefulPort) Info() dpdk.PortInfo {
	info := p.Port.Info()
	info.Memory = false
	return info
}

// Where one end does not know of packets without ICRC, both compute and check it.
func TestICRCKept(t *testing.T) {
	for _, tc := range []struct {
		name           string
		server, client dpdk.Pairs
	}{
		{"server", careful(), &memif.Pairs{}},
		{"client", &memif.Pairs{}, careful()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := func(p dpdk.Pairs) *netpoll.Loop {
				return looptest.Start(t, netpoll.Options{Idle: netpoll.Balanced(), Backends: []netpoll.Backend{dpdk.NewEventLoop(p, rdma.EventLoopOptions{})}})
			}
			server, client := start(tc.server), start(tc.client)
			ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second connection shares the first one's port
				c := looptest.Dial(t, client, ln.URL(), 0, 128, 8193, 100_000)
				if note := c.Transport().Note; note != "" {
					t.Errorf("note %q", note)
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
	ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
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
