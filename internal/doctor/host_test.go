package doctor

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/internal/transports"
)

// files is a machine's procfs and sysfs.
type files map[string]string

// and is a copy of f and of what changes says.
func (f files) and(changes files) files {
	out := files{}
	for _, m := range []files{f, changes} {
		for name, text := range m {
			out[name] = text
		}
	}
	return out
}

// with is and; an empty text removes a file.
func (f files) with(changes files) files {
	out := f.and(changes)
	for name, text := range out {
		if text == "" {
			delete(out, name)
		}
	}
	return out
}

const (
	hugeDir    = "sys/kernel/mm/hugepages/hugepages-2048kB/"
	idleDriver = "sys/devices/system/cpu/cpuidle/current_driver"
	haltPoll   = "sys/module/haltpoll/parameters/guest_halt_poll_ns"
	clockDir   = "sys/devices/system/clocksource/clocksource0/"
	thpFile    = "sys/kernel/mm/transparent_hugepage/enabled"
	release    = "6.1.0-x"
	modules    = "lib/modules/6.1.0-x/"
)

// wellServer is a machine on which nothing is amiss.
func wellServer() files {
	f := files{
		"sys/kernel/iommu_groups/0/type": "DMA", "sys/module/vfio_pci/version": "0.2",
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_memif.so":     "x",
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_ring.so":      "x",
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_null.so":      "x",
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_pcap.so":      "x",
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_tap.so":       "x",
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_af_packet.so": "x",
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_af_xdp.so":    "x",
		"proc/cpuinfo":                             "processor\t: 0\nflags\t\t: fpu sse4_2 pclmulqdq avx2 avx512bw\n",
		"proc/self/status":                         "Name:\tx\nCapEff:\t000001ffffffffff\nCpus_allowed_list:\t0-7\n",
		"proc/self/cgroup":                         "0::/user.slice/x.scope\n",
		"proc/meminfo":                             "MemTotal: 65536000 kB\nMemAvailable:   32768000 kB\nHugepagesize:       2048 kB\n",
		"proc/mounts":                              "proc /proc proc rw 0 0\nhugetlbfs /dev/hugepages hugetlbfs rw 0 0\n",
		"proc/sys/vm/nr_hugepages":                 "512",
		"proc/sys/net/core/rmem_max":               "16777216",
		"proc/sys/net/core/wmem_max":               "16777216",
		"proc/sys/net/core/busy_poll":              "0",
		"sys/devices/system/cpu/online":            "0-7",
		"sys/devices/system/cpu/isolated":          "\n",
		"sys/devices/system/cpu/smt/active":        "1",
		idleDriver:                                 "intel_idle",
		clockDir + "current_clocksource":           "tsc",
		clockDir + "available_clocksource":         "tsc hpet",
		hugeDir + "nr_hugepages":                   "512",
		hugeDir + "free_hugepages":                 "512",
		hugeDir + "resv_hugepages":                 "0",
		thpFile:                                    "always [madvise] never",
		"sys/class/net/eth0/mtu":                   "9000",
		"sys/class/net/eth0/operstate":             "up",
		"sys/class/net/lo/mtu":                     "65536",
		"sys/module/ib_uverbs/refcnt":              "1",
		"sys/module/rdma_rxe/refcnt":               "1",
		"sys/class/infiniband_verbs/uverbs0/ibdev": "rxe0",
		"usr/lib/x86_64-linux-gnu/libibverbs.so.1": "x",
	}
	return f.with(rdmaPort("rxe0", "4: ACTIVE"))
}

func rdmaPort(device, state string) files {
	dir := "sys/class/infiniband/" + device + "/ports/1/"
	return files{
		dir + "state": state, dir + "phys_state": "5: LinkUp", dir + "link_layer": "Ethernet", dir + "rate": "100 Gb/sec",
		dir + "gids/0":            "0000:0000:0000:0000:0000:ffff:0a00:0001",
		dir + "gid_attrs/types/0": "RoCE v2", dir + "gid_attrs/ndevs/0": "eth0",
	}
}

