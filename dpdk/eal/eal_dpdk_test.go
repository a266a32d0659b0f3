//go:build dpdk && cgo

package eal

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/porttest"
)

// PeerKinds is what the external tests of this package start in other processes.
var PeerKinds map[string]func() dpdk.Pairs

// MistakeMain is what TestMistakes of the external tests does in other processes.
var MistakeMain func(arg string) int

func TestMain(m *testing.M) {
	porttest.PeerMain(PeerKinds)
	if fn := os.Getenv("MILLRACE_EAL_PEER"); fn != "" {
		os.Exit(peerMain(fn))
	}
	if arg := os.Getenv("MILLRACE_EAL_MISTAKE"); arg != "" {
		os.Exit(MistakeMain(arg))
	}
	code := m.Run()
	if err := RemoveSocket(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// start skips the test where libdpdk cannot start on this machine.
func start(t testing.TB) {
	t.Helper()
	if err := Init(); err != nil {
		t.Skipf("libdpdk does not start here: %v", err)
	}
}

func pair(t testing.TB, opts Options) (a, b Port) {
	t.Helper()
	start(t)
	a, where, err := NewMemif(t.Context(), MemifConfig{Role: Server, Options: opts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIfOpen(t, a) })
	b, _, err = NewMemif(t.Context(), MemifConfig{Role: Client, Socket: where.Socket, ID: where.ID, Secret: where.Secret, Options: opts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIfOpen(t, b) })
	return a, b
}

func closeIfOpen(t testing.TB, p Port) {
	t.Helper()
	if err := p.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestMemifConforms(t *testing.T) {
	porttest.Conform(t, func(t *testing.T) (dpdk.Port, dpdk.Port) {
		a, b := pair(t, Options{})
		return a, b
	})
}

func TestMemifConformsFromTheClient(t *testing.T) {
	porttest.Conform(t, func(t *testing.T) (dpdk.Port, dpdk.Port) {
		a, b := pair(t, Options{FrameBytes: 2048, Ring: 64})
		return b, a
	})
}

func TestMemifSendsOn(t *testing.T) {
	porttest.SendsOn(t, func(t *testing.T) (dpdk.Port, dpdk.Port) {
		a, b := pair(t, Options{})
		return a, b
	})
}

func TestMemifIsGuarded(t *testing.T) {
	a, b := pair(t, Options{})
	if !a.Guarded() || !b.Guarded() {
		t.Fatalf("net_memif of libdpdk %s is laid out in an unknown way: server guarded %v, client %v", Version(), a.Guarded(), b.Guarded())
	}
}

func TestInitKeepsThreadsUnpinned(t *testing.T) {
	start(t)
	want := len(allowedCPUs())
	for range 20 { // threads made after Init
		done := make(chan int)
		go func() {
			runtime.LockOSThread() // ends with the goroutine
			done <- threadCPUs()
		}()
		if got := <-done; got != want {
			t.Fatalf("a thread may run on %d CPUs, the process on %d", got, want)
		}
	}
}

func TestInitTwice(t *testing.T) {
	start(t)
	if err := Init(); err != nil {
		t.Fatal(err)
	}
	if err := Init("--vdev=net_null9"); err == nil || !strings.Contains(err.Error(), "once per process") {
		t.Fatalf("other arguments: %v", err)
	}
}

func TestErrorsNameStepAndCause(t *testing.T) {
	start(t)
	for _, tc := range []struct {
		name string
		open func() ([]Port, error)
		want []string
	}{
		{"no such driver", func() ([]Port, error) { return NewVdev("net_nosuch0", "", 1, Options{}) }, []string{"rte_eal_hotplug_add", "net_nosuch0"}},
		{"no such device", func() ([]Port, error) { return Open("0000:99:00.0", 1, Options{}) }, []string{"rte_eth_dev_get_port_by_name", "0000:99:00.0"}},
		{"bad argument", func() ([]Port, error) { return NewVdev("net_memif77", "role=server,rsize=99", 1, Options{}) }, []string{"Invalid ring size"}},
		{"frame too large", func() ([]Port, error) { return NewVdev("net_null0", "", 1, Options{FrameBytes: 1 << 20}) }, []string{"Options.FrameBytes", "1048576"}},
		{"MTU beyond the device's", func() ([]Port, error) { return NewVdev("net_af_packet8", "iface=lo", 1, Options{MTU: 9000}) }, []string{"rte_eth_dev_configure", "max frame size"}},
		{"no such interface", func() ([]Port, error) { return NewVdev("net_af_packet8", "iface=nonesuch9", 1, Options{}) }, []string{"rte_eal_hotplug_add", "net_af_packet8"}},
		{"no queue", func() ([]Port, error) { return NewVdev("net_null0", "", 0, Options{}) }, []string{"0 queues of net_null0"}},
		{"more queues than it has", func() ([]Port, error) { return NewVdev("net_ring8", "", 40, Options{}) }, []string{"rte_eth_dev_configure", "net_ring8"}},
		{"client without server", func() ([]Port, error) {
			p, _, err := NewMemif(t.Context(), MemifConfig{Role: Client, Socket: "/tmp/millrace-no-such.sock", Secret: "x"})
			return []Port{p}, err
		}, []string{"rte_eth_dev_start", "Failed to connect socket"}},
		{"injected argument", func() ([]Port, error) {
			p, _, err := NewMemif(t.Context(), MemifConfig{Role: Client, Socket: "/tmp/x,zero-copy=yes", Secret: "x"})
			return []Port{p}, err
		}, []string{"not a memif socket"}},
		{"relative socket", func() ([]Port, error) {
			p, _, err := NewMemif(t.Context(), MemifConfig{Role: Client, Socket: "x.sock", Secret: "x"})
			return []Port{p}, err
		}, []string{"absolute path"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := tc.open()
			if err == nil {
				p[0].Close()
				t.Fatal("it worked")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

// A device of another driver: net_ring gives back what it is given.
func TestRingLoops(t *testing.T) {
	start(t)
	ports, err := NewVdev("net_ring0", "", 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := ports[0]
	defer closeIfOpen(t, p)
	if p.Guarded() || !strings.HasPrefix(p.Info().Driver, "net_ring") {
		t.Fatalf("%+v", p.Info())
	}
	var f [8]dpdk.Frame
	for round := range 200 {
		n := p.AllocBurst(f[:])
		for i := range n {
			f[i].Len = 60 + i
			f[i].Data[0] = byte(round)
		}
		sent := p.TxBurst(f[:n])
		p.FreeBurst(f[sent:n])
		got := 0
		for range 10 {
			m := p.RxBurst(f[:])
			for i := range m {
				if f[i].Len != 60+got+i || f[i].Data[0] != byte(round) {
					t.Fatalf("frame %d: %d bytes, round %d", got+i, f[i].Len, f[i].Data[0])
				}
			}
			got += m
			p.FreeBurst(f[:m])
		}
		if got != sent || sent != 8 {
			t.Fatalf("round %d: sent %d, received %d", round, sent, got)
		}
	}
}

// A port leaves neither descriptors nor memory of libdpdk behind, whichever end
// goes first and whether a peer came or not.
func TestPortsLeakNothing(t *testing.T) {
	start(t)
	once := func() {
		for _, clientFirst := range []bool{true, false} {
			a, b := pair(t, Options{})
			mustUp(t, a)
			if !clientFirst {
				a, b = b, a
			}
			closeIfOpen(t, b)
			closeIfOpen(t, a)
		}
		a, _, err := NewMemif(t.Context(), MemifConfig{Role: Server})
		if err != nil {
			t.Fatal(err)
		}
		closeIfOpen(t, a)
	}
	once() // makes the process's one listener
	fds, heap := openFDs(t), HeapBytes()
	for range 10 {
		once()
	}
	if after := openFDs(t); after > fds {
		t.Errorf("%d descriptors before, %d after 50 ports", fds, after)
	}
	if after := HeapBytes(); heap == 0 || after > heap {
		t.Errorf("%d bytes of libdpdk's heaps in use before, %d after 50 ports", heap, after)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	time.Sleep(50 * time.Millisecond) // libdpdk's interrupt thread closes its side
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func mustUp(t testing.TB, p Port) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !p.Up(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come up", p.Info().Name)
		}
	}
}
