//go:build dpdk && cgo

package transports_test

import (
	"testing"

	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
)

func loop(t *testing.T, url string) *netpoll.Loop {
	t.Helper()
	backends, err := transports.Backends(url)
	if err != nil {
		t.Fatal(err)
	}
	return looptest.Start(t, netpoll.Options{Idle: netpoll.Balanced(), Backends: backends})
}

// An address chooses a port of libdpdk or the one in pure Go for its own end; the
// other end may have chosen otherwise.
func TestPortsOfEitherKindMeet(t *testing.T) {
	if err := eal.Init(); err != nil {
		t.Skipf("libdpdk does not start here: %v", err)
	}
	for _, tc := range []struct{ name, listen, dial string }{
		{"libdpdk dials", "?port=memif", "?port=net_memif"},
		{"libdpdk on both ends", "?port=net_memif", "?port=net_memif0"},
		{"libdpdk listens", "?port=net_memif", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			url := "dpdk://127.0.0.1:0" + tc.listen
			server := loop(t, url)
			ln, err := server.Listen(url, looptest.Echo{})
			if err != nil {
				t.Fatal(err)
			}
			to := transports.With(ln.URL(), tc.dial[min(len("?port="), len(tc.dial)):])
			looptest.Dial(t, loop(t, to), to, 1500)
		})
	}
}
