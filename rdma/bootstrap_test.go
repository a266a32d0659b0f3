package rdma_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/bootstrap"
	"github.com/millrace/millrace/rdma/softroce"
)

func frame(t *testing.T, m bootstrap.Message) []byte {
	t.Helper()
	b, err := bootstrap.Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func otherVersion(b []byte) []byte {
	binary.BigEndian.PutUint16(b[4:], 3)
	return b
}

// Whoever connects to a bootstrap port and does not belong there is told so, and
// leaves nothing behind.
func TestPassiveRefuses(t *testing.T) {
	hello := &bootstrap.Hello{Instance: bootstrap.Instance{1}, Loop: 1, Fabric: "udp"}
	for _, tc := range []struct {
		name string
		send []byte
		text string // of the refusal
	}{
		{"http", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "speaks another protocol"},
		{"millrace tcp", []byte("MLRC\x00\x01\x00\x00\x00\x40\x00\x00"), "speaks millrace tcp://"},
		{"version", otherVersion(frame(t, hello)), "speaks bootstrap version 3, this side 2"},
		{"fabric", frame(t, &bootstrap.Hello{Instance: bootstrap.Instance{1}, Fabric: "memif"}), `peer's loop runs on "memif", this one on "udp"`},
		{"out of turn", frame(t, &bootstrap.Ready{}), "unexpected ready"},
		{"garbage body", append([]byte("MLRB\x00\x02\x01\x00\x00\x04"), "{]{]"...), "bootstrap hello"},
		{"no ICRC", append(frame(t, hello), frame(t, &bootstrap.Accept{QP: goodQP, Unsummed: true})...), "leaves the ICRC out, which softroce+udp does not offer"},
		{"stale without share", append(frame(t, hello), frame(t, &bootstrap.Stale{})...), "unexpected stale"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := startNode(t, nodeOptions{})
			url := server.listen(newCollector())
			nc := dialTCP(t, url)
			if _, err := nc.Write(tc.send); err != nil {
				t.Fatal(err)
			}
			var m bootstrap.Message
			for {
				_ = nc.SetReadDeadline(time.Now().Add(5 * time.Second))
				var err error
				if m, err = bootstrap.Read(nc); err != nil {
					t.Fatal(err)
				}
				if _, offer := m.(*bootstrap.Offer); !offer {
					break
				}
			}
			if r, ok := m.(*bootstrap.Refusal); !ok || !strings.Contains(r.Reason, tc.text) {
				t.Errorf("got %+v", m)
			}
			// The listener still serves those who belong.
			client := startNode(t, nodeOptions{})
			client.dial(url, newCollector())
		})
	}
}

// goodQP is one that any end accepts.
var goodQP = bootstrap.QP{
	Device: "d", Label: "l", GID: netip.MustParseAddr("127.0.0.1"), UDPPort: 4791, QPN: 17, PathMTU: 1024,
	Credits: 8, ReceiveBytes: 4096, MaxMessage: 1 << 20,
}

func TestActiveRefuses(t *testing.T) {
	offer := func(change func(*bootstrap.QP)) []byte {
		o := &bootstrap.Offer{Instance: bootstrap.Instance{2}, Loop: 1, QP: goodQP}
		change(&o.QP)
		return frame(t, o)
	}
	for _, tc := range []struct {
		name     string
		reply    []byte
		protocol bool
		text     string
	}{
		{"http", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), true, "speaks another protocol"},
		{"millrace tcp", []byte("MLRC\x00\x01\x00\x00\x00\x40\x00\x00"), true, "speaks millrace tcp://"},
		{"short foreign", []byte("-ERR"), true, "speaks another protocol"},
		{"version", otherVersion(frame(t, &bootstrap.Ready{})), true, "speaks bootstrap version 3, this side 2"},
		{"refusal", frame(t, &bootstrap.Refusal{Reason: "no room"}), false, "refused the connection: no room"},
		{"closes", nil, true, "closed in the middle of the bootstrap"},
		{"out of turn", frame(t, &bootstrap.Bye{}), true, "unexpected bye"},
		{"family", offer(func(q *bootstrap.QP) { q.GID = netip.MustParseAddr("2001:db8::1") }), false, "addresses of one family"},
		{"receive buffers", offer(func(q *bootstrap.QP) { q.ReceiveBytes = 8 << 20 }), false, "larger than the largest message of softroce+udp, 4096"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			served := make(chan struct{})
			go func() {
				defer close(served)
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				_, _ = bootstrap.Read(nc)
				if tc.reply != nil {
					_, _ = nc.Write(tc.reply)
					_, _ = bootstrap.Read(nc)
				}
			}()
			client := startNode(t, nodeOptions{wrap: func(d rdma.Device) rdma.Device { return smallMessages{d} }})
			url := "rdma://" + ln.Addr().String()
			_, err = client.loop.Dial(testCtx(t), url, newCollector())
			if err == nil || errors.Is(err, netpoll.ErrProtocol) != tc.protocol || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
			ln.Close()
			<-served
		})
	}
}

