//go:build dpdk && cgo

package eal_test

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/dpdk/porttest"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma"
)

var kinds = []struct {
	name           string
	serving, other func() dpdk.Pairs
}{
	{"libdpdk with libdpdk", libdpdk, libdpdk},
	{"libdpdk serves pure Go", libdpdk, pureGo},
	{"pure Go serves libdpdk", pureGo, libdpdk},
}

func libdpdk() dpdk.Pairs { return &eal.Pairs{} }
func pureGo() dpdk.Pairs  { return &memif.Pairs{} }

func needEAL(t *testing.T) {
	t.Helper()
	if err := eal.Init(); err != nil {
		t.Skipf("libdpdk does not start here: %v", err)
	}
}

func TestPairsConform(t *testing.T) {
	needEAL(t)
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			porttest.Conform(t, func(t *testing.T) (dpdk.Port, dpdk.Port) {
				serving, other := k.serving(), k.other()
				t.Cleanup(func() { serving.Close(); other.Close() })
				a, link, err := serving.Serve(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { a.Close() })
				b, err := other.Join(t.Context(), link)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { b.Close() })
				return a, b
			})
		})
	}
}

func startLoop(t *testing.T, pairs dpdk.Pairs) *netpoll.Loop {
	t.Helper()
	return startLoopOn(t, dpdk.NewEventLoop(pairs, rdma.EventLoopOptions{}))
}

func startLoopOn(t *testing.T, backend netpoll.Backend) *netpoll.Loop {
	t.Helper()
	return looptest.Start(t, netpoll.Options{Idle: netpoll.Balanced(), Backends: []netpoll.Backend{backend}})
}

// Messages of every size, there and back over dpdk://, between loops whose ports
// are of libdpdk on one side or both.
func TestEventLoopEcho(t *testing.T) {
	needEAL(t)
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			server, client := startLoop(t, kind.serving()), startLoop(t, kind.other())
			ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
			if err != nil {
				t.Fatal(err)
			}
			looptest.Dial(t, client, ln.URL(), 0, 1, 128, 4096, 8193, 100_000, 1<<20, 5)
		})
	}
}

// The socket goes with the last Pairs that served, and a later one makes another.
func TestSocketGoesWithTheLastPairs(t *testing.T) {
	needEAL(t)
	join := func(link map[string]string) {
		t.Helper()
		p, err := pureGo().Join(t.Context(), link)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	socket := ""
	for range 40 { // more than libdpdk has ports
		one, two := libdpdk(), libdpdk()
		a, linkA, err := one.Serve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, linkB, err := two.Serve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if linkA["memif-socket"] != linkB["memif-socket"] || linkA["memif-socket"] == socket {
			t.Errorf("sockets %q and %q, earlier %q", linkA, linkB, socket)
		}
		socket = linkA["memif-socket"]
		for range 2 {
			if err := one.Close(); err != nil {
				t.Error(err)
			}
		}
		join(linkB) // the other still serves
		if err := two.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", socket, err)
		}
		a.Close()
		b.Close()
	}
}
