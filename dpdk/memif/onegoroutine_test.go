package memif_test

import (
	"net/url"
	"testing"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma"
)

// BenchmarkBusy is one 128 B message there and back over dpdk:// with both ends on one
// goroutine: what the two ends do, without waiting for each other.
func BenchmarkBusy(b *testing.B) {
	server := dpdk.NewEventLoop(&memif.Pairs{}, rdma.EventLoopOptions{})
	client := dpdk.NewEventLoop(&memif.Pairs{}, rdma.EventLoopOptions{})
	l := looptest.Start(b, netpoll.Options{Idle: netpoll.Latency(), Backends: []netpoll.Backend{server, client}})
	ln, err := l.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
	if err != nil {
		b.Fatal(err)
	}
	u, err := url.Parse(ln.URL())
	if err != nil {
		b.Fatal(err)
	}
	p := &pinger{left: b.N, done: make(chan struct{})}
	dialled := make(chan *netpoll.Conn)
	client.Dial(u, p, func(c *netpoll.Conn, err error) {
		if err != nil {
			b.Error(err)
		}
		go func() { dialled <- c }()
	})
	c := <-dialled
	if c == nil {
		return
	}
	b.ReportAllocs()
	b.ResetTimer()
	if err := l.Do(func() { p.send(c) }); err != nil {
		b.Fatal(err)
	}
	<-p.done
	b.StopTimer()
}