// smallMessages is a device whose messages are at most 4096 bytes.
type smallMessages struct{ rdma.Device }

func (d smallMessages) Attr() rdma.DeviceAttr {
	a := d.Device.Attr()
	a.MaxMsg = 4096
	return a
}

// A peer that connects and is silent is given up, and does not keep others out.
func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	server := startNode(t, nodeOptions{})
	url := server.listen(newCollector())
	silent := dialTCP(t, url)
	client := startNode(t, nodeOptions{})
	client.dial(url, newCollector())
	_ = silent.SetReadDeadline(time.Now().Add(2 * bootstrap.StepTimeout))
	m, err := bootstrap.Read(silent)
	if r, ok := m.(*bootstrap.Refusal); !ok || !strings.Contains(r.Reason, "sent 0 bytes of a bootstrap frame within 5s") {
		t.Errorf("got %+v, %v", m, err)
	}
}

// A loop that stops while peers are in the middle of the bootstrap neither waits
// for them nor leaks their connections.
func TestStopDuringHandshake(t *testing.T) {
	server := startNode(t, nodeOptions{stopped: true})
	url := server.listen(newCollector())
	silent := dialTCP(t, url)
	half := dialTCP(t, url)
	if _, err := half.Write(frame(t, &bootstrap.Hello{Instance: bootstrap.Instance{1}, Loop: 1, Fabric: "udp"})); err != nil {
		t.Fatal(err)
	}
	if _, err := bootstrap.Expect[*bootstrap.Offer](half); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	server.stop()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("stopping took %v", took)
	}
	for _, nc := range []net.Conn{silent, half} {
		_ = nc.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, context.DeadlineExceeded) {
			t.Error("connection left open")
		}
	}
}

// A loop without memory, or without receives, for another connection refuses it by
// name on both sides, and keeps serving the others.
func TestNoRoomForConnection(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    nodeOptions
		text string
	}{
		{"memory", nodeOptions{loop: netpoll.Options{Pool: testPool(t, 1<<20)}}, hugepages.ErrExhausted.Error()},
		{"receives", nodeOptions{rdma: rdma.EventLoopOptions{SharedReceives: 7}}, "the 7 receives of this loop on softroce+udp are granted to others"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := startNode(t, tc.o)
			sh := newCollector()
			url := server.listen(acceptOnly{sh})
			client := startNode(t, nodeOptions{})
			c := client.dial(url, newCollector())
			var last *netpoll.Conn
			var err error
			for range 100 {
				more, e := client.loop.Dial(testCtx(t), url, newCollector())
				if err = e; err != nil {
					break
				}
				last = more
			}
			if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v", err)
			}
			open := server.loop.Stats().Connections
			client.do(func() { last.Close(nil) })
			for deadline := time.Now().Add(5 * time.Second); server.loop.Stats().Connections == open; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the server keeps the connection")
				}
			}
			if _, err = client.loop.Dial(testCtx(t), url, newCollector()); err != nil {
				t.Errorf("into the room that was made: %v", err)
			}
			client.do(func() { err = sendCopy(c, []byte("still here")) })
			if err != nil || string(sh.next(t)) != "still here" {
				t.Error(err)
			}
		})
	}
}

// acceptOnly does not take note of closes.
type acceptOnly struct{ *collector }

func (acceptOnly) OnClose(*netpoll.Conn, error) {}

// pointToPoint is a fabric with a device for each peer, made of UDP devices.
type pointToPoint struct {
	mu     sync.Mutex
	made   int
	live   map[rdma.Device]bool
	failed error
}

func newPointToPoint() *pointToPoint { return &pointToPoint{live: map[rdma.Device]bool{}} }

func (f *pointToPoint) Name() string  { return "ptp" }
func (f *pointToPoint) PerPeer() bool { return true }

func (f *pointToPoint) device() (rdma.Device, error) {
	time.Sleep(5 * time.Millisecond) // as hot-plug takes
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed != nil {
		return nil, f.failed
	}
	link, err := softroce.NewUDPLink(loopback)
	if err != nil {
		return nil, err
	}
	d := softroce.New(link, softroce.Options{})
	f.made++
	f.live[d] = true
	return d, nil
}

