package afxdp

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/porttest"
)

var serial atomic.Int32

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Skipf("no network namespace with a veth pair: ip %s: %v: %s (needs root and iproute2)", strings.Join(args, " "), err, out)
	}
}

// veth makes a pair of devices in a namespace of its own, where nothing else
// talks, and runs fn there.
func veth(t testing.TB, mtu int, fn func(a, b string)) {
	t.Helper()
	ns := fmt.Sprintf("mr-xdp-%d-%d", os.Getpid(), serial.Add(1))
	ip(t, "netns", "add", ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	ip(t, "-n", ns, "link", "add", "x0", "type", "veth", "peer", "name", "x1")
	if out, err := exec.Command("ip", "netns", "exec", ns, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6").CombinedOutput(); err != nil {
		t.Logf("IPv6 stays on: %v: %s", err, out)
	}
	for _, dev := range []string{"x0", "x1"} {
		ip(t, "-n", ns, "link", "set", dev, "mtu", fmt.Sprint(mtu), "up")
	}
	inside(t, ns, func() { fn("x0", "x1") })
}

// inside runs fn in a namespace. The thread of a failed fn is not used again.
func inside(t testing.TB, ns string, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + ns)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	fn()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	runtime.UnlockOSThread()
}

func open(t testing.TB, netdev string, cfg Config) *Port {
	t.Helper()
	n, err := Attach(netdev, Match{All: true})
	need(t, err)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := n.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestConform(t *testing.T) {
	for _, mtu := range []int{1500, 3498} {
		t.Run(fmt.Sprint("mtu ", mtu), func(t *testing.T) {
			porttest.ConformLossy(t, func(t *testing.T) (a, b dpdk.Port) {
				veth(t, mtu, func(x0, x1 string) {
					a, b = open(t, x0, Config{Ring: 256}), open(t, x1, Config{Ring: 256})
				})
				t.Logf("%s and %s: %s", a.Info().Name, b.Info().Name, a.Info().Driver)
				return a, b
			})
		})
	}
}

// A second program, and a second socket on the queue, are refused by name.
func TestBusy(t *testing.T) {
	veth(t, 1500, func(x0, _ string) {
		p := open(t, x0, Config{})
		if _, err := Attach(x0, Match{All: true}); err == nil || !strings.Contains(err.Error(), "another XDP program is on the device") {
			t.Errorf("second program: %v", err)
		}
		if _, err := p.netdev.Open(Config{}); err == nil || !strings.Contains(err.Error(), "another socket has it") {
			t.Errorf("second socket: %v", err)
		}
		if _, err := p.netdev.Open(Config{Queue: 7}); err == nil || !strings.Contains(err.Error(), "no such queue") {
			t.Errorf("queue 7: %v", err)
		}
		if _, err := p.netdev.Open(Config{Ring: 100}); err == nil || !strings.Contains(err.Error(), "power of two") {
			t.Errorf("ring of 100: %v", err)
		}
	})
	if _, err := Attach("nosuchdev0", Match{All: true}); err == nil || !strings.Contains(err.Error(), "nosuchdev0") {
		t.Errorf("no such device: %v", err)
	}
}

// A queue can be taken again at once.
func TestReopen(t *testing.T) {
	veth(t, 1500, func(x0, _ string) {
		n, err := Attach(x0, Match{All: true})
		need(t, err)
		for range 5 {
			p, err := n.Open(Config{Ring: 64})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A port that sends back what it received, and never asks for an empty frame, does not
// run out of frames.
func TestSendsOn(t *testing.T) {
	veth(t, 1500, func(x0, x1 string) {
		porttest.SendsOn(t, func(t *testing.T) (dpdk.Port, dpdk.Port) {
			return open(t, x0, Config{Ring: 64}), open(t, x1, Config{Ring: 64})
		})
	})
}

// A driver without frames to receive into that says so after the last refill is woken
// when nothing comes; else it and the port would wait for each other.
func TestWakesADriverWithoutFrames(t *testing.T) {
	veth(t, 1500, func(x0, _ string) {
		p := open(t, x0, Config{Ring: 64})
		var f [1]dpdk.Frame
		p.RxBurst(f[:])
		before := p.Stats().Kicks
		atomic.StoreUint32(p.fill.flags, unix.XDP_RING_NEED_WAKEUP) // as a driver does
		p.RxBurst(f[:])
		if kicks := p.Stats().Kicks - before; kicks != 1 {
			t.Errorf("%d kicks", kicks)
		}
		atomic.StoreUint32(p.fill.flags, 0)
		p.RxBurst(f[:])
		if kicks := p.Stats().Kicks - before; kicks != 1 {
			t.Errorf("%d kicks after the flag was gone", kicks)
		}
	})
}
