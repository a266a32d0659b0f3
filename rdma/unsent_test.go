package rdma_test

import (
	"bytes"
	"testing"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// returner keeps what was not sent.
type returner struct {
	*collector
	back []*hugepages.Buf
}

func (r *returner) OnUnsent(_ *netpoll.Conn, bufs []*hugepages.Buf) {
	for _, b := range bufs {
		r.back = append(r.back, b.Retain())
	}
}

// What the peer has not acknowledged comes back before OnClose, in order, and can be
// sent again on another connection.
func TestUnsentComesBack(t *testing.T) {
	server := startNode(t, nodeOptions{stopped: true})
	paused := newCollector()
	paused.open = (*netpoll.Conn).PauseReading
	client, other := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	h := &returner{collector: newCollector()}
	c := client.dial(server.listen(paused), h)
	const n = 50
	client.do(func() {
		for i := range n {
			if err := sendCopy(c, pattern(i, 1000*i)); err != nil {
				t.Error(err)
			}
		}
	})
	server.stop()
	_ = h.waitClose(t) // the peer closed in order
	// The reader had one receive; the first two are short enough to travel in one SEND.
	if len(h.back) < n-2 || len(h.back) > n {
		t.Fatalf("%d of %d came back", len(h.back), n)
	}
	again := newCollector()
	c = client.dial(other.listen(again), newCollector())
	client.do(func() {
		for _, b := range h.back {
			if err := c.Send(b); err != nil {
				t.Error(err)
				b.Release()
			}
		}
	})
	for i := n - len(h.back); i < n; i++ {
		if got := again.next(t); !bytes.Equal(got, pattern(i, 1000*i)) {
			t.Fatalf("message %d differs", i)
		}
	}
}