// knobs is a MapFS whose files --fix may write.
type knobs struct {
	mu sync.Mutex
	fs fstest.MapFS
}

func (k *knobs) Open(name string) (fs.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fs.Open(name)
}

func (k *knobs) write(name, value string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fs[name] == nil {
		return &fs.PathError{Op: "open", Path: "/" + name, Err: fs.ErrNotExist}
	}
	k.fs[name] = &fstest.MapFile{Data: []byte(value + "\n"), Mode: 0o644}
	return nil
}

// machine is a Host on which everything that is no file works.
func machine(f files) *Host {
	k := &knobs{fs: fstest.MapFS{}}
	for name, text := range f {
		k.fs[name] = &fstest.MapFile{Data: []byte(text + "\n"), Mode: 0o644}
	}
	return &Host{
		Version: "test", Arch: "amd64", Release: release, Root: k, TempDir: "/tmp",
		LockedBytes: ^uint64(0), OpenFiles: 1 << 20,
		SocketBuffers: func(n int) (int, int, error) { return n, n, nil },
		Mailboxes:     func() error { return nil },
		SharedMemory:  func() error { return nil }, XDPSocket: func() error { return nil },
		OpenDevice: func(string) error { return nil }, Writable: func(string) error { return nil },
		HasVerbs: true, Libdpdk: "22.11.1",
		Sibling: func(context.Context) (string, error) { return "", fs.ErrNotExist },
		Transports: []transports.Transport{
			{Scheme: "tcp", Devices: devices(transports.Device{Name: "epoll", Default: true, Probe: well})},
			{Scheme: "dpdk", Devices: devices(transports.Device{Name: "memif", Default: true, Probe: well}, transports.Device{Name: "net_memif0"})},
		},
		Probe: func(context.Context, string, string) (*transports.Unavailable, error) { return nil, nil },
		Write: k.write,
		Run:   func(context.Context, ...string) error { return nil },
	}
}

func well() *transports.Unavailable { return nil }

func devices(d ...transports.Device) func() []transports.Device {
	return func() []transports.Device { return d }
}

func find(t *testing.T, r *Report, name string) Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q", name)
	return Check{}
}

func TestWellServerIsWell(t *testing.T) {
	r := Examine(t.Context(), machine(wellServer()))
	for _, c := range r.Checks {
		if c.Status != OK || c.Fix != "" || c.Found == "" {
			t.Errorf("%+v", c)
		}
	}
	for _, tr := range r.Transports {
		if !tr.Runs {
			t.Errorf("%+v", tr)
		}
	}
	if !r.OK || len(r.Transports) != 3 {
		t.Errorf("OK %v, %d transports", r.OK, len(r.Transports))
	}
}

// Nothing readable at all, as in a container that hides /proc and /sys: findings,
// no failure, and not a word that makes the machine unfit.
func TestBareMachine(t *testing.T) {
	h := machine(files{})
	h.Release, h.Libdpdk, h.HasVerbs = "", "", false
	r := Examine(t.Context(), h)
	if !r.OK || len(r.Checks) != len(checks) {
		t.Fatalf("OK %v, %d checks", r.OK, len(r.Checks))
	}
	for _, c := range r.Checks {
		if c.Found == "" || c.Status != OK && c.Status != Degraded && c.Status != Missing || c.Automatic {
			t.Errorf("%+v", c)
		}
	}
}

