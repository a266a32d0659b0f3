package transports

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma/softroce"
	"github.com/millrace/millrace/rdma/verbs"
)

func TestWith(t *testing.T) {
	for _, tt := range []struct{ url, device, want string }{
		{"tcp://127.0.0.1:1", "epoll", "tcp://127.0.0.1:1"},
		{"rdma://127.0.0.1:1", "", "rdma://127.0.0.1:1"},
		{"rdma://127.0.0.1:1", "rxe0", "rdma://127.0.0.1:1?device=rxe0"},
		{"rdma://127.0.0.1:1?device=rxe0", SoftRoCEUDP, "rdma://127.0.0.1:1?device=softroce%2Budp"},
		{"rdma://127.0.0.1:1?fallback=tcp", "rxe0", "rdma://127.0.0.1:1?device=rxe0&fallback=tcp"},
		{"dpdk://127.0.0.1:1", NetMemif, "dpdk://127.0.0.1:1?port=net_memif0"},
		{"udp://127.0.0.1:1", "x", "udp://127.0.0.1:1"},
	} {
		if got := With(tt.url, tt.device); got != tt.want {
			t.Errorf("With(%q, %q) = %q, want %q", tt.url, tt.device, got, tt.want)
		}
	}
}

func TestBackendsRefuse(t *testing.T) {
	for _, tt := range []struct {
		urls []string
		want string
	}{
		{[]string{"127.0.0.1:7000"}, "looks like tcp://"},
		{[]string{"udp://127.0.0.1:7000"}, "use tcp, rdma, dpdk"},
		{[]string{"rdma://localhost"}, "needs a port"},
		{[]string{"tcp://127.0.0.1:65536"}, "needs a port"},
		{[]string{"rdma://127.0.0.1:7000?device=nonesuch9"}, SoftRoCEUDP},
		{[]string{"rdma://127.0.0.1:7000?device=nonesuch9"}, "softroce+packet:NETDEV"},
		{[]string{"rdma://127.0.0.1:7000?device=softroce+packet:nonesuch9"}, `no network device "nonesuch9"`},
		{[]string{"dpdk://127.0.0.1:7000?port=nonesuch9"}, "use memif, net_memif0, afxdp:NETDEV, a device of libdpdk"},
		{[]string{"tcp://127.0.0.1:1", "rdma://127.0.0.1:7000?gid=1"}, `unknown parameter "gid"`},
		{[]string{"dpdk://127.0.0.1:7000", "dpdk://127.0.0.1:7001?port=net_memif0"}, "share a device"},
	} {
		if _, err := Backends(tt.urls...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.urls, err, tt.want)
		}
	}
}

// Everything that speaks RoCEv2 on port 4791 is one network.
func TestRoCEv2IsOneFabric(t *testing.T) {
	if softroce.PacketFabricName != verbs.FabricName {
		t.Errorf("%q and %q", softroce.PacketFabricName, verbs.FabricName)
	}
}

func TestEveryDefaultIsOne(t *testing.T) {
	for _, tr := range All() {
		defaults := 0
		for _, d := range tr.Devices() {
			if d.Default {
				defaults++
				if un := d.Probe(); un != nil {
					t.Errorf("%s: the default cannot run: %v", tr.Scheme, un)
				}
			}
		}
		if defaults != 1 {
			t.Errorf("%s: %d defaults", tr.Scheme, defaults)
		}
	}
}

// start runs a loop with the backends of an address until the test ends.
func start(t *testing.T, url string) *netpoll.Loop {
	t.Helper()
	backends, err := Backends(url)
	if un, ok := err.(*Unavailable); ok {
		t.Skip(un)
	}
	if err != nil {
		t.Fatal(err)
	}
	return looptest.Start(t, netpoll.Options{Backends: backends})
}

// A device named in an address is this end's own: it is used here, and the address
// that peers get leaves it out.
func TestNamedDevices(t *testing.T) {
	for _, u := range []string{
		"tcp://127.0.0.1:0", "rdma://127.0.0.1:0?device=softroce+udp", "dpdk://127.0.0.1:0?port=memif", "dpdk://127.0.0.1:0?port=net_memif0",
		"rdma://127.0.0.1:0?device=softroce+packet", "rdma://127.0.0.1:0?device=softroce+packet:lo",
	} {
		t.Run(u, func(t *testing.T) {
			server, client := start(t, u), start(t, u)
			ln, err := server.Listen(u, looptest.Echo{})
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(ln.URL(), "?") {
				t.Errorf("peers are told %s", ln.URL())
			}
			parsed, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			// The same address with the device named again: the dialing end's own.
			conn := looptest.Dial(t, client, ln.URL()+"?"+parsed.RawQuery, 5)
			// Ports of libdpdk are numbered in their process.
			if d := strings.TrimRight(conn.Transport().Device, "0123456789"); parsed.RawQuery != "" && !strings.Contains(parsed.RawQuery, d) {
				t.Errorf("it runs on %s", d)
			}
		})
	}
}

// An address whose device cannot be had here serves, and reaches, the other end over
// TCP if it says that it may, and tells why.
func TestFallback(t *testing.T) {
	if _, err := Backends("rdma://127.0.0.1:0?device=nosuch0"); err == nil {
		t.Error("a device that is not there was found")
	}
	const here = "rdma://127.0.0.1:0?fallback=tcp"
	server := start(t, here)
	ln, err := server.Listen(here, looptest.Echo{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(ln.URL(), "?fallback=tcp") {
		t.Errorf("peers are told %s", ln.URL())
	}
	to := With(ln.URL(), "nosuch0")
	client := start(t, to)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, to, netpoll.BaseHandler{})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Transport(); got.Scheme != "tcp" || !strings.Contains(got.Reason, "fall-back from rdma") || !strings.Contains(got.Reason, `no device "nosuch0" here`) {
		t.Errorf("got %+v", got)
	}
}
