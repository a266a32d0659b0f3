package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// What ports of libdpdk and network cards need beside libdpdk itself.

func numaNodes(_ context.Context, h *Host) Check {
	const dir = "sys/devices/system/node"
	var found, without []string
	for _, n := range h.list(dir) {
		if !strings.HasPrefix(n, "node") {
			continue
		}
		free, ok := h.number(path.Join(dir, n, "hugepages/hugepages-2048kB/free_hugepages"))
		switch {
		case !ok:
			found = append(found, n)
		default:
			found = append(found, fmt.Sprintf("%s: %d huge pages free", n, free))
			if free == 0 {
				without = append(without, n)
			}
		}
	}
	if len(found) < 2 {
		return Check{Found: "one node"}
	}
	c := Check{Found: strings.Join(found, ", ")}
	if len(without) > 0 && len(without) < len(found) {
		c.Status = Degraded
		c.Means = "a process on a node without huge pages of its own uses those of another node: each access crosses between the sockets"
		c.Fix = fmt.Sprintf("echo %d > /%s/%s/hugepages/hugepages-2048kB/nr_hugepages", wantHugeBytes/(2<<20), dir, without[0])
	}
	return c
}

// pmdFolders are where distributions put libdpdk's drivers.
var pmdFolders = []string{"usr/lib/x86_64-linux-gnu/dpdk", "usr/lib/aarch64-linux-gnu/dpdk", "usr/lib64/dpdk", "usr/local/lib/x86_64-linux-gnu/dpdk", "usr/local/lib64/dpdk"}

// pmdWanted are the drivers that docs/DPDK.md speaks of.
var pmdWanted = []string{"memif", "ring", "null", "pcap", "tap", "af_packet", "af_xdp"}

func pollModeDrivers(_ context.Context, h *Host) Check {
	have := map[string]bool{}
	cards := 0
	for _, folder := range pmdFolders {
		files, _ := fs.Glob(h.Root, folder+"/pmds-*/librte_net_*.so")
		for _, f := range files {
			name := strings.TrimSuffix(strings.TrimPrefix(path.Base(f), "librte_net_"), ".so")
			if !have[name] {
				have[name] = true
				cards++
			}
		}
	}
	if len(have) == 0 {
		return Check{
			Status: Missing, Found: "no folder of libdpdk has any", Means: "ports of libdpdk cannot run; dpdk:// runs on memif in pure Go",
			Fix: "apt-get install libdpdk-dev (a program that is linked against libdpdk needs the drivers beside it)",
		}
	}
	var found, lacking []string
	for _, name := range pmdWanted {
		if have[name] {
			found = append(found, "net_"+name)
			cards--
		} else {
			lacking = append(lacking, "net_"+name)
		}
	}
	c := Check{Found: fmt.Sprintf("%s, and %d for network cards and others", strings.Join(found, " "), cards)}
	if len(lacking) > 0 {
		c.Status = Degraded
		c.Means = "without " + strings.Join(lacking, " ") + " those ports cannot be made"
		c.Fix = "apt-get install libdpdk-dev"
	}
	return c
}

func vfio(_ context.Context, h *Host) Check {
	const unsafeMode = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
	groups := len(h.list("sys/kernel/iommu_groups"))
	module := h.loaded("vfio_pci")
	mode, _ := h.read(unsafeMode)
	without := mode == "Y" || mode == "1"
	c := Check{Found: fmt.Sprintf("IOMMU with %d groups", groups)}
	switch {
	case groups == 0 && without:
		c.Found = "no IOMMU in use, and vfio set to do without"
	case groups == 0:
		c.Found = "no IOMMU in use"
	}
	if module {
		c.Found += ", vfio-pci loaded"
	} else {
		c.Found += ", vfio-pci not loaded"
	}
	switch {
	case module && groups > 0:
		return c
	case module && without:
		c.Status = Degraded
		c.Means = "libdpdk can drive network cards; such a card reaches all of the machine's memory"
		return c
	}
	c.Status = Missing
	c.Means = "libdpdk cannot drive network cards that it takes from the kernel; mlx5, AF_XDP, net_af_packet and memif need none of this"
	switch {
	case !module && !h.inIndex("modules.dep", "vfio-pci"):
		c.Found += fmt.Sprintf("; kernel %s has no such module here", h.Release)
		c.Fix = "a kernel with vfio-pci (Debian: apt-get install linux-image-" + h.Arch + " && reboot)"
	case groups > 0 || without:
		c.repair = modprobe(h, []string{"vfio-pci"})
		c.Fix = c.repair.command
	default:
		risk := "modprobe vfio enable_unsafe_noiommu_mode=1 && modprobe vfio-pci"
		if mode != "" { // vfio is loaded already
			risk = "sh -c 'echo 1 > /" + unsafeMode + "' && modprobe vfio-pci"
		}
		c.Fix = `turn on VT-d or AMD-Vi in the firmware; with Intel's CPUs also (Debian): sed -i 's/^GRUB_CMDLINE_LINUX="/&intel_iommu=on iommu=pt /' /etc/default/grub && update-grub && reboot; ` +
			"in a virtual machine without an IOMMU, at your own risk: " + risk
	}
	return c
}

