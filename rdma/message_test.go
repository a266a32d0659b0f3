package rdma_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// blind is a device without a descriptor to wait on and without Transmit.
type blind struct{ rdma.Device }

func (blind) FD() int { return -1 }

func TestEchoSizes(t *testing.T) {
	for _, tc := range []struct {
		name string
		idle netpoll.IdlePolicy
		rdma rdma.EventLoopOptions
		wrap func(rdma.Device) rdma.Device
		more []int
	}{
		{name: "latency", idle: netpoll.Latency()},
		{name: "balanced", idle: netpoll.Balanced(), more: []int{1<<20 + 3, 4 << 20}},
		{name: "efficient", idle: netpoll.Efficient()},
		{name: "no descriptor", idle: netpoll.Efficient(), wrap: func(d rdma.Device) rdma.Device { return blind{d} }},
		{name: "least credits", idle: netpoll.Balanced(), rdma: rdma.EventLoopOptions{Receives: 2, ReceiveBytes: 4096, SendWRs: 2}},
		{name: "one send", idle: netpoll.Balanced(), rdma: rdma.EventLoopOptions{SendWRs: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := nodeOptions{loop: netpoll.Options{Idle: tc.idle}, rdma: tc.rdma, wrap: tc.wrap}
			server := startNode(t, o)
			url := server.listen(&echo{})
			o.loop.Pool = nil
			client := startNode(t, o)
			h := newCollector()
			c := client.dial(url, h)
			rng := rand.New(rand.NewPCG(1, 2))
			const rcv = 8<<10 - 4
			sizes := []int{0, 1, 3, 4, 5, 127, 128, 4096, 4097, rcv - 1, rcv, rcv + 1, 2 * rcv, 200_003, 0, 0, 7}
			sizes = append(sizes, tc.more...)
			for range 100 {
				sizes = append(sizes, rng.IntN(20000))
			}
			var want [][]byte
			for i, n := range sizes {
				want = append(want, pattern(i, n))
			}
			sent := make(chan error, 1)
			go func() { sent <- client.sendAll(c, want) }()
			for i, p := range want {
				if got := h.next(t); !bytes.Equal(got, p) {
					t.Fatalf("message %d (%d bytes): got %d other bytes", i, len(p), len(got))
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if s := client.el.Stats(); s.CopiedMessages > 0 {
				t.Errorf("%d messages were copied", s.CopiedMessages)
			}
		})
	}
}

// One-way traffic has no data to carry credits back: they must come alone, and
// the control receive must come back with the data.
func TestOneWayCredits(t *testing.T) {
	for _, receives := range []int{2, 3, 7, 64} {
		server := startNode(t, nodeOptions{rdma: rdma.EventLoopOptions{Receives: receives}})
		sink := newCollector()
		url := server.listen(sink)
		client := startNode(t, nodeOptions{})
		c := client.dial(url, newCollector())
		const n = 1000
		msgs := make([][]byte, n)
		for i := range msgs {
			msgs[i] = pattern(i, i%300)
		}
		if err := client.sendAll(c, msgs); err != nil {
			t.Fatal(err)
		}
		for i, p := range msgs {
			if got := sink.next(t); !bytes.Equal(got, p) {
				t.Fatalf("receives %d: message %d differs", receives, i)
			}
		}
		if s := server.el.Stats(); s.CreditMessages == 0 || s.CreditMessages > n+1 {
			t.Errorf("receives %d: %d credit messages for %d messages", receives, s.CreditMessages, n)
		}
	}
}

// A reader that pauses holds the sender back after at most its receives, and
// nothing is lost.
func TestPausedReader(t *testing.T) {
	server := startNode(t, nodeOptions{})
	sink := newCollector()
	var peer *netpoll.Conn
	sink.open = func(c *netpoll.Conn) { peer = c; c.PauseReading() }
	url := server.listen(sink)
	client := startNode(t, nodeOptions{loop: netpoll.Options{MaxQueuedMessages: 100}})
	h := newCollector()
	c := client.dial(url, h)
	sent := 0
	for ; ; sent++ {
		var err error
		client.do(func() { err = sendCopy(c, pattern(sent, 100+sent)) })
		if errors.Is(err, netpoll.ErrBackpressure) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if sent > 1000 {
			t.Fatal("a paused reader never caused back-pressure")
		}
		time.Sleep(20 * time.Microsecond)
	}
	if sent < 100 || sent > 100+64 {
		t.Errorf("%d messages accepted; the queue holds 100, the peer 63", sent)
	}
	select {
	case <-sink.got:
		t.Fatal("delivered while paused")
	case <-time.After(20 * time.Millisecond):
	}
	server.do(func() { peer.ResumeReading() })
	select {
	case <-h.wr:
	case <-time.After(10 * time.Second):
		t.Fatal("no OnWritable")
	}
	for i := range sent {
		if got := sink.next(t); !bytes.Equal(got, pattern(i, 100+i)) {
			t.Fatalf("message %d differs", i)
		}
	}
}

// keeper retains every message.
type keeper struct {
	netpoll.BaseHandler
	kept chan netpoll.Message
}

func (k *keeper) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		k.kept <- ms[i].Retain()
	}
}

