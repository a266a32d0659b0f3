package transports

import (
	"net/url"
	"strings"
	"testing"
)

func TestDeviceOfAnAddress(t *testing.T) {
	for _, tc := range []struct{ url, want, err string }{
		{"tcp://127.0.0.1:1", "epoll", ""},
		{"rdma://127.0.0.1:1", SoftRoCEUDP, ""},
		{"rdma://127.0.0.1:1?device=softroce+udp", SoftRoCEUDP, ""},
		{"dpdk://127.0.0.1:1", Memif, ""},
		{"dpdk://127.0.0.1:1?port=memif", Memif, ""},
		{"dpdk://127.0.0.1:1?port=net_memif0", NetMemif, ""},
		{"dpdk://127.0.0.1:1?port=net_memif", NetMemif, ""},
		{"dpdk://127.0.0.1:1?port=net_nosuch", "", "use memif, net_memif0"},
	} {
		u, err := url.Parse(tc.url)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := ByScheme(u.Scheme)
		if err != nil {
			t.Fatal(err)
		}
		d, err := tr.Device(u)
		if d.Name != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %q, %v", tc.url, d.Name, err)
		}
	}
}