// networkClass begins the class of PCI devices that are network controllers.
const networkClass = "0x02"

// card is a network controller on PCI.
type card struct {
	addr, driver string
	netdev       string // the kernel's device, empty if it has none
	up           bool
}

func (h *Host) card(dir, addr string) card {
	c := card{addr: addr, driver: "no driver"}
	uevent, _ := h.read(path.Join(dir, addr, "uevent"))
	for line := range strings.Lines(uevent) {
		if d, ok := strings.CutPrefix(strings.TrimSpace(line), "DRIVER="); ok {
			c.driver = d
		}
	}
	// A virtio card's is one level further down.
	for _, pattern := range []string{"net/*", "virtio*/net/*"} {
		if found, _ := fs.Glob(h.Root, path.Join(dir, addr, pattern)); len(found) > 0 {
			c.netdev = path.Base(found[0])
		}
	}
	state, _ := h.read("sys/class/net/" + c.netdev + "/operstate")
	c.up = c.netdev != "" && state == "up"
	return c
}

func networkCards(_ context.Context, h *Host) Check {
	const dir = "sys/bus/pci/devices"
	var found []string
	var spare, used *card // the first of each that libdpdk does not have
	bound := 0
	for _, addr := range h.list(dir) {
		class, _ := h.read(path.Join(dir, addr, "class"))
		if !strings.HasPrefix(class, networkClass) {
			continue
		}
		c := h.card(dir, addr)
		text := addr + " " + c.driver
		if node, ok := h.number(path.Join(dir, addr, "numa_node")); ok && node >= 0 {
			text += fmt.Sprintf(" on node %d", node)
		}
		switch {
		case c.up:
			text += " (" + c.netdev + ", up)"
		case c.netdev != "":
			text += " (" + c.netdev + ")"
		}
		found = append(found, text)
		switch c.driver {
		case "vfio-pci", "uio_pci_generic", "igb_uio", "mlx5_core", "mlx4_core", "mana": // the last three share a card with the kernel
			bound++
		default:
			if c.up && used == nil {
				used = &c
			} else if !c.up && spare == nil {
				spare = &c
			}
		}
	}
	if len(found) == 0 {
		return Check{Found: "none on PCI", Means: "dpdk:// runs on memif between processes, and on any network device by net_af_packet or AF_XDP"}
	}
	c := Check{Found: strings.Join(found, ", ")}
	if bound > 0 {
		return c
	}
	c.Status = Missing
	c.Means = "libdpdk drives none of these; dpdk:// runs on memif between processes, and on what the kernel drives by net_af_packet or AF_XDP"
	if spare != nil {
		c.Fix = "dpdk-devbind.py --bind=vfio-pci " + spare.addr + " (Debian: package dpdk); the kernel loses the card until --bind=" + spare.driver
		if spare.driver == "no driver" {
			c.Fix = "dpdk-devbind.py --bind=vfio-pci " + spare.addr + " (Debian: package dpdk)"
		}
	} else {
		c.Fix = "share one with the kernel: dpdk://HOST:PORT?port=afxdp:" + used.netdev + "; libdpdk wants a card for itself, and all of these are up"
	}
	return c
}

func portCapabilities(_ context.Context, h *Host) Check {
	var have, lacking []string
	for _, c := range []struct {
		bit  int
		name string
	}{{capNetAdmin, "CAP_NET_ADMIN"}, {capNetRaw, "CAP_NET_RAW"}, {capIPCLock, "CAP_IPC_LOCK"}} {
		if h.capable(c.bit) {
			have = append(have, c.name)
		} else {
			lacking = append(lacking, c.name)
		}
	}
	if len(lacking) == 0 {
		return Check{Found: strings.Join(have, " ")}
	}
	return Check{
		Status: Missing, Found: "no " + strings.Join(lacking, " "),
		Means: "net_af_packet takes CAP_NET_RAW, net_tap CAP_NET_ADMIN, memory for cards CAP_IPC_LOCK; memif takes none",
		Fix:   "run as root, or setcap cap_net_admin,cap_net_raw,cap_ipc_lock+ep FILE (Debian: package libcap2-bin; FILE is millrace-native for libdpdk's ports; docker run --cap-add NET_ADMIN --cap-add NET_RAW --cap-add IPC_LOCK)",
	}
}
