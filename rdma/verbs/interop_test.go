package verbs_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/devicetest"
	"github.com/millrace/millrace/rdma/softroce"
	"github.com/millrace/millrace/rdma/verbs"
)

// peer is where the user-space engine lives, as an
// independent peer of the device: another network namespace, since UDP port 4791 of the
// first one is the kernel's. IPv6, because a UDP socket does not show the
// identification of IPv4, which the ICRC covers and rdma_rxe counts up.
func peer(t testing.TB) (netns string, addr netip.Addr) {
	t.Helper()
	needDevice(t)
	netns = os.Getenv("MILLRACE_RDMA_PEER_NETNS")
	if netns == "" {
		t.Skip("no network namespace for a peer: scripts/soft-roce/with-device.sh makes one")
	}
	addr, err := netip.ParseAddr(os.Getenv("MILLRACE_RDMA_PEER_ADDRESS6"))
	if err != nil {
		t.Fatalf("MILLRACE_RDMA_PEER_ADDRESS6: %v", err)
	}
	return netns, addr
}

// newEngine makes a user-space device whose socket is in the peer's namespace.
func newEngine(t testing.TB, o softroce.Options) *softroce.Device {
	t.Helper()
	netns, addr := peer(t)
	var link *softroce.UDPLink
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			fd, err := unix.Open("/run/netns/"+netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("network namespace %s: %w", netns, err)
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("setns: %w", err)
			}
			link, err = softroce.NewUDPLink(netip.AddrPortFrom(addr, 4791))
			return err
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return softroce.New(link, o)
}

// The engine and the kernel's implementation, written by strangers, must
// understand each other in every part of the suite.
func TestInterop(t *testing.T) {
	_, addr := peer(t)
	engine := func(t *testing.T) rdma.Device {
		return newEngine(t, softroce.Options{PeerTimeout: 500 * time.Millisecond})
	}
	kernel := func(t *testing.T) rdma.Device { return openDevice(t, verbs.Choice{Remote: addr}) }
	for _, tc := range []struct {
		name string
		a, b func(*testing.T) rdma.Device
	}{{"EngineToKernel", engine, kernel}, {"KernelToEngine", kernel, engine}} {
		t.Run(tc.name, func(t *testing.T) {
			devicetest.Run(t, devicetest.Setup{
				Open:     func(t *testing.T) devicetest.Pair { return devicetest.Pair{A: tc.a(t), B: tc.b(t)} },
				DeadPeer: 10 * time.Second,
			})
		})
	}
}

func TestInteropEventLoop(t *testing.T) {
	_, addr := peer(t)
	backends := map[string]func() netpoll.Backend{
		"engine": func() netpoll.Backend {
			return rdma.NewEventLoop(rdma.DeviceFabric(verbs.FabricName, newEngine(t, softroce.Options{})), rdma.EventLoopOptions{})
		},
		"kernel": func() netpoll.Backend { return verbsLoop(t, verbs.Choice{Remote: addr}) },
	}
	for _, names := range [][2]string{{"engine", "kernel"}, {"kernel", "engine"}} {
		t.Run(names[0]+" dials "+names[1], func(t *testing.T) {
			server := startLoop(t, backends[names[1]](), netpoll.Efficient())
			client := startLoop(t, backends[names[0]](), netpoll.Efficient())
			roundTrips(t, client, listen(t, server, "rdma://127.0.0.1:0", echo{}))
		})
	}
}
