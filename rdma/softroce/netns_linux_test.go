package softroce

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lossyNamespaces makes two network namespaces with a veth pair between them, and a
// rule in either that drops some of the UDP packets that arrive.
func lossyNamespaces(t *testing.T, percent float64) (names [2]string, addrs [2]netip.Addr) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v (scripts/deps.sh test)", err)
		}
	}
	run := func(stdin string, args ...string) error {
		c := exec.Command(args[0], args[1:]...)
		c.Stdin = strings.NewReader(stdin)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	tag := fmt.Sprintf("mr%d-%x", os.Getpid(), rand.Uint32()&0xffff)
	for i, end := range []string{"a", "b"} {
		names[i] = tag + end
		addrs[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})
		if err := run("", "ip", "netns", "add", names[i]); err != nil {
			t.Skip(err) // a container may forbid it
		}
		t.Cleanup(func() {
			if err := run("", "ip", "netns", "del", names[i]); err != nil {
				t.Error(err)
			}
		})
	}
	if err := run("", "ip", "link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth0", "netns", names[1]); err != nil {
		t.Skip(err)
	}
	rule := fmt.Sprintf("table inet loss {\n chain input {\n type filter hook input priority 0\n meta l4proto udp numgen random mod 10000 < %d drop\n }\n}\n", int(percent*100))
	for i, name := range names {
		for _, args := range [][]string{{"addr", "add", addrs[i].String() + "/24", "dev", "veth0"}, {"link", "set", "veth0", "up"}} {
			if err := run("", append([]string{"ip", "-n", name}, args...)...); err != nil {
				t.Skip(err) // ip mounts /sys anew for that, which a chroot may forbid
			}
		}
		if err := run(rule, "ip", "netns", "exec", name, "nft", "-f", "-"); err != nil {
			if strings.Contains(err.Error(), "syntax error") {
				t.Fatal(err)
			}
			t.Skip(err) // a kernel without nf_tables
		}
	}
	return names, addrs
}

// linkInside makes a UDP link in a network namespace; its socket stays there.
func linkInside(t *testing.T, name string, addr netip.Addr) Link {
	t.Helper()
	type result struct {
		link Link
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine: it is in the wrong place
		ns, err := os.Open("/run/netns/" + name)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			made <- result{nil, err}
			return
		}
		l, err := NewUDPLink(netip.AddrPortFrom(addr, 0))
		made <- result{l, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.link
}

// TestLossBetweenNamespaces: the kernel's own network loses packets, and every
// operation is done once and in order.
func TestLossBetweenNamespaces(t *testing.T) {
	for seed, percent := range []float64{0.1, 1, 5, 20} {
		t.Run(fmt.Sprintf("%g%%", percent), func(t *testing.T) {
			names, addrs := lossyNamespaces(t, percent)
			o := options{slot: 6000, depth: 32, open: 64 << 10, rdAtomic: 8, shared: seed%2 == 1, peerTimeout: time.Minute}
			var ns [2]*node
			for i := range ns {
				ns[i] = newNode(t, linkInside(t, names[i], addrs[i]), o)
			}
			a, b := ns[0], ns[1]
			mtu := min(a.dev.Attr().PathMTU, b.dev.Attr().PathMTU)
			if err := a.qp.Connect(b.remote(mtu)); err != nil {
				t.Fatal(err)
			}
			if err := b.qp.Connect(a.remote(mtu)); err != nil {
				t.Fatal(err)
			}
			count := 1500
			if testing.Short() || raceDetector {
				count = 300
			}
			ms := newModels(t, uint64(seed), count, a, b)
			for end := monotonic() + int64(2*time.Minute); !ms.pump(t); {
				now := monotonic()
				if work, _ := a.dev.Progress(now); work == 0 {
					if work, _ = b.dev.Progress(now); work == 0 {
						runtime.Gosched()
					}
				} else {
					b.dev.Progress(now)
				}
				if now > end {
					t.Fatalf("%d and %d of %d\na: %+v\nb: %+v", ms[0].done, ms[1].done, count, a.dev.Stats(), b.dev.Stats())
				}
			}
			ms.check(t)
			sa, sb := a.dev.Stats(), b.dev.Stats()
			t.Logf("%d + %d packets, %d sent again, %d time-outs", sa.TxPackets, sb.TxPackets, sa.Retransmitted+sb.Retransmitted, sa.Timeouts+sb.Timeouts)
			if percent >= 1 && sa.Retransmitted+sb.Retransmitted == 0 {
				t.Error("the rule dropped nothing")
			}
		})
	}
}
