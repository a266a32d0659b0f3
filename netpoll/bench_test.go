package netpoll

import (
	"context"
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
