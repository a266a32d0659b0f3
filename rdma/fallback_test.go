package rdma_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// wrongPort is a device that tells peers a port where nobody listens.
type wrongPort struct{ rdma.Device }

func (d wrongPort) Attr() rdma.DeviceAttr {
	a := d.Device.Attr()
	a.UDPPort = 9
	return a
}

// Two ends that cannot agree on RDMA stay on TCP, if both addresses allow that, and
// say so with the reason.
func TestFallback(t *testing.T) {
	noDevice := func() rdma.Fabric { return rdma.NoFabric(errors.New("no card in this machine")) }
	for _, tc := range []struct {
		name           string
		server, client nodeOptions
		dial           string // parameters
		text           string // of the client's reason; empty: on RDMA
		serverText     string
	}{
		{name: "not needed"},
		{name: "no device there", server: nodeOptions{fabric: noDevice()}, text: `the peer's loop runs on "udp", this one on "none"`, serverText: `on "none"`},
		{name: "no device here", client: nodeOptions{fabric: noDevice()}, text: "no card in this machine", serverText: "the peer: no card in this machine"},
		{name: "no device at either end", server: nodeOptions{fabric: noDevice()}, client: nodeOptions{fabric: noDevice()}, text: "no card in this machine", serverText: "no card in this machine"},
		{name: "other fabrics", client: nodeOptions{name: "infiniband"}, text: `the peer's loop runs on "infiniband", this one on "udp"`, serverText: `runs on "infiniband"`},
		{name: "limits", client: nodeOptions{wrap: func(d rdma.Device) rdma.Device { return smallMessages{d} }}, text: "larger than the largest message", serverText: "larger than the largest message"},
		{name: "other device", dial: "&device=mlx5_0", text: `asks for device "mlx5_0"`, serverText: `asks for device "mlx5_0"`},
		{name: "packets are lost", server: nodeOptions{wrap: func(d rdma.Device) rdma.Device { return wrongPort{d} }, mayRNR: true}, client: nodeOptions{timeout: 200 * time.Millisecond},
			text: "UDP port 9 of 127.0.0.1", serverText: "UDP port 9 of 127.0.0.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.server.tcp, tc.client.tcp = true, true
			server, client := startNode(t, tc.server), startNode(t, tc.client)
			at := make(chan netpoll.Transport, 1)
			ln, err := server.loop.Listen("rdma://127.0.0.1:0?fallback=tcp", &reporter{transport: at})
			if err != nil {
				t.Fatal(err)
			}
			h := newCollector()
			c := client.dial(ln.URL()+tc.dial, h)
			for k, got := range []netpoll.Transport{c.Transport(), <-at} {
				text := [...]string{tc.text, tc.serverText}[k]
				want := netpoll.Transport{Scheme: "tcp", Device: "epoll", Label: "kernel", Reason: got.Reason}
				if text == "" {
					want = netpoll.Transport{Scheme: "rdma", Device: "softroce+udp", Label: "user-space", Reason: "asked for"}
				} else if !strings.HasPrefix(got.Reason, "fall-back from rdma: ") || !strings.Contains(got.Reason, text) {
					t.Errorf("reason %q, want %q", got.Reason, text)
				}
				if got != want {
					t.Errorf("got %+v", got)
				}
			}
			for _, n := range []*node{server, client} {
				if got := n.el.Stats().Fallbacks; got != uint64(min(1, len(tc.text))) {
					t.Errorf("%d fall-backs", got)
				}
			}
			for i, size := range []int{1, 100_000} {
				client.do(func() {
					if err := sendCopy(c, pattern(i, size)); err != nil {
						t.Error(err)
					}
				})
				if got := h.next(t); len(got) != size {
					t.Errorf("%d bytes of %d", len(got), size)
				}
			}
			client.do(func() { c.Close(nil) })
			if err := h.waitClose(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// reporter is an echo that tells what it runs on.
type reporter struct {
	echo
	transport chan netpoll.Transport
}

func (r *reporter) OnOpen(c *netpoll.Conn) {
	r.echo.OnOpen(c)
	r.transport <- c.Transport()
}

// One end alone cannot fall back: the other has not asked for it.
func TestFallbackNeedsBoth(t *testing.T) {
	for _, tc := range []struct{ name, listen, dial, text string }{
		{"only the dialler", "", "?fallback=tcp", "it takes fallback=tcp in both addresses"},
		{"only the listener", "?fallback=tcp", "", "no card"},
		{"neither", "", "", "no card"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := startNode(t, nodeOptions{tcp: true})
			client := startNode(t, nodeOptions{tcp: true, fabric: rdma.NoFabric(errors.New("no card"))})
			ln, err := server.loop.Listen("rdma://127.0.0.1:0"+tc.listen, &echo{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.loop.Dial(testCtx(t), strings.Split(ln.URL(), "?")[0]+tc.dial, newCollector())
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	server := startNode(t, nodeOptions{})
	for _, tc := range []struct{ url, text string }{
		{"rdma://127.0.0.1:0?fallback=tcp", "needs netpoll.NewTCP()"},
		{"rdma://127.0.0.1:0?fallback=udp", "fallback=tcp behind ?"},
	} {
		if _, err := server.loop.Listen(tc.url, &echo{}); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", tc.url, err)
		}
	}
	none := startNode(t, nodeOptions{fabric: rdma.NoFabric(errors.New("no card"))})
	if _, err := none.loop.Listen("rdma://127.0.0.1:0", &echo{}); err == nil || !strings.Contains(err.Error(), "no card") {
		t.Errorf("got %v", err)
	}
}

// A release that speaks another bootstrap can still agree to stay on TCP.
func TestFallbackOfOtherVersion(t *testing.T) {
	server := startNode(t, nodeOptions{tcp: true})
	sh := newCollector()
	ln, err := server.loop.Listen("rdma://127.0.0.1:0?fallback=tcp", sh)
	if err != nil {
		t.Fatal(err)
	}
	nc := dialTCP(t, strings.Split(ln.URL(), "?")[0])
	if _, err := nc.Write(otherVersion(frame(t, &bootstrap.Hello{Instance: bootstrap.Instance{1}, Fabric: "udp", Fallback: true}))); err != nil {
		t.Fatal(err)
	}
	_, err = bootstrap.Receive(nc)
	var fallback *bootstrap.FallbackError
	if !errors.As(err, &fallback) || !strings.Contains(fallback.Reason, "bootstrap version 3, this side 2") {
		t.Fatal(err)
	}
	if _, err := nc.Write(otherVersion(frame(t, &bootstrap.Fallback{Reason: "fine"}))); err != nil {
		t.Fatal(err)
	}
	if _, err := netpoll.Handshake(nc, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write([]byte("\x00\x00\x00\x05hello")); err != nil {
		t.Fatal(err)
	}
	if got := sh.next(t); string(got) != "hello" {
		t.Errorf("got %q", got)
	}
	nc.Close()
	_ = sh.waitClose(t)
}

// A peer whose process stands still is noticed although nothing is sent, and one
// that is only idle is left alone.
func TestBeats(t *testing.T) {
	t.Cleanup(rdma.SetBeatInterval(100 * time.Millisecond))
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	_, ch, sh := pair(t, server, client, nil)
	still := newCollector()
	r := dialRaw(t, server.listen(still), nil)
	if err := still.waitClose(t); err == nil || !strings.Contains(err.Error(), "was silent for 300ms: it stands still") {
		t.Errorf("got %v", err)
	}
	var m bootstrap.Message
	for {
		var err error
		if m, err = r.bye(); err != nil {
			t.Fatal(err)
		}
		if _, beat := m.(*bootstrap.Beat); !beat {
			break
		}
	}
	if refusal, ok := m.(*bootstrap.Refusal); !ok || !strings.Contains(refusal.Reason, "silent") {
		t.Errorf("the peer was told %+v", m)
	}
	time.Sleep(500 * time.Millisecond)
	select {
	case err := <-ch.closed:
		t.Errorf("idle: %v", err)
	case err := <-sh.closed:
		t.Errorf("idle: %v", err)
	default:
	}
}

// Hundreds of peers that connect and say nothing do not keep a good one out.
func TestSilentFlood(t *testing.T) {
	server := startNode(t, nodeOptions{})
	url := server.listen(newCollector())
	for range 600 {
		dialTCP(t, url)
	}
	client := startNode(t, nodeOptions{})
	start := time.Now()
	client.dial(url, newCollector())
	if took := time.Since(start); took > bootstrap.StepTimeout {
		t.Errorf("it had to wait %v", took)
	}
}
