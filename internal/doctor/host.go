package doctor

import (
	"context"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/internal/transports"
)

// Host is the machine that is examined. Tests make their own.
type Host struct {
	Version string // of millrace
	Arch    string // GOARCH
	Release string // uname -r
	Root    fs.FS  // what lies below /
	UID     int
	TempDir string // where sockets go

	LockedBytes uint64 // RLIMIT_MEMLOCK; ^0: no limit
	OpenFiles   uint64 // RLIMIT_NOFILE, hard

	// SocketBuffers asks for UDP buffers of so many bytes, as a link of user-space
	// RDMA does, and says what it got (without the kernel's doubling).
	SocketBuffers func(bytes int) (receive, send int, err error)
	// Mailboxes tells why that link cannot receive without system calls.
	Mailboxes func() error
	// SharedMemory makes a sealed memfd, as a memif port does, and closes it.
	SharedMemory func() error
	// XDPSocket opens an AF_XDP socket and closes it.
	XDPSocket func() error
	// Writable tells whether this process may make files in a folder.
	Writable func(folder string) error
	// OpenDevice tries to open a device file.
	OpenDevice func(name string) error

	// Program that runs: what is linked into it, and what lies beside it.
	HasVerbs bool
	Libdpdk  string // version that is linked in; empty: none
	Sibling  func(ctx context.Context) (path string, err error)

	Transports []transports.Transport
	// Probe asks in a process of its own whether a device that is not a default one
	// runs: libraries of devices start for a process's life and may end it.
	Probe func(ctx context.Context, transport, device string) (*transports.Unavailable, error)

	// What --fix uses.
	Write func(name, value string) error // a file of procfs or sysfs
	Run   func(ctx context.Context, command ...string) error

	patience time.Duration // tests wait less
}

// maxFile bounds what is read of one file.
const maxFile = 1 << 20

// read is a file without the white space around it. ok is false where it cannot be
// read.
func (h *Host) read(name string) (text string, ok bool) {
	f, err := h.Root.Open(name)
	if err != nil {
		return "", false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return "", false
	}
	return strings.TrimSpace(string(b)), true
}

// number is a file that holds one number.
func (h *Host) number(name string) (n int, ok bool) {
	text, ok := h.read(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	return n, err == nil
}

func (h *Host) exists(name string) bool {
	_, err := fs.Stat(h.Root, name)
	return err == nil
}

func (h *Host) list(name string) []string {
	entries, err := fs.ReadDir(h.Root, name)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// field is the value of the first line "key: value", or "key = value".
func (h *Host) field(name, key string) (string, bool) {
	text, _ := h.read(name)
	for line := range strings.Lines(text) {
		k, v, found := strings.Cut(line, ":")
		if found && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v), true
		}
	}
	return "", false
}

// Capabilities of linux/capability.h.
const (
	capNetAdmin = 12
	capNetRaw   = 13
	capIPCLock  = 14
	capSysAdmin = 21
	capBPF      = 39
)

func (h *Host) capable(capability int) bool {
	text, _ := h.field("proc/self/status", "CapEff")
	mask, err := strconv.ParseUint(text, 16, 64)
	return err == nil && mask>>capability&1 != 0
}

// cpuList counts a list of CPUs such as "0-3,8".
func cpuList(s string) (n int, ok bool) {
	for _, r := range strings.Split(s, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(r), "-")
		a, err := strconv.Atoi(low)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(high)
		}
		if err != nil || b < a {
			return 0, false
		}
		n += b - a + 1
	}
	return n, true
}

// quota is how many CPUs' worth of time this process's control group may use; 0
// for no limit. Groups above it count as well.
func (h *Host) quota() float64 {
	limit := 0.0
	least := func(quota, period float64) {
		if quota > 0 && period > 0 && (limit == 0 || quota/period < limit) {
			limit = quota / period
		}
	}
	text, _ := h.read("proc/self/cgroup")
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		v2 := f[0] == "0" && f[1] == ""
		v1 := false
		for _, c := range strings.Split(f[1], ",") {
			v1 = v1 || c == "cpu"
		}
		if !v1 && !v2 {
			continue
		}
		// A container sees its own group as the root of the mount, whatever its path.
		for group := path.Clean("/" + f[2]); ; group = path.Dir(group) {
			if v2 {
				least(h.cpuMax("sys/fs/cgroup" + group))
			} else {
				for _, mount := range []string{"sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"} {
					q, _ := h.number(path.Join(mount+group, "cpu.cfs_quota_us"))
					p, _ := h.number(path.Join(mount+group, "cpu.cfs_period_us"))
					least(float64(q), float64(p))
				}
			}
			if group == "/" {
				break
			}
		}
	}
	return limit
}

// cpuMax reads "max 100000" or "200000 100000".
func (h *Host) cpuMax(group string) (quota, period float64) {
	text, _ := h.read(path.Join(group, "cpu.max"))
	if f := strings.Fields(text); len(f) == 2 {
		quota, _ = strconv.ParseFloat(f[0], 64)
		period, _ = strconv.ParseFloat(f[1], 64)
	}
	return quota, period
}