// Retained messages stay as they are, and an exhausted pool only delays what
// follows.
func TestRetainAndStarve(t *testing.T) {
	const n, size = 900, 20_000 // 18 MB through a pool of 4
	server := startNode(t, nodeOptions{loop: netpoll.Options{Pool: testPool(t, 4<<20)}})
	h := &keeper{kept: make(chan netpoll.Message, n)}
	url := server.listen(h)
	client := startNode(t, nodeOptions{})
	c := client.dial(url, newCollector())
	msgs := make([][]byte, n)
	for i := range msgs {
		msgs[i] = bytes.Repeat([]byte{byte(i)}, size)
	}
	sent := make(chan error, 1)
	go func() { sent <- client.sendAll(c, msgs) }()
	var held []netpoll.Message
	release := func() {
		for k := range held {
			m := &held[k]
			b, count := m.Data[0], bytes.Count(m.Data, m.Data[:1])
			for _, s := range m.Rest {
				count += bytes.Count(s.Data, []byte{b})
			}
			if count != size {
				t.Fatal("a retained message changed")
			}
			m.Release()
		}
		held = held[:0]
	}
	for i := 0; i < n; {
		select {
		case m := <-h.kept:
			if m.Len() != size || m.Data[0] != byte(i) {
				t.Fatalf("message %d changed", i)
			}
			held = append(held, m)
			i++
		case <-time.After(50 * time.Millisecond): // starved: give some back
			release()
		}
	}
	release()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if server.el.Stats().Starved == 0 {
		t.Error("the pool never ran dry; the test is too small")
	}
}

// Messages in memory that the device has not registered are copied, and counted.
func TestForeignMemory(t *testing.T) {
	server := startNode(t, nodeOptions{})
	url := server.listen(&echo{})
	client := startNode(t, nodeOptions{})
	h := newCollector()
	c := client.dial(url, h)
	other := testPool(t, 1<<20)
	for i, n := range []int{0, 100, 30_000} {
		b, err := other.Get(n, hugepages.Send)
		if err != nil {
			t.Fatal(err)
		}
		copy(b.Bytes(), pattern(i, n))
		client.do(func() { err = c.Send(b) })
		if err != nil {
			t.Fatal(err)
		}
		if got := h.next(t); !bytes.Equal(got, pattern(i, n)) {
			t.Fatalf("%d bytes differ", n)
		}
	}
	if s := client.el.Stats(); s.CopiedMessages != 3 || s.CopiedBytes != 30_100 {
		t.Errorf("stats %+v", s)
	}
}

