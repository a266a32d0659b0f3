package verbs

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

// sysfs makes a tree of devices.
type sysfs fstest.MapFS

func (s sysfs) file(name, text string) { s[name] = &fstest.MapFile{Data: []byte(text + "\n")} }

type testGID struct{ addr, kind, netdev string }

func (s sysfs) port(device string, num int, state, link string, gids ...testGID) {
	dir := fmt.Sprintf("sys/class/infiniband/%s/ports/%d/", device, num)
	s.file(dir+"state", state)
	s.file(dir+"phys_state", "5: LinkUp")
	s.file(dir+"link_layer", link)
	s.file(dir+"rate", "2.5 Gb/sec (1X SDR)")
	for i, g := range gids {
		n := fmt.Sprint(i)
		s.file(dir+"gids/"+n, g.addr)
		if g.kind != "" { // reading that of an empty entry fails
			s.file(dir+"gid_attrs/types/"+n, g.kind)
			s.file(dir+"gid_attrs/ndevs/"+n, g.netdev)
		}
	}
}

func (s sysfs) uverbs(name, device string) {
	s.file("sys/class/infiniband_verbs/"+name+"/ibdev", device)
}

func (s sysfs) hardware(device string) {
	s.file("sys/class/infiniband/"+device+"/device/vendor", "0x15b3")
}

const (
	noGID    = "0000:0000:0000:0000:0000:0000:0000:0000"
	v4a      = "0000:0000:0000:0000:0000:ffff:0a00:0001" // 10.0.0.1
	v4b      = "0000:0000:0000:0000:0000:ffff:0a00:0002"
	v4c      = "0000:0000:0000:0000:0000:ffff:0a01:0001" // 10.1.0.1
	link6    = "fe80:0000:0000:0000:0202:03ff:fe04:0506"
	global6  = "2001:0db8:0000:0000:0000:0000:0000:0001"
	ethernet = "Ethernet"
	active   = "4: ACTIVE"
)

// oneRxe is a machine with Soft-RoCE on v0.
func oneRxe() sysfs {
	s := sysfs{}
	s.port("rxe0", 1, active, ethernet, testGID{link6, rocev2, "v0"}, testGID{v4a, rocev2, "v0"}, testGID{noGID, "", ""}, testGID{global6, rocev2, "v0"})
	s.uverbs("uverbs0", "rxe0")
	return s
}

// twoNICs is a machine with an RNIC of two ports, one of one port, and an
// InfiniBand adapter.
func twoNICs() sysfs {
	s := sysfs{}
	s.hardware("mlx4_0")
	s.port("mlx4_0", 1, active, ethernet, testGID{link6, "IB/RoCE v1", "eth0"}, testGID{link6, rocev2, "eth0"}, testGID{v4a, "IB/RoCE v1", "eth0"}, testGID{v4a, rocev2, "eth0"})
	s.port("mlx4_0", 2, "1: DOWN", ethernet, testGID{v4c, "IB/RoCE v1", "eth1"}, testGID{v4c, rocev2, "eth1"})
	s.hardware("mlx5_1")
	s.port("mlx5_1", 1, active, ethernet, testGID{v4b, rocev2, "eth2"}, testGID{link6, rocev2, "eth2"})
	s.hardware("mlx5_2")
	s.port("mlx5_2", 1, active, "InfiniBand", testGID{"fe80:0000:0000:0000:e41d:2d03:0050:e210", "IB/RoCE v1", ""})
	s.hardware("old_0")
	s.port("old_0", 1, active, ethernet, testGID{"0000:0000:0000:0000:0000:ffff:0a02:0001", "IB/RoCE v1", "eth3"})
	return s
}

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func TestListReadsSysfs(t *testing.T) {
	ports, err := list(fstest.MapFS(oneRxe()))
	if err != nil || len(ports) != 1 {
		t.Fatalf("%v, %v", ports, err)
	}
	p := ports[0]
	if p.Device != "rxe0" || p.Num != 1 || !p.Soft || p.Uverbs != "uverbs0" || p.NetDev != "v0" || !p.Active() || p.PhysState != "LinkUp" ||
		p.LinkLayer != ethernet || len(p.GIDs) != 3 || p.GIDs[1] != (GID{1, addr("10.0.0.1"), rocev2, "v0"}) || p.Name() != "rxe0" {
		t.Errorf("%+v", p)
	}
	ports, err = list(fstest.MapFS(twoNICs()))
	if err != nil || len(ports) != 5 || ports[1].Name() != "mlx4_0:2" || ports[1].Active() || ports[0].Soft || len(ports[0].RoCEv2()) != 2 {
		t.Errorf("%+v, %v", ports, err)
	}
	if ports, err = list(fstest.MapFS{}); len(ports) != 0 || err != nil {
		t.Errorf("no devices: %v, %v", ports, err)
	}
}

