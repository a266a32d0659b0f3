package doctor

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// oldestKernel is the oldest that millrace is tested on in one form or another:
// that of Debian 11. 5.10 has busy polling of AF_XDP and rdma_rxe's later fixes.
var oldestKernel = [2]int{5, 10}

func kernel(_ context.Context, h *Host) Check {
	c := Check{Found: "Linux " + h.Release + ", " + h.Arch}
	v, ok := kernelVersion(h.Release)
	switch {
	case !ok:
		c.Means = "its version cannot be read from its name; nothing depends on that"
	case older(v, oldestKernel):
		c.Status = Degraded
		c.Means = fmt.Sprintf("older than %d.%d, the oldest that millrace is tried on; TCP and RDMA over UDP are expected to run", oldestKernel[0], oldestKernel[1])
		c.Fix = "update the kernel"
	}
	return c
}

func kernelVersion(release string) (v [2]int, ok bool) {
	n, _ := fmt.Sscanf(release, "%d.%d", &v[0], &v[1])
	return v, n == 2
}

func older(a, b [2]int) bool { return a[0] < b[0] || a[0] == b[0] && a[1] < b[1] }

// cpuWanted lists, for each architecture, where /proc/cpuinfo tells and the
// features that checksums and vector code use.
var cpuWanted = map[string]struct {
	key      string
	features []string
}{
	"amd64": {"flags", []string{"sse4_2", "pclmulqdq", "avx2"}},
	"arm64": {"Features", []string{"asimd", "crc32", "pmull"}},
}

// cpuBetter is mentioned where it is there.
var cpuBetter = []string{"avx512bw", "avx512_vbmi", "vpclmulqdq", "sve", "sve2"}

func cpuFeatures(_ context.Context, h *Host) Check {
	want, known := cpuWanted[h.Arch]
	if !known {
		return Check{Status: Degraded, Found: h.Arch, Means: "only amd64 and arm64 have code of their own; the portable code runs"}
	}
	text, ok := h.field("proc/cpuinfo", want.key)
	if !ok {
		return Check{Status: Degraded, Found: "/proc/cpuinfo does not list features", Means: "what the CPU can do is found out again when code for it starts"}
	}
	have := strings.Fields(text)
	var found, lacking []string
	for _, f := range want.features {
		if slices.Contains(have, f) {
			found = append(found, f)
		} else {
			lacking = append(lacking, f)
		}
	}
	for _, f := range cpuBetter {
		if slices.Contains(have, f) {
			found = append(found, f)
		}
	}
	c := Check{Found: strings.Join(found, " ")}
	if len(lacking) > 0 {
		c.Status = Degraded
		c.Found = strings.TrimSpace(c.Found + " but not " + strings.Join(lacking, " "))
		c.Means = "checksums and encoding run on slower code"
		c.Fix = "in a virtual machine: let it see the host's CPU (QEMU: -cpu host)"
	}
	return c
}

func cpus(_ context.Context, h *Host) Check {
	var found []string
	allowed := 0
	if list, ok := h.field("proc/self/status", "Cpus_allowed_list"); ok {
		allowed, _ = cpuList(list)
	}
	if online, ok := h.read("sys/devices/system/cpu/online"); ok {
		if n, ok := cpuList(online); ok {
			if allowed == 0 {
				allowed = n
			}
			found = append(found, fmt.Sprintf("%d online", n))
		}
	}
	if allowed == 0 {
		return Check{Status: Degraded, Found: "neither /proc nor /sys tells how many", Means: "loops are not pinned by what the machine has"}
	}
	found = append(found, fmt.Sprintf("%d for this process", allowed))
	limit := float64(allowed)
	if q := h.quota(); q > 0 {
		found = append(found, fmt.Sprintf("quota of %.2g CPUs", q))
		limit = min(limit, q)
	}
	if isolated, ok := h.read("sys/devices/system/cpu/isolated"); ok && isolated != "" {
		found = append(found, "isolated "+isolated)
	}
	if h.flag("sys/devices/system/cpu/smt/active") {
		found = append(found, "SMT on")
	}
	if governor, ok := h.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"); ok {
		found = append(found, "governor "+governor)
	}
	c := Check{Found: strings.Join(found, ", ")}
	switch {
	case limit < 2 && limit < float64(allowed):
		c.Status = Degraded
		c.Means = "a loop that spins uses the quota up and is stopped for the rest of each period: milliseconds of latency"
		c.Fix = "raise the quota (docker run --cpus 2; resources.limits.cpu in Kubernetes), or run with --idle efficient"
	case limit < 2:
		c.Status = Degraded
		c.Means = "a loop that spins takes the CPU from its clients"
		c.Fix = "run with --idle efficient, or give the process a second CPU"
	}
	return c
}