func (f *pointToPoint) Offer(context.Context, rdma.Peer) (rdma.Device, map[string]string, error) {
	d, err := f.device()
	if err != nil {
		return nil, nil, err
	}
	return d, map[string]string{"socket": fmt.Sprintf("/run/%p", d)}, nil
}

func (f *pointToPoint) Join(_ context.Context, _ rdma.Peer, link map[string]string) (rdma.Device, error) {
	if link["socket"] == "" {
		return nil, errors.New("no socket in the offer")
	}
	return f.device()
}

func (f *pointToPoint) Drop(d rdma.Device) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.live, d)
	return d.Close()
}

func (f *pointToPoint) Close() error {
	if len(f.live) > 0 {
		return fmt.Errorf("%d devices were not dropped", len(f.live))
	}
	return nil
}

func (f *pointToPoint) counts() (made, live int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.made, len(f.live)
}

func TestDevicePerPeer(t *testing.T) {
	sf, cf := newPointToPoint(), newPointToPoint()
	server := startNode(t, nodeOptions{fabric: sf})
	client := startNode(t, nodeOptions{fabric: cf})
	url := server.listen(&echo{})
	type dialled struct {
		c *netpoll.Conn
		h *collector
	}
	for round := 1; round <= 3; round++ {
		var conns []dialled
		results := make(chan error, 8)
		var mu sync.Mutex
		for range 8 { // at once: they must share one device on each side
			h := newCollector()
			client.loop.DialAsync(url, h, func(c *netpoll.Conn, err error) {
				mu.Lock()
				conns = append(conns, dialled{c, h})
				mu.Unlock()
				results <- err
			})
		}
		for range 8 {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range []*pointToPoint{sf, cf} {
			if made, live := f.counts(); made != round || live != 1 {
				t.Fatalf("round %d: %d devices made, %d live", round, made, live)
			}
		}
		client.do(func() {
			for _, d := range conns {
				if err := sendCopy(d.c, []byte("hello")); err != nil {
					t.Error(err)
				}
			}
		})
		for _, d := range conns {
			if got := d.h.next(t); string(got) != "hello" {
				t.Fatalf("got %q", got)
			}
		}
		if got, want := client.el.Stats().Registered, int64(client.loop.Pool().Arena().Len()); got != want {
			t.Errorf("%d bytes registered, want the arena's %d", got, want)
		}
		client.do(func() {
			for _, d := range conns {
				d.c.Close(nil)
			}
		})
		for _, f := range []*pointToPoint{sf, cf} {
			deadline := time.Now().Add(5 * time.Second)
			for _, live := f.counts(); live > 0; _, live = f.counts() {
				if time.Now().After(deadline) {
					t.Fatal("the device outlives its connections")
				}
				time.Sleep(time.Millisecond)
			}
		}
		if got := client.el.Stats().Registered; got != 0 {
			t.Errorf("%d bytes registered without a device", got)
		}
	}
	sf.mu.Lock()
	sf.failed = errors.New("no such card")
	sf.mu.Unlock()
	if _, err := client.loop.Dial(testCtx(t), url, newCollector()); err == nil || !strings.Contains(err.Error(), "no such card") {
		t.Errorf("got %v", err)
	}
}

// The passive side may still hold a device that the active side has given up: it
// must make another.
func TestStaleDevice(t *testing.T) {
	sf := newPointToPoint()
	server := startNode(t, nodeOptions{fabric: sf})
	url := server.listen(newCollector())
	hello := frame(t, &bootstrap.Hello{Instance: bootstrap.Instance{7}, Loop: 3, Fabric: "ptp"})
	offer := func(nc net.Conn) *bootstrap.Offer {
		t.Helper()
		o, err := bootstrap.Expect[*bootstrap.Offer](nc)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	first, second := dialTCP(t, url), dialTCP(t, url)
	_, _ = first.Write(hello)
	a := offer(first)
	_, _ = second.Write(hello)
	b := offer(second)
	if a.Shared || !b.Shared || a.Link["socket"] != b.Link["socket"] {
		t.Fatalf("offers %+v, %+v", a, b)
	}
	if err := bootstrap.Send(second, &bootstrap.Stale{}); err != nil {
		t.Fatal(err)
	}
	c := offer(second)
	if c.Shared || c.Link["socket"] == a.Link["socket"] {
		t.Errorf("after stale: %+v", c)
	}
	if made, live := sf.counts(); made != 2 || live != 2 {
		t.Errorf("%d made, %d live", made, live)
	}
}
