package dpdk_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/porttest"
	"github.com/millrace/millrace/rdma/softroce"
)

// Beside the kernel, a link takes neighbours and gateways from it.
func TestKernelKnowsTheNeighbours(t *testing.T) {
	dev := fmt.Sprintf("mrk%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("ip %s: %v: %s (it takes root and iproute2)", strings.Join(args, " "), err, out)
		}
	}
	ip("link", "add", dev, "type", "veth", "peer", "name", dev+"p")
	defer func() { _ = exec.Command("ip", "link", "del", dev).Run() }()
	ip("link", "set", dev, "up")
	ip("link", "set", dev+"p", "up")
	ip("addr", "add", "10.213.90.1/24", "dev", dev)
	ip("neigh", "add", "10.213.90.2", "lladdr", "02:00:00:00:90:02", "dev", dev)
	ip("neigh", "add", "10.213.90.254", "lladdr", "02:00:00:00:90:fe", "dev", dev)
	ip("route", "add", "10.213.91.0/24", "via", "10.213.90.254", "dev", dev)

	local := netip.MustParseAddrPort("10.213.90.1:4791")
	pa, pb := porttest.NewPair("fake", porttest.Config{})
	l, err := dpdk.NewLink(pa, dpdk.LinkConfig{Local: local, NetDev: dev})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// The kernel has a socket there, so it refuses nothing; nobody else can have it.
	if c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(local)); err == nil {
		c.Close()
		t.Error("the UDP port is free")
	}
	if _, err := dpdk.NewLink(pa, dpdk.LinkConfig{Local: netip.MustParseAddrPort("10.213.90.77:4791"), NetDev: dev}); err == nil || !strings.Contains(err.Error(), "one of that device") {
		t.Errorf("an address that the kernel has not: %v", err)
	}
	var raw [8]dpdk.Frame
	for to, mac := range map[string]net.HardwareAddr{"10.213.90.2": {2, 0, 0, 0, 0x90, 2}, "10.213.91.5": {2, 0, 0, 0, 0x90, 0xfe}} {
		path, err := l.Path(netip.AddrPortFrom(netip.MustParseAddr(to), 4791))
		if err != nil {
			t.Fatal(err)
		}
		sendTo(t, l, &path, 64)
		n := pb.RxBurst(raw[:])
		if n != 1 || !bytes.Equal(raw[0].Data[:6], mac) {
			t.Errorf("%s: %d frames, to % x", to, n, raw[0].Data[:6])
		}
		pb.FreeBurst(raw[:n])
	}
	for to, why := range map[string]string{"10.213.90.1": "an address of this machine", "127.0.0.1": "this machine"} {
		if _, err := l.Path(netip.AddrPortFrom(netip.MustParseAddr(to), 4791)); !errors.Is(err, dpdk.ErrNoNeighbour) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", to, err)
		}
	}
	// One that the kernel does not know yet: it is made to look for it.
	late, err := l.Path(netip.MustParseAddrPort("10.213.90.3:4791"))
	if err != nil {
		t.Fatal(err)
	}
	sendTo(t, l, &late, 64)
	if l.Stats().Unresolved != 1 || pb.RxBurst(raw[:]) != 0 {
		t.Fatalf("%+v", l.Stats())
	}
	ip("neigh", "replace", "10.213.90.3", "lladdr", "02:00:00:00:90:03", "dev", dev)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		sendTo(t, l, &late, 64)
		if n := pb.RxBurst(raw[:]); n > 0 {
			pb.FreeBurst(raw[:n])
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the kernel's new neighbour is not found")
		}
	}
	// The kernel answers ARP, not the link.
	pa.Inject(arp(t, 1, stranger, netip.MustParseAddr("10.213.90.2"), make(net.HardwareAddr, 6), local.Addr()))
	var rx [8]softroce.Frame
	if l.Rx(rx[:]) != 0 || pb.RxBurst(raw[:]) != 0 || l.Stats().Answered != 0 {
		t.Errorf("%+v", l.Stats())
	}
	if _, err := l.Path(netip.MustParseAddrPort("[2001:db8::1]:4791")); err == nil || errors.Is(err, dpdk.ErrNoNeighbour) {
		t.Errorf("another IP version: %v", err)
	}
}
