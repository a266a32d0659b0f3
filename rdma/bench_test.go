package rdma_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
)

func BenchmarkRoundTrip(b *testing.B) {
	for _, size := range []int{128, 16 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			server := startNode(b, nodeOptions{loop: netpoll.Options{Idle: netpoll.Latency()}})
			client := startNode(b, nodeOptions{loop: netpoll.Options{Idle: netpoll.Latency()}})
			p := &pinger{done: make(chan struct{}, 1)}
			c := client.dial(server.listen(&pinger{}), p)
			b.ReportAllocs()
			b.ResetTimer()
			client.do(func() {
				p.left = b.N
				if err := sendCopy(c, make([]byte, size)); err != nil {
					b.Error(err)
				}
			})
			<-p.done
		})
	}
}

// streamer sends whenever it may.
type streamer struct {
	netpoll.BaseHandler
	size, left int
}

func (s *streamer) OnWritable(c *netpoll.Conn) {
	for s.left > 0 {
		m, err := c.Alloc(s.size)
		if err != nil {
			c.Close(err)
			return
		}
		if err := c.Send(m); err != nil {
			m.Release()
			if !errors.Is(err, netpoll.ErrBackpressure) {
				c.Close(err)
			}
			return
		}
		s.left--
	}
}

type counter struct {
	netpoll.BaseHandler
	left int
	done chan struct{}
}

func (s *counter) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	if s.left -= len(ms); s.left == 0 {
		close(s.done)
	}
}

func BenchmarkOneWay(b *testing.B) {
	for _, size := range []int{128, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			server := startNode(b, nodeOptions{loop: netpoll.Options{Idle: netpoll.Latency()}})
			client := startNode(b, nodeOptions{loop: netpoll.Options{Idle: netpoll.Latency()}})
			sink := &counter{left: b.N, done: make(chan struct{})}
			s := &streamer{size: size, left: b.N}
			c := client.dial(server.listen(sink), s)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			client.do(func() { s.OnWritable(c) })
			<-sink.done
		})
	}
}

// BenchmarkSparse counts wake-ups over the engine on UDP; rdma/verbs has the same for devices
// and TCP.
func BenchmarkSparse(b *testing.B) {
	o := nodeOptions{loop: netpoll.Options{Idle: netpoll.Efficient()}}
	server, client := startNode(b, o), startNode(b, o)
	s := &looptest.Sparse{}
	s.SleepsPerRequest(b, server.loop, client.dial(server.listen(&pinger{}), s))
}
