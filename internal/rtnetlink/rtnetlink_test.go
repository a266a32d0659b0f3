package rtnetlink

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOpenRefuses(t *testing.T) {
	if _, err := Open("no-such-device"); err == nil || !strings.Contains(err.Error(), "ip link") {
		t.Errorf("Open: %v", err)
	}
}

func TestLoopback(t *testing.T) {
	d, err := Open("lo")
	if err != nil {
		t.Skip(err)
	}
	r, err := d.Route(netip.MustParseAddr("127.0.0.1"))
	if err != nil || !r.Local || r.Gateway.IsValid() {
		t.Errorf("%+v, %v", r, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
	if _, err := d.Route(netip.MustParseAddr("127.0.0.1")); err == nil {
		t.Error("a closed device answers")
	}
}

// The kernel finds a neighbour when asked, knows gateways, and refuses what no route leads to.
func TestVeth(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread() // the thread ends with the test, and its network with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no network namespace can be made here: ", err)
	}
	const peer = "02:00:00:00:00:02"
	for _, args := range []string{
		"link add va type veth peer name vb", "link set vb address " + peer,
		"addr add 192.0.2.1/24 dev va", "addr add 2001:db8::1/64 dev va nodad", "link set va up", "link set vb up",
		"route add 198.51.100.0/24 via 192.0.2.2", "neigh add 192.0.2.2 lladdr " + peer + " dev va", "neigh add 2001:db8::2 lladdr " + peer + " dev va",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Skipf("ip %s: %v: %s", args, err, out)
		}
	}
	d, err := Open("va")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, a := range []string{"192.0.2.2", "2001:db8::2"} {
		if mac, ok := d.Neighbour(netip.MustParseAddr(a)); !ok || mac != [6]byte{2, 0, 0, 0, 0, 2} {
			t.Errorf("%s: %x, %v", a, mac, ok)
		}
		if r, err := d.Route(netip.MustParseAddr(a)); err != nil || r.Local || r.Gateway.IsValid() {
			t.Errorf("%s: %+v, %v", a, r, err)
		}
	}
	if r, err := d.Route(netip.MustParseAddr("198.51.100.7")); err != nil || r.Gateway != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("behind the gateway: %+v, %v", r, err)
	}
	if r, err := d.Route(netip.MustParseAddr("192.0.2.1")); err != nil || !r.Local {
		t.Errorf("itself: %+v, %v", r, err)
	}
	for _, a := range []string{"2001:db9::1", "203.0.113.9"} {
		if r, err := d.Route(netip.MustParseAddr(a)); err == nil {
			t.Errorf("a route to nowhere: %+v", r)
		}
	}
	other, err := Open("vb")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Route(netip.MustParseAddr("192.0.2.2")); err == nil || !strings.Contains(err.Error(), "over va, not over vb") {
		t.Errorf("by another device: %v", err)
	}
	nobody := netip.MustParseAddr("192.0.2.77")
	d.Ask(nobody)
	if _, ok := d.Neighbour(nobody); ok {
		t.Error("a neighbour out of nothing")
	}
	// What Ask began shows in the kernel's table.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		out, _ := exec.Command("ip", "neigh", "show", "dev", "va").CombinedOutput()
		if strings.Contains(string(out), nobody.String()) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the kernel did not look: %s", out)
		}
	}
}