func TestFindings(t *testing.T) {
	container := files{"proc/self/status": "CapEff:\t00000000a80425fb\nCpus_allowed_list:\t0-7\n"}
	for _, tc := range []struct {
		name   string
		files  files
		host   func(*Host)
		check  string
		status Status
		found  string
		fix    string
		wanted bool // the report is not OK
	}{
		{name: "old kernel", host: func(h *Host) { h.Release = "4.19.0" }, check: "kernel", status: Degraded, found: "4.19", fix: "update"},
		{name: "strange kernel", host: func(h *Host) { h.Release = "gVisor" }, check: "kernel", status: OK, found: "gVisor"},

		{name: "old cpu", files: files{"proc/cpuinfo": "flags : sse4_2"}, check: "cpu features", status: Degraded, found: "not pclmulqdq avx2", fix: "-cpu host"},
		{name: "arm64", host: func(h *Host) { h.Arch = "arm64" }, files: files{"proc/cpuinfo": "Features\t: fp asimd crc32 pmull sve"}, check: "cpu features", status: OK, found: "asimd crc32 pmull sve"},
		{name: "other architecture", host: func(h *Host) { h.Arch = "riscv64" }, check: "cpu features", status: Degraded, found: "riscv64"},

		{name: "one cpu", files: files{"proc/self/status": "Cpus_allowed_list: 3"}, check: "cpus", status: Degraded, found: "1 for this process", fix: "efficient"},
		{name: "quota of a container", files: files{"sys/fs/cgroup/cpu.max": "150000 100000"}, check: "cpus", status: Degraded, found: "quota of 1.5 CPUs", fix: "--cpus"},
		{name: "quota of a group above", files: files{"sys/fs/cgroup/user.slice/cpu.max": "50000 100000", "sys/fs/cgroup/user.slice/x.scope/cpu.max": "max 100000"}, check: "cpus", status: Degraded, found: "quota of 0.5 CPUs"},
		{name: "wide quota", files: files{"sys/fs/cgroup/cpu.max": "400000 100000"}, check: "cpus", status: OK, found: "quota of 4 CPUs"},
		{name: "quota of control groups v1", files: files{"proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"}, check: "cpus", status: Degraded, found: "quota of 1 CPUs"},
		{name: "no quota in v1", files: files{"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, check: "cpus", status: OK, found: "8 online, 8 for this process, SMT on"},
		{name: "isolated cpus", files: files{"sys/devices/system/cpu/isolated": "6-7"}, check: "cpus", status: OK, found: "isolated 6-7"},

		{name: "slow clock", files: files{clockDir + "current_clocksource": "hpet"}, check: "clock", status: Degraded, found: "hpet", fix: "echo tsc >"},
		{name: "halting CPUs", files: files{idleDriver: "haltpoll", haltPoll: "0"}, check: "idle cpus", status: Degraded, found: "halt at once", fix: "echo 200000 >"},
		{name: "polling CPUs", files: files{idleDriver: "haltpoll", haltPoll: "200000"}, check: "idle cpus", status: OK, found: "up to 200µs"},
		{name: "slow clock only", files: files{clockDir + "current_clocksource": "acpi_pm", clockDir + "available_clocksource": "acpi_pm"}, check: "clock", status: Degraded, found: "acpi_pm"},

		{name: "no huge pages reserved", files: files{hugeDir + "nr_hugepages": "0", hugeDir + "free_hugepages": "0"}, check: "huge pages", status: Degraded, found: "0 of 0 free", fix: "sysctl -w vm.nr_hugepages=128"},
		{name: "huge pages in use", files: files{hugeDir + "free_hugepages": "100", hugeDir + "resv_hugepages": "50"}, check: "huge pages", status: Degraded, found: "50 of 512 free", fix: "vm.nr_hugepages=590"},
		{name: "little memory", files: files{hugeDir + "nr_hugepages": "0", hugeDir + "free_hugepages": "0", "proc/meminfo": "MemAvailable: 409600 kB\nHugepagesize: 2048 kB"}, check: "huge pages", status: Degraded, fix: "vm.nr_hugepages=50"},
		{name: "no memory", files: files{hugeDir + "nr_hugepages": "0", hugeDir + "free_hugepages": "0", "proc/meminfo": "MemAvailable: 100 kB"}, check: "huge pages", status: Degraded, fix: "free memory"},
		{name: "huge pages of another default size", files: files{hugeDir + "nr_hugepages": "0", hugeDir + "free_hugepages": "0", "proc/meminfo": "Hugepagesize: 1048576 kB"}, check: "huge pages", status: Degraded, fix: "echo 128 > /" + hugeDir + "nr_hugepages"},
		{name: "kernel without huge pages", files: files{hugeDir + "nr_hugepages": ""}, check: "huge pages", status: Degraded, found: "offers none"},

		{name: "no transparent huge pages", files: files{thpFile: "always madvise [never]"}, check: "transparent huge pages", status: Degraded, found: "never", fix: "echo madvise"},

		{name: "little locked memory", files: container, host: func(h *Host) { h.LockedBytes = 8 << 20 }, check: "locked memory", status: Degraded, found: "8 MiB", fix: "ulimit -l"},
		{name: "CAP_IPC_LOCK", host: func(h *Host) { h.LockedBytes = 8 << 20 }, check: "locked memory", status: OK, found: "CAP_IPC_LOCK"},

		{name: "few files", host: func(h *Host) { h.OpenFiles = 1024 }, check: "open files", status: Degraded, found: "1024", fix: "ulimit -Hn"},

		{name: "small buffers", files: files{"proc/sys/net/core/rmem_max": "212992", "proc/sys/net/core/wmem_max": "212992"}, host: smallBuffers, check: "udp buffers", status: Degraded, found: "receive 0.2031 MiB", fix: "sysctl -w net.core.rmem_max=8388608 && sysctl -w net.core.wmem_max=8388608"},
		{name: "small buffers in a namespace", files: files{"proc/sys/net/core/rmem_max": ""}, host: smallBuffers, check: "udp buffers", status: Degraded, fix: "on the host"},
		{name: "no UDP", host: noUDP, check: "user-space rdma", status: Missing, found: "operation not permitted", fix: "seccomp", wanted: true},
		{name: "no mailboxes", host: func(h *Host) { h.Mailboxes = func() error { return unix.EPERM } }, check: "udp mailboxes", status: Degraded, found: "operation not permitted", fix: "cap_bpf"},
		{name: "no UDP, buffers", host: noUDP, check: "udp buffers", status: Degraded, found: "cannot be told", wanted: true},

		{name: "ordinary MTU", files: files{"sys/class/net/eth0/mtu": "1500"}, check: "network devices", status: OK, found: "eth0 MTU 1500 (RoCE 1024)"},
		{name: "down", files: files{"sys/class/net/eth0/operstate": "down"}, check: "network devices", status: OK, found: "loopback only"},

		{name: "modules to load", files: bare.and(files{modules + "modules.dep": "kernel/x/rdma_rxe.ko.xz: kernel/x/ib_uverbs.ko.xz\nkernel/x/ib_uverbs.ko.xz:"}), check: "rdma modules", status: Missing, found: "none loaded", fix: "modprobe -a ib_uverbs rdma_rxe"},
		{name: "no modules", files: bare, check: "rdma modules", status: Missing, found: "has no ib_uverbs rdma_rxe", fix: "guest.sh"},
		{name: "modules built in", files: bare.and(files{modules + "modules.builtin": "kernel/x/rdma_rxe.ko\nkernel/x/ib_uverbs.ko"}), check: "rdma modules", status: OK, found: "ib_uverbs rdma_rxe"},
		{name: "hardware needs no rxe", files: files{"sys/module/rdma_rxe/refcnt": "", "sys/class/infiniband/rxe0/device/vendor": "0x15b3"}, check: "rdma modules", status: OK, found: "ib_uverbs"},

		{name: "no device", files: bare, check: "rdma devices", status: Missing, found: "no rdma_rxe module", fix: "guest"},
		{name: "device down", files: rdmaPort("rxe0", "1: DOWN"), check: "rdma devices", status: Missing, found: "rxe0 DOWN", fix: "ip link set eth0 up"},
		{name: "one of two down", files: rdmaPort("mlx5_0", "1: DOWN"), check: "rdma devices", status: Degraded, found: "rxe0 ACTIVE (software) RoCEv2 10.0.0.1 on eth0, MTU 9000 (RoCE 4096)", fix: "ip link set"},
		{name: "no uverbs", files: files{"sys/class/infiniband_verbs/uverbs0/ibdev": ""}, check: "rdma devices", status: Missing, fix: "modprobe ib_uverbs"},
		{name: "device file closed", host: func(h *Host) { h.OpenDevice = func(string) error { return fs.ErrPermission } }, check: "rdma devices", status: Missing, fix: "chmod"},

		{name: "without verbs", host: func(h *Host) { h.HasVerbs = false }, check: "libibverbs", status: Missing, found: "millrace-native", fix: "-tags verbs"},
		{name: "no libibverbs", files: files{"usr/lib/x86_64-linux-gnu/libibverbs.so.1": ""}, check: "libibverbs", status: Degraded, fix: "libibverbs1"},

		{name: "no memfd", host: func(h *Host) { h.SharedMemory = func() error { return unix.ENOSYS } }, check: "memif", status: Missing, fix: "seccomp", wanted: true},
		{name: "no TMPDIR", host: func(h *Host) { h.Writable = func(string) error { return fs.ErrNotExist } }, check: "memif", status: Missing, fix: "TMPDIR", wanted: true},
		{name: "long TMPDIR", host: func(h *Host) { h.TempDir = "/" + strings.Repeat("long", 20) }, check: "memif", status: Missing, found: "too long", fix: "TMPDIR", wanted: true},

		{name: "libdpdk beside", host: func(h *Host) {
			h.Libdpdk = ""
			h.Sibling = func(context.Context) (string, error) { return "/opt/millrace-native", nil }
		}, check: "libdpdk", status: OK, found: "/opt/millrace-native"},
		{name: "no libdpdk", host: func(h *Host) { h.Libdpdk = "" }, check: "libdpdk", status: Missing, fix: "libdpdk-dev"},
		{name: "libdpdk does not start", host: func(h *Host) {
			h.Libdpdk = ""
			h.Sibling = func(context.Context) (string, error) {
				return "", errors.New("librte_eal.so.23: cannot open shared object file")
			}
		}, check: "libdpdk", status: Missing, found: "librte_eal.so.23", fix: "make build"},

		{name: "no AF_XDP", host: func(h *Host) { h.XDPSocket = func() error { return unix.EAFNOSUPPORT } }, check: "af_xdp", status: Missing, fix: "CONFIG_XDP_SOCKETS"},
		{name: "too old for AF_XDP", host: func(h *Host) { h.Release = "4.9.0"; h.XDPSocket = func() error { return unix.EAFNOSUPPORT } }, check: "af_xdp", status: Missing, fix: "5.4"},
		{name: "AF_XDP not permitted", host: func(h *Host) { h.XDPSocket = func() error { return unix.EPERM } }, check: "af_xdp", status: Missing, fix: "cap_net_raw"},
		{name: "AF_XDP without capabilities", files: container, check: "af_xdp", status: Missing, found: "CAP_NET_ADMIN, CAP_BPF", fix: "setcap"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := machine(wellServer().with(tc.files))
			if tc.host != nil {
				tc.host(h)
			}
			r := Examine(t.Context(), h)
			c := find(t, r, tc.check)
			if c.Status != tc.status || !strings.Contains(c.Found, tc.found) || !strings.Contains(c.Fix, tc.fix) || (c.Fix == "") != (tc.fix == "") && tc.fix != "" {
				t.Errorf("%+v", c)
			}
			if r.OK == tc.wanted {
				t.Errorf("OK is %v", r.OK)
			}
			if c.Automatic && c.Fix != c.repair.command {
				t.Errorf("says %q and does %q", c.Fix, c.repair.command)
			}
		})
	}
}

// bare takes the RDMA of wellServer away.
var bare = func() files {
	f := files{"sys/module/ib_uverbs/refcnt": "", "sys/module/rdma_rxe/refcnt": "", "sys/class/infiniband_verbs/uverbs0/ibdev": ""}
	for name := range rdmaPort("rxe0", "x") {
		f[name] = ""
	}
	return f
}()

func smallBuffers(h *Host) {
	h.SocketBuffers = func(int) (int, int, error) { return 212992, 212992, nil }
}

func noUDP(h *Host) {
	h.SocketBuffers = func(int) (int, int, error) { return 0, 0, unix.EPERM }
}

func TestTransportsAreToldWithReason(t *testing.T) {
	h := machine(wellServer())
	un := &transports.Unavailable{Transport: "dpdk", Device: "net_memif0", Reason: "no libdpdk", Fix: "install it"}
	h.Probe = func(_ context.Context, scheme, device string) (*transports.Unavailable, error) {
		if scheme != "dpdk" || device != "net_memif0" {
			t.Errorf("asked for %s %s", scheme, device)
		}
		return un, nil
	}
	r := Examine(t.Context(), h)
	if got := r.Transports[2]; got != (Transport{Transport: "dpdk", Device: "net_memif0", Reason: "no libdpdk", Fix: "install it"}) || !r.OK {
		t.Errorf("%+v, OK %v", got, r.OK)
	}
	h.Probe = func(context.Context, string, string) (*transports.Unavailable, error) {
		return nil, errors.New("signal: aborted")
	}
	r = Examine(t.Context(), h)
	if got := r.Transports[2]; got.Runs || !strings.Contains(got.Reason, "aborted") || !r.OK {
		t.Errorf("%+v, OK %v", got, r.OK)
	}
	h.Transports[0].Devices = devices(transports.Device{Name: "epoll", Default: true, Probe: func() *transports.Unavailable {
		return &transports.Unavailable{Reason: "no sockets", Fix: "allow them"}
	}})
	r = Examine(t.Context(), h)
	if r.OK || r.Transports[0].Runs || r.Transports[0].Reason != "no sockets" {
		t.Errorf("%+v, OK %v", r.Transports[0], r.OK)
	}
}

// slowFS is a file system one of whose files does not answer until the test ends.
type slowFS struct {
	fs.FS
	name string
	ends <-chan struct{}
}

func (s slowFS) Open(name string) (fs.File, error) {
	if path.Base(name) == s.name {
		<-s.ends
	}
	return s.FS.Open(name)
}

// A device that does not answer, and a mistake in a check, cost one finding.
func TestNoAnswerIsAFinding(t *testing.T) {
	h := machine(wellServer())
	h.Root = slowFS{h.Root, "gids", t.Context().Done()}
	h.patience = 100 * time.Millisecond
	h.XDPSocket = nil
	h.Probe = func(ctx context.Context, _, _ string) (*transports.Unavailable, error) {
		<-ctx.Done()
		time.Sleep(time.Millisecond)
		return nil, ctx.Err()
	}
	r := Examine(t.Context(), h)
	if c := find(t, r, "rdma devices"); c.Status != Degraded || !strings.Contains(c.Found, "no answer") {
		t.Errorf("%+v", c)
	}
	if c := find(t, r, "af_xdp"); c.Status != Degraded || !strings.Contains(c.Found, "mistake") {
		t.Errorf("%+v", c)
	}
	if c := find(t, r, "kernel"); c.Status != OK {
		t.Errorf("%+v", c)
	}
	if tr := r.Transports[2]; tr.Runs || tr.Reason == "" || !r.OK {
		t.Errorf("%+v, OK %v", tr, r.OK)
	}
}

// Whatever the kernel's files say, each check has an answer.
func FuzzExamine(f *testing.F) {
	f.Add("0::/x\n3:cpu:/", "max 100000", "0-3,8", "[always] never")
	f.Add(":::", "-1 0", "3-1", "[")
	f.Add("0::/../../..", "9e99 1e-9", "0-99999999999999999999", "")
	f.Fuzz(func(t *testing.T, cgroup, number, list, words string) {
		all := wellServer()
		for name := range all {
			switch {
			case name == "proc/self/cgroup":
				all[name] = cgroup
			case strings.HasPrefix(name, "proc/self"), strings.Contains(name, "cpu/"):
				all[name] = "Cpus_allowed_list: " + list
			case strings.HasPrefix(name, "sys/kernel"), strings.Contains(name, "clocksource"):
				all[name] = words
			default:
				all[name] = number
			}
		}
		all["sys/fs/cgroup/cpu.max"] = number
		for _, c := range Examine(t.Context(), machine(all)).Checks {
			if c.Status == "" || c.Found == "" && c.Name != "transparent huge pages" && c.Name != "clock" || strings.Contains(c.Found, "mistake") {
				t.Errorf("%+v", c)
			}
		}
	})
}
