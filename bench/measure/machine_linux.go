package measure

import (
	"bufio"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
)

// Machine says where the figures come from.
type Machine struct {
	CPUModel       string            `json:"cpuModel"`
	CPUs           int               `json:"cpus"`       // this process may use
	OnlineCPUs     int               `json:"onlineCpus"` // the machine has
	MemoryMiB      int               `json:"memoryMiB"`
	Architecture   string            `json:"architecture"`
	Kernel         string            `json:"kernel"`
	Distribution   string            `json:"distribution,omitempty"`
	Virtualization string            `json:"virtualization"`
	Governor       string            `json:"governor,omitempty"`
	HugePages      string            `json:"hugePages"` // the backing got, and why not a better one
	Load1          float64           `json:"load1"`     // load average of the last minute, at the start
	Versions       map[string]string `json:"versions"`
	Time           string            `json:"time"`
}

// ThisMachine describes the machine for a millrace of the given version.
func ThisMachine(version string) Machine {
	m := Machine{
		CPUModel: cpuModel(), CPUs: runtime.NumCPU(), OnlineCPUs: onlineCPUs(), Architecture: runtime.GOARCH,
		Distribution: distribution(), Virtualization: virtualization(), HugePages: hugePages(),
		Governor: firstLine("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
		Versions: map[string]string{"go": runtime.Version(), "millrace": version},
		Time:     time.Now().UTC().Format(time.RFC3339),
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryMiB = int(uint64(info.Totalram) * uint64(info.Unit) >> 20)
	}
	if f := strings.Fields(firstLine("/proc/loadavg")); len(f) > 0 {
		m.Load1, _ = strconv.ParseFloat(f[0], 64)
	}
	if v := libdpdkVersion(); v != "" {
		m.Versions["libdpdk"] = v
	}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "-tags" {
				m.Versions["tags"] = s.Value
			}
		}
	}
	return m
}

func firstLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// field returns the value of the first line of file that begins with key.
func field(file, key, separator string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		k, v, ok := strings.Cut(s.Text(), separator)
		if ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

func cpuModel() string {
	for _, key := range []string{"model name", "Model", "Hardware"} {
		if v := field("/proc/cpuinfo", key, ":"); v != "" {
			return v
		}
	}
	// arm64 kernels name the core by numbers only.
	if part := field("/proc/cpuinfo", "CPU part", ":"); part != "" {
		return "implementer " + field("/proc/cpuinfo", "CPU implementer", ":") + " part " + part
	}
	return "unknown"
}

func distribution() string { return field("/etc/os-release", "PRETTY_NAME", "=") }

func onlineCPUs() int {
	n := 0
	for _, r := range strings.Split(firstLine("/sys/devices/system/cpu/online"), ",") {
		from, to, isRange := strings.Cut(r, "-")
		a, err := strconv.Atoi(from)
		if err != nil {
			return runtime.NumCPU()
		}
		b := a
		if isRange {
			if b, err = strconv.Atoi(to); err != nil {
				return runtime.NumCPU()
			}
		}
		n += b - a + 1
	}
	return n
}

func virtualization() string {
	if out, err := exec.Command("systemd-detect-virt", "--vm").Output(); err == nil {
		return strings.TrimSpace(string(out))
	}
	product := strings.ToLower(firstLine("/sys/class/dmi/id/sys_vendor") + " " + firstLine("/sys/class/dmi/id/product_name"))
	for _, name := range []string{"qemu", "kvm", "vmware", "virtualbox", "xen", "microsoft", "amazon", "google", "firecracker"} {
		if strings.Contains(product, name) {
			return name
		}
	}
	if strings.Contains(" "+field("/proc/cpuinfo", "flags", ":")+" ", " hypervisor ") {
		return "virtual machine"
	}
	return "none seen"
}

// Emulated tells whether this machine is emulated in software, without hardware
// virtualization: QEMU's TCG names itself in the CPU's model.
func (m Machine) Emulated() bool { return strings.Contains(m.CPUModel, "QEMU TCG") }

func hugePages() string {
	a, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 4 << 20})
	if err != nil {
		return "no memory: " + err.Error()
	}
	defer a.Close()
	return a.Report().String()
}

func libdpdkVersion() string {
	out, err := exec.Command("pkg-config", "--modversion", "libdpdk").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