func TestMessageLimit(t *testing.T) {
	server := startNode(t, nodeOptions{loop: netpoll.Options{MaxMessageBytes: 50_000}})
	url := server.listen(&echo{})
	client := startNode(t, nodeOptions{})
	h := newCollector()
	c := client.dial(url, h)
	var err error
	client.do(func() { err = sendCopy(c, make([]byte, 50_001)) })
	if !errors.Is(err, netpoll.ErrMessageTooLarge) || !strings.Contains(err.Error(), "limit 50000") {
		t.Errorf("got %v", err)
	}
	client.do(func() { err = sendCopy(c, make([]byte, 50_000)) })
	if err != nil || len(h.next(t)) != 50_000 {
		t.Errorf("at the limit: %v", err)
	}
}

func TestTransportAndURL(t *testing.T) {
	server := startNode(t, nodeOptions{})
	ln, err := server.loop.Listen("rdma://127.0.0.1:0?device=softroce%2Budp", &echo{})
	if err != nil {
		t.Fatal(err)
	}
	client := startNode(t, nodeOptions{})
	c := client.dial(ln.URL(), newCollector())
	want := netpoll.Transport{Scheme: "rdma", Device: "softroce+udp", Label: "user-space", Reason: "asked for"}
	if c.Transport() != want {
		t.Errorf("transport %+v", c.Transport())
	}
	for _, tc := range []struct{ url, text string }{
		{"rdma://127.0.0.1", "want rdma://host:port"},
		{"rdma://127.0.0.1:1/path", "want rdma://host:port"},
		{"rdma://127.0.0.1:1?speed=fast", "want rdma://host:port"},
		{"rdma://127.0.0.1:0?device=mlx5_0", `asks for device "mlx5_0", this loop has "softroce+udp"`},
		{ln.URL(), "in use"},
	} {
		if _, err := server.loop.Listen(tc.url, &echo{}); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("Listen(%s): %v", tc.url, err)
		}
	}
	if _, err := client.loop.Dial(testCtx(t), strings.Split(ln.URL(), "?")[0]+"?device=mlx5_0", newCollector()); err == nil || !strings.Contains(err.Error(), `asks for device "mlx5_0"`) {
		t.Errorf("Dial of another device: %v", err)
	}
	if _, err := client.loop.Dial(testCtx(t), "rdma://127.0.0.1:1", newCollector()); err == nil || !strings.Contains(err.Error(), "cannot reach") {
		t.Errorf("Dial of a closed port: %v", err)
	}
}

// Steady traffic allocates nothing.
func TestSteadyPathDoesNotAllocate(t *testing.T) {
	server := startNode(t, nodeOptions{loop: netpoll.Options{Idle: netpoll.Latency()}})
	url := server.listen(&pinger{})
	client := startNode(t, nodeOptions{loop: netpoll.Options{Idle: netpoll.Latency()}})
	p := &pinger{left: 500, done: make(chan struct{}, 1)}
	c := client.dial(url, p)
	round := func() {
		client.do(func() {
			p.left = 500
			if err := sendCopy(c, make([]byte, 128)); err != nil {
				t.Error(err)
			}
		})
		<-p.done
	}
	var perAlloc float64
	client.do(func() {
		perAlloc = testing.AllocsPerRun(10, func() {
			b, err := c.Alloc(128)
			if err != nil {
				t.Error(err)
				return
			}
			b.Release()
		})
	})
	if perAlloc > 0 {
		t.Skip("built with tag invariants: every Alloc allocates")
	}
	round()
	if n := testing.AllocsPerRun(3, round); n > 100 {
		t.Errorf("%.0f allocations in 500 round trips", n)
	}
}

// pinger answers each message with one; a client's stops after left answers.
type pinger struct {
	netpoll.BaseHandler
	left int
	done chan struct{}
}

func (p *pinger) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if p.done != nil {
			if p.left--; p.left == 0 {
				p.done <- struct{}{}
				continue
			}
		}
		b, err := c.Alloc(ms[i].Len())
		if err != nil {
			c.Close(err)
			return
		}
		copy(b.Bytes(), ms[i].Data)
		if err := c.Send(b); err != nil {
			b.Release()
			c.Close(err)
			return
		}
	}
}