// idleCPUs looks at what a virtual CPU does that has nothing to do
// (Documentation/virt/guest-halt-polling.rst).
func idleCPUs(_ context.Context, h *Host) Check {
	const file = "sys/module/haltpoll/parameters/guest_halt_poll_ns"
	driver, _ := h.read("sys/devices/system/cpu/cpuidle/current_driver")
	nanos, ok := h.number(file)
	switch {
	case driver == "":
		return Check{Found: "this kernel does not tell what they do"}
	case driver != "haltpoll" || !ok:
		return Check{Found: "driver " + driver}
	case nanos > 0:
		return Check{Found: fmt.Sprintf("haltpoll: they poll for up to %v before they halt", time.Duration(nanos))}
	}
	return Check{
		Status: Degraded, Found: "haltpoll, guest_halt_poll_ns 0: they halt at once, which leaves the virtual machine",
		Means: "each short sleep and each wake-up of a loop takes about 10 µs more CPU: a third of a busy broker that sleeps",
		Fix:   "echo 200000 > /" + file + " (it was 0), if the host may spend CPU time on polling",
	}
}

// flag is a file that holds 1.
func (h *Host) flag(name string) bool {
	n, ok := h.number(name)
	return ok && n == 1
}

// fastClocks are those that clock_gettime reads without a system call (the
// kernel's VDSO_CLOCKMODEs).
var fastClocks = []string{"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"}

func clock(_ context.Context, h *Host) Check {
	const dir = "sys/devices/system/clocksource/clocksource0/"
	name, ok := h.read(dir + "current_clocksource")
	if !ok {
		return Check{Found: "this kernel does not tell"}
	}
	if slices.Contains(fastClocks, name) {
		return Check{Found: name}
	}
	c := Check{Status: Degraded, Found: name, Means: "reading the time is a system call, and a loop does it in each of its rounds"}
	available, _ := h.read(dir + "available_clocksource")
	for _, f := range fastClocks {
		if slices.Contains(strings.Fields(available), f) {
			c.Fix = "echo " + f + " > /" + dir + "current_clocksource (it was " + name + ")"
			break
		}
	}
	return c
}

const (
	// wantHugeBytes is what a broker's or proxy's pool, 128 MiB, and the rings of
	// some ports take.
	wantHugeBytes = 256 << 20
	// memoryShare of what is available is the most that --fix reserves: reserved
	// pages are lost for everything else.
	memoryShare = 4
)

func hugePages(_ context.Context, h *Host) Check {
	const dir = "sys/kernel/mm/hugepages/hugepages-2048kB/"
	total, ok := h.number(dir + "nr_hugepages")
	if !ok {
		return Check{
			Status: Degraded, Found: "this kernel offers none of 2 MiB",
			Means: "the data path's memory uses transparent huge pages or ordinary ones: more TLB misses",
		}
	}
	free, _ := h.number(dir + "free_hugepages")
	reserved, _ := h.number(dir + "resv_hugepages")
	free = max(0, free-reserved)
	found := []string{fmt.Sprintf("2 MiB: %d of %d free", free, total)}
	if n, _ := h.number("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"); n > 0 {
		found = append(found, fmt.Sprintf("1 GiB: %d", n))
	}
	if at := h.mount("hugetlbfs"); at != "" {
		found = append(found, "hugetlbfs at "+at)
	}
	c := Check{Found: strings.Join(found, ", ")}
	const need = wantHugeBytes / (2 << 20)
	if free >= need {
		return c
	}
	c.Status = Degraded
	c.Means = fmt.Sprintf("a broker or proxy wants %d MiB; what it does not get comes from transparent huge pages or ordinary ones: more TLB misses", wantHugeBytes>>20)
	add := need - free
	if kB, ok := h.memAvailable(); ok && add > kB/2048/memoryShare {
		add = kB / 2048 / memoryShare
	}
	if add <= 0 {
		c.Fix = "free memory first: too little is available to reserve any"
		return c
	}
	// vm.nr_hugepages is about pages of the default size, which may be another.
	if size, ok := h.field("proc/meminfo", "Hugepagesize"); ok && size == "2048 kB" {
		c.repair = sysctl(h, "vm.nr_hugepages", total, total+add)
	} else {
		c.repair = knob(h, dir+"nr_hugepages", total, total+add)
	}
	c.Fix = c.repair.command
	return c
}

