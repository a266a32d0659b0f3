package netpoll

import (
	"context"
	"fmt"
	"testing"
)

// pinger sends the next message when the last one came back.
type pinger struct {
	BaseHandler
	left int
	msg  []byte
	done chan struct{}
}

func (p *pinger) OnMessages(c *Conn, ms []Message) {
	for range ms {
		if p.left--; p.left == 0 {
			close(p.done)
			return
		}
		if err := sendCopy(c, p.msg); err != nil {
			panic(err)
		}
	}
}

// BenchmarkTCPRoundTrip is one 128 B message there and back between two spinning
// loops of one process over loopback.
func BenchmarkTCPRoundTrip(b *testing.B) {
	server := startLoop(b, Options{Idle: Latency()})
	ln, err := server.Listen("tcp://127.0.0.1:0", &echo{})
	if err != nil {
		b.Fatal(err)
	}
	client := startLoop(b, Options{Idle: Latency()})
	p := &pinger{left: b.N, msg: make([]byte, 128), done: make(chan struct{})}
	c, err := client.Dial(context.Background(), ln.URL(), p)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	if err := client.Do(func() {
		if err := sendCopy(c, p.msg); err != nil {
			b.Error(err)
		}
	}); err != nil {
		b.Fatal(err)
	}
	<-p.done
	b.StopTimer()
}

func BenchmarkSubmit(b *testing.B) {
	l := startLoop(b, Options{Idle: Latency()})
	fn := func() {}
	b.ReportAllocs()
	for b.Loop() {
		for l.Submit(fn) != nil {
		}
	}
}

// streamer keeps the send queue full.
type streamer struct {
	BaseHandler
	left int
	size int
}

func (s *streamer) OnOpen(c *Conn) { s.OnWritable(c) }
func (s *streamer) OnWritable(c *Conn) {
	for s.left > 0 {
		b, err := c.Alloc(s.size)
		if err != nil {
			panic(err)
		}
		if err := c.Send(b); err != nil {
			b.Release()
			return
		}
		s.left--
	}
}

type counter struct {
	BaseHandler
	left int
	done chan struct{}
}

func (k *counter) OnMessages(_ *Conn, ms []Message) {
	if k.left -= len(ms); k.left == 0 {
		close(k.done)
	}
}

// BenchmarkTCPStream is messages one way, each sent by itself, between two loops
// of one process.
func BenchmarkTCPStream(b *testing.B) {
	for _, size := range []int{128, 1024, 65536} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			server := startLoop(b, Options{})
			k := &counter{left: b.N, done: make(chan struct{})}
			ln, err := server.Listen("tcp://127.0.0.1:0", k)
			if err != nil {
				b.Fatal(err)
			}
			client := startLoop(b, Options{MaxQueuedBytes: 1 << 20})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			if _, err := client.Dial(context.Background(), ln.URL(), &streamer{left: b.N, size: size}); err != nil {
				b.Fatal(err)
			}
			<-k.done
			b.StopTimer()
		})
	}
}
