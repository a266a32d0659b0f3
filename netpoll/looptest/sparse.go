package looptest

import (
	"testing"
	"time"

	"github.com/millrace/millrace/netpoll"
)

const (
	// sparseInterval is long enough for both ends to sleep between two requests.
	sparseInterval = 2 * time.Millisecond
	sparseBytes    = 128
)

// Sparse is the client's handler of SleepsPerRequest.
type Sparse struct {
	netpoll.BaseHandler
	left int
	done chan struct{}
}

// tick sends a message each interval, left times.
func (s *Sparse) tick(c *netpoll.Conn) {
	if s.left--; s.left < 0 {
		close(s.done)
		return
	}
	b, err := c.Alloc(sparseBytes)
	if err == nil {
		if err = c.Send(b); err != nil {
			b.Release()
		}
	}
	if err != nil {
		c.Close(err)
	}
	c.Loop().After(sparseInterval, func() { s.tick(c) })
}

// SleepsPerRequest reports how often each end sleeps for each of b.N requests that come
// so far apart that both sleep between them. The server must for each, the client twice:
// its timer wakes it too. c, whose handler is s, is the client's end; the server echoes.
func (s *Sparse) SleepsPerRequest(b *testing.B, server *netpoll.Loop, c *netpoll.Conn) {
	client := c.Loop()
	s.left, s.done = b.N, make(chan struct{})
	b.ResetTimer()
	before, beforeClient := server.Stats().Parks, client.Stats().Parks
	if err := client.Do(func() { s.tick(c) }); err != nil {
		b.Fatal(err)
	}
	<-s.done
	b.ReportMetric(float64(server.Stats().Parks-before)/float64(b.N), "server-sleeps/op")
	b.ReportMetric(float64(client.Stats().Parks-beforeClient)/float64(b.N), "client-sleeps/op")
}

// Lend sends p on c in the place of its loop, once that sleeps.
func Lend(t testing.TB, c *netpoll.Conn, p []byte) {
	t.Helper()
	fn := func(int64) bool {
		ok, _ := c.Lends()
		if ok {
			send(t, c, p)
		}
		return ok
	}
	for end := time.Now().Add(patience); !c.Loop().Borrow(fn); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("the loop cannot be borrowed")
		}
	}
}