// memAvailable is MemAvailable in kB.
func (h *Host) memAvailable() (kB int, ok bool) {
	text, _ := h.field("proc/meminfo", "MemAvailable")
	kB, err := strconv.Atoi(strings.TrimSuffix(text, " kB"))
	return kB, err == nil
}

// mount is where the first file system of a type is mounted; empty if none is.
func (h *Host) mount(kind string) string {
	text, _ := h.read("proc/mounts")
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == kind {
			return f[1]
		}
	}
	return ""
}

func transparentHugePages(_ context.Context, h *Host) Check {
	const file = "sys/kernel/mm/transparent_hugepage/enabled"
	text, ok := h.read(file)
	if !ok {
		return Check{Status: Degraded, Found: "this kernel has none", Means: "without reserved huge pages the data path's memory is ordinary pages"}
	}
	mode := chosen(text)
	c := Check{Found: mode}
	if mode == "never" {
		c.Status = Degraded
		c.Means = "without reserved huge pages the data path's memory is ordinary pages"
		c.Fix = "echo madvise > /" + file + " (it was never)"
	}
	return c
}

// chosen is the word in brackets of "always [madvise] never".
func chosen(s string) string {
	for _, w := range strings.Fields(s) {
		if strings.HasPrefix(w, "[") && strings.HasSuffix(w, "]") {
			return w[1 : len(w)-1]
		}
	}
	return s
}

func lockedMemory(_ context.Context, h *Host) Check {
	switch {
	case h.LockedBytes == ^uint64(0):
		return Check{Found: "no limit"}
	case h.capable(capIPCLock):
		return Check{Found: mebibytes(h.LockedBytes) + ", which CAP_IPC_LOCK lifts"}
	case h.LockedBytes >= wantHugeBytes:
		return Check{Found: mebibytes(h.LockedBytes)}
	}
	return Check{
		Status: Degraded, Found: mebibytes(h.LockedBytes),
		Means: fmt.Sprintf("RDMA devices and AF_XDP lock the memory that they are given, about %d MiB; TCP, RDMA over UDP and memif lock none", wantHugeBytes>>20),
		Fix:   "ulimit -l unlimited (LimitMEMLOCK=infinity in a systemd unit; docker run --ulimit memlock=-1)",
	}
}

func mebibytes(n uint64) string { return fmt.Sprintf("%.4g MiB", float64(n)/(1<<20)) }

// wantFiles is a thousand connections, each with a bootstrap connection, and room.
const wantFiles = 4096

func openFiles(_ context.Context, h *Host) Check {
	c := Check{Found: fmt.Sprintf("up to %d", h.OpenFiles)}
	if h.OpenFiles < wantFiles {
		c.Status = Degraded
		c.Means = fmt.Sprintf("each connection takes one or two; a thousand need about %d", wantFiles)
		c.Fix = "ulimit -Hn 65536 (LimitNOFILE=65536 in a systemd unit; docker run --ulimit nofile=65536)"
	}
	return c
}

func busyPolling(_ context.Context, h *Host) Check {
	const dir = "proc/sys/net/core/"
	var found []string
	for _, name := range []string{"busy_poll", "busy_read", "somaxconn"} {
		if n, ok := h.number(path.Join(dir, name)); ok {
			found = append(found, fmt.Sprintf("net.core.%s %d", name, n))
		}
	}
	if v, ok := kernelVersion(h.Release); ok && !older(v, [2]int{6, 9}) {
		found = append(found, "busy polling per epoll (6.9)")
	}
	if len(found) == 0 {
		return Check{Found: "this network namespace does not tell"}
	}
	return Check{Found: strings.Join(found, ", "), Means: "loops poll sockets themselves; the kernel's busy polling adds to it only on network cards, and costs CPU"}
}