func TestChoose(t *testing.T) {
	route := func(a netip.Addr) (netip.Addr, error) {
		switch {
		case a == addr("10.0.0.9"):
			return addr("10.0.0.1"), nil
		case a.IsLoopback():
			return a, nil
		}
		return netip.Addr{}, unix.ENETUNREACH
	}
	for _, c := range []struct {
		name    string
		tree    sysfs
		device  string
		local   string
		remote  string
		want    string // device, port and GID
		err     error
		mention []string
	}{
		{name: "the only one, IPv4 first", tree: oneRxe(), want: "rxe0/1/1"},
		{name: "by IPv4", tree: oneRxe(), local: "10.0.0.1", want: "rxe0/1/1"},
		{name: "by mapped IPv4", tree: oneRxe(), local: "::ffff:10.0.0.1", want: "rxe0/1/1"},
		{name: "by global IPv6", tree: oneRxe(), local: "2001:db8::1", want: "rxe0/1/3"},
		{name: "by link-local IPv6 and zone", tree: oneRxe(), local: "fe80::202:3ff:fe04:506%v0", want: "rxe0/1/0"},
		{name: "wrong zone", tree: oneRxe(), local: "fe80::202:3ff:fe04:506%v1", err: ErrNoMatch, mention: []string{"rxe0 (", "?device=rxe0"}},
		{name: "unspecified", tree: oneRxe(), local: "0.0.0.0", want: "rxe0/1/1"},
		{name: "loopback", tree: oneRxe(), local: "127.0.0.1", want: "rxe0/1/1"},
		{name: "foreign address", tree: oneRxe(), local: "192.0.2.1", err: ErrNoMatch, mention: []string{"192.0.2.1", "10.0.0.1", "?device=rxe0"}},
		{name: "foreign address, device named", tree: oneRxe(), device: "rxe0", local: "192.0.2.1", want: "rxe0/1/1"},
		{name: "foreign IPv6 address, device named", tree: oneRxe(), device: "rxe0", local: "2001:db8::7", want: "rxe0/1/3"},
		{name: "by route", tree: oneRxe(), remote: "10.0.0.9", want: "rxe0/1/1"},
		{name: "by route, both", tree: oneRxe(), local: "::", remote: "10.0.0.9", want: "rxe0/1/1"},
		{name: "dial loopback", tree: oneRxe(), remote: "127.0.0.1", want: "rxe0/1/1"},
		{name: "no route", tree: oneRxe(), remote: "203.0.113.1", err: unix.ENETUNREACH, mention: []string{"ip route get 203.0.113.1"}},
		{name: "no such device", tree: oneRxe(), device: "rxe7", err: ErrNoMatch, mention: []string{"rxe7", "rxe0 (fe80::202:3ff:fe04:506, 10.0.0.1, 2001:db8::1 on v0)"}},

		{name: "RoCEv2 entry, not v1", tree: twoNICs(), local: "10.0.0.1", want: "mlx4_0/1/3"},
		{name: "one of several by address", tree: twoNICs(), local: "10.0.0.2", want: "mlx5_1/1/0"},
		{name: "two fit", tree: twoNICs(), local: "::", err: ErrNoMatch},
		{name: "two have the address", tree: twoNICs(), local: "fe80::202:3ff:fe04:506", err: ErrAmbiguous, mention: []string{"mlx4_0:1 (", "mlx5_1 (", "?device="}},
		{name: "and the name decides", tree: twoNICs(), device: "mlx5_1", local: "fe80::202:3ff:fe04:506", want: "mlx5_1/1/1"},
		{name: "the port is down", tree: twoNICs(), local: "10.1.0.1", err: ErrPortState, mention: []string{"mlx4_0:2", "DOWN", "ip link set eth1 up"}},
		{name: "InfiniBand", tree: twoNICs(), device: "mlx5_2", err: ErrGIDType, mention: []string{"InfiniBand"}},
		{name: "RoCEv1 only", tree: twoNICs(), local: "10.2.0.1", err: ErrGIDType, mention: []string{"old_0", "IB/RoCE v1"}},
		{name: "port by number", tree: twoNICs(), device: "mlx4_0:1", want: "mlx4_0/1/3"},
		{name: "device of two ports, one is up", tree: twoNICs(), device: "mlx4_0", want: "mlx4_0/1/3"},
		{name: "no such port", tree: twoNICs(), device: "mlx4_0:3", err: ErrNoMatch, mention: []string{"mlx4_0:3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ports, err := list(fstest.MapFS(c.tree))
			if err != nil {
				t.Fatal(err)
			}
			if c.name == "two fit" { // of those that can be used at all
				c.err, c.mention = ErrAmbiguous, []string{"mlx4_0:1 (", "mlx5_1 ("}
			}
			p, g, err := choose(ports, Choice{Device: c.device, Local: addr(c.local), Remote: addr(c.remote)}, route)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Fatalf("got %v, want %v", err, c.err)
				}
				for _, m := range c.mention {
					if !strings.Contains(err.Error(), m) {
						t.Errorf("%q does not mention %q", err, m)
					}
				}
				var e *Error
				if !errors.As(err, &e) || e.Fix == "" {
					t.Errorf("%v has no fix", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%s/%d/%d", p.Device, p.Num, g.Index); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestDiagnoseNoDevice(t *testing.T) {
	bare := sysfs{}
	loadable := sysfs{}
	loadable.file("lib/modules/6.1.0-x/modules.dep", "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko: kernel/x.ko")
	builtin := sysfs{}
	builtin.file("lib/modules/6.1.0-x/modules.builtin", "kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko")
	loaded := sysfs{}
	loaded.file("sys/module/rdma_rxe/refcnt", "0")
	for name, c := range map[string]struct {
		tree    sysfs
		mention []string
	}{
		"no module":  {bare, []string{"6.1.0-x has no rdma_rxe", "guest.sh"}},
		"not loaded": {loadable, []string{"up.sh", "modprobe rdma_rxe"}},
		"built in":   {builtin, []string{"up.sh"}},
		"no link":    {loaded, []string{"nobody has made a device", "rdma link add"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := find(host{root: fstest.MapFS(c.tree), release: "6.1.0-x"}, Choice{})
			if !errors.Is(err, rdma.ErrNotSupported) || !errors.Is(err, ErrNoDevice) {
				t.Errorf("got %v", err)
			}
			for _, m := range c.mention {
				if !strings.Contains(fmt.Sprint(err), m) {
					t.Errorf("%q does not mention %q", err, m)
				}
			}
		})
	}
}

func TestDiagnoseDeviceFile(t *testing.T) {
	noUverbs := oneRxe()
	delete(noUverbs, "sys/class/infiniband_verbs/uverbs0/ibdev")
	for name, c := range map[string]struct {
		tree    sysfs
		open    error
		mention string
	}{
		"module missing": {noUverbs, nil, "modprobe ib_uverbs"},
		"container":      {oneRxe(), fs.ErrNotExist, "--device=/dev/infiniband/uverbs0"},
		"no permission":  {oneRxe(), unix.EACCES, "chmod 0666 /dev/infiniband/uverbs0"},
	} {
		t.Run(name, func(t *testing.T) {
			h := host{root: fstest.MapFS(c.tree), open: func(string) error { return c.open }}
			if _, _, err := find(h, Choice{}); err == nil || !strings.Contains(err.Error(), c.mention) {
				t.Errorf("got %v", err)
			}
		})
	}
	h := host{root: fstest.MapFS(oneRxe()), open: func(name string) error {
		if name != "/dev/infiniband/uverbs0" {
			return fs.ErrNotExist
		}
		return nil
	}}
	if p, g, err := find(h, Choice{}); err != nil || p.Device != "rxe0" || g.Index != 1 {
		t.Errorf("%v %v %v", p, g, err)
	}
}

func TestMemlockIsExplained(t *testing.T) {
	pinned, ipcLock := parseStatus("Name:\tx\nVmPin:\t    2048 kB\nCapEff:\t0000000000004000\n")
	if pinned != 2<<20 || !ipcLock {
		t.Errorf("pinned %d, CAP_IPC_LOCK %v", pinned, ipcLock)
	}
	if _, ipcLock := parseStatus("CapEff:\t000001ffffffbfff\n"); ipcLock {
		t.Error("CAP_IPC_LOCK seen where it is not")
	}
	small := memlock{limit: 8 << 20, pinned: 1 << 20}
	err := small.explain("register memory with", "rxe0", 64<<20, fmt.Errorf("ibv_reg_mr: %w", unix.ENOMEM))
	for _, m := range []string{"RLIMIT_MEMLOCK is 8192 KiB", "65536 KiB", "CAP_IPC_LOCK", "ulimit -l unlimited", "cap_ipc_lock+ep"} {
		if !strings.Contains(err.Error(), m) {
			t.Errorf("%q does not mention %q", err, m)
		}
	}
	if !errors.Is(err, unix.ENOMEM) {
		t.Error("the cause is lost")
	}
	for name, m := range map[string]memlock{"capability": {limit: 8 << 20, ipcLock: true}, "unlimited": {limit: ^uint64(0)}, "fits": {limit: 128 << 20}} {
		if err := m.explain("register memory with", "rxe0", 64<<20, unix.ENOMEM); strings.Contains(err.Error(), "MEMLOCK") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRemoteIsChecked(t *testing.T) {
	attr := rdma.DeviceAttr{Name: "rxe0", GID: addr("10.0.0.1"), PathMTU: 1024}
	good := rdma.Remote{Addr: addr("10.0.0.2"), UDPPort: 4791, QPN: 17, StartPSN: 1<<24 - 1, PathMTU: 1024}
	if err := checkRemote(good, attr); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change  func(*rdma.Remote)
		mention string
	}{
		"port":         {func(r *rdma.Remote) { r.UDPPort = 5000 }, "port 4791 only"},
		"no address":   {func(r *rdma.Remote) { r.Addr = netip.Addr{} }, "not that of a device"},
		"multicast":    {func(r *rdma.Remote) { r.Addr = addr("ff02::1") }, "not that of a device"},
		"family":       {func(r *rdma.Remote) { r.Addr = addr("2001:db8::1") }, "own family"},
		"reserved QPN": {func(r *rdma.Remote) { r.QPN = 1 }, "reserved"},
		"multicast QP": {func(r *rdma.Remote) { r.QPN = 1<<24 - 1 }, "reserved"},
		"long QPN":     {func(r *rdma.Remote) { r.QPN = 1 << 24 }, "24 bits"},
		"long PSN":     {func(r *rdma.Remote) { r.StartPSN = 1 << 24 }, "24 bits"},
		"MTU 0":        {func(r *rdma.Remote) { r.PathMTU = 0 }, "path MTU"},
		"odd MTU":      {func(r *rdma.Remote) { r.PathMTU = 1000 }, "path MTU"},
		"large MTU":    {func(r *rdma.Remote) { r.PathMTU = 2048 }, "path MTU"},
		"negative MTU": {func(r *rdma.Remote) { r.PathMTU = -256 }, "path MTU"},
	} {
		r := good
		c.change(&r)
		if err := checkRemote(r, attr); err == nil || !strings.Contains(err.Error(), c.mention) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := connectError("rxe0", "ibv_modify_qp to RTR", good, unix.ETIMEDOUT); !strings.Contains(err.Error(), "ping 10.0.0.2") || !errors.Is(err, unix.ETIMEDOUT) {
		t.Error(err)
	}
}

// What a kernel or a library says must never crash the inventory.
func FuzzList(f *testing.F) {
	f.Add("4: ACTIVE", v4a, rocev2, "rxe0", "10.0.0.1")
	f.Add("", "fe80::1%eth0", "", "rxe0:1", "::")
	f.Fuzz(func(t *testing.T, state, gid, kind, device, local string) {
		s := sysfs{}
		s.port("rxe0", 1, state, ethernet, testGID{gid, kind, "v0"})
		ports, err := list(fstest.MapFS(s))
		if err != nil {
			t.Fatal(err)
		}
		a, _ := netip.ParseAddr(local)
		p, g, err := choose(ports, Choice{Device: device, Local: a}, routeTo)
		if err == nil && (p == nil || g.Type != rocev2) {
			t.Errorf("chose %v %v", p, g)
		}
	})
}
