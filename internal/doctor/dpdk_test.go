package doctor

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestDPDKChecks(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s + "\n")} }
	with := func(h *Host, files map[string]string) *Host {
		root := fstest.MapFS{}
		for name, f := range h.Root.(fstest.MapFS) {
			root[name] = f
		}
		for name, text := range files {
			if root[name] = file(text); text == "" {
				delete(root, name)
			}
		}
		return &Host{Release: h.Release, Arch: "amd64", Root: root}
	}
	const (
		module    = "sys/module/vfio_pci/version"
		noIOMMU   = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
		dependent = "lib/modules/6.1.0/modules.dep"
		entry     = "kernel/drivers/vfio/pci/vfio-pci.ko: x"
		virtio    = "sys/bus/pci/devices/0000:00:03.0/"
	)
	bare := &Host{Root: fstest.MapFS{}, Release: "6.1.0"}
	full := &Host{Release: "6.1.0", Root: fstest.MapFS{
		"proc/self/status": file("CapEff:\t000001ffffffffff"),
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_memif.so":             file(""),
		"usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_ice.so":               file(""),
		"sys/kernel/iommu_groups/0/type":                                          file("DMA"),
		"sys/module/vfio_pci/version":                                             file("0.2"),
		"sys/bus/pci/devices/0000:00:1f.0/class":                                  file("0x060100"),
		"sys/bus/pci/devices/0000:01:00.0/class":                                  file("0x020000"),
		"sys/bus/pci/devices/0000:01:00.0/uevent":                                 file("DRIVER=ice\nPCI_CLASS=20000"),
		"sys/bus/pci/devices/0000:01:00.0/numa_node":                              file("1"),
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages": file("128"),
		"sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages": file("0"),
		"sys/devices/system/node/has_cpu":                                         file("0-1"),
	}}
	for _, tt := range []struct {
		name       string
		c          Check
		status     Status
		found, fix string
	}{
		{"drivers, none", pollModeDrivers(t.Context(), bare), Missing, "no folder", "libdpdk-dev"},
		{"drivers", pollModeDrivers(t.Context(), full), Degraded, "net_memif, and 1 for", "libdpdk-dev"},
		{"capabilities, none", portCapabilities(t.Context(), bare), Missing, "CAP_NET_RAW", "setcap"},
		{"capabilities", portCapabilities(t.Context(), full), "", "CAP_NET_RAW", ""},
		{"vfio, none", vfio(t.Context(), with(bare, nil)), Missing, "kernel 6.1.0 has no such module", "linux-image-amd64"},
		{"no iommu", vfio(t.Context(), with(bare, map[string]string{dependent: entry})), Missing, "no IOMMU", "intel_iommu=on"},
		{"no iommu, vfio loaded", vfio(t.Context(), with(bare, map[string]string{dependent: entry, noIOMMU: "N"})), Missing, "no IOMMU", "echo 1 > /" + noIOMMU},
		{"no iommu, vfio-pci not loaded", vfio(t.Context(), with(bare, map[string]string{dependent: entry, noIOMMU: "Y"})), Missing, "do without", "modprobe -a vfio-pci"},
		{"no iommu and allowed", vfio(t.Context(), with(bare, map[string]string{module: "0.2", noIOMMU: "Y"})), Degraded, "do without, vfio-pci loaded", ""},
		{"vfio-pci not loaded", vfio(t.Context(), with(full, map[string]string{module: "", dependent: entry})), Missing, "vfio-pci not loaded", "modprobe -a vfio-pci"},
		{"vfio", vfio(t.Context(), full), "", "1 groups, vfio-pci loaded", ""},
		{"cards, none", networkCards(t.Context(), bare), "", "none", ""},
		{"cards", networkCards(t.Context(), full), Missing, "0000:01:00.0 ice on node 1", "--bind=vfio-pci 0000:01:00.0 (Debian: package dpdk); the kernel loses the card until --bind=ice"},
		{"a card for libdpdk", networkCards(t.Context(), with(full, map[string]string{"sys/bus/pci/devices/0000:01:00.0/uevent": "DRIVER=vfio-pci"})), "", "vfio-pci on node 1", ""},
		{"the only card is up", networkCards(t.Context(), with(bare, map[string]string{ // nobody is told to give away what he is logged in by
			virtio + "class": "0x020000", virtio + "uevent": "DRIVER=virtio-pci", virtio + "virtio2/net/eth0/mtu": "1500", "sys/class/net/eth0/operstate": "up",
		})), Missing, "0000:00:03.0 virtio-pci (eth0, up)", "dpdk://HOST:PORT?port=afxdp:eth0"},
		{"numa, none", numaNodes(t.Context(), bare), "", "one node", ""},
		{"numa", numaNodes(t.Context(), full), Degraded, "node0: 128", "node1/hugepages"},
	} {
		if tt.c.Status != tt.status || !strings.Contains(tt.c.Found, tt.found) || !strings.Contains(tt.c.Fix, tt.fix) || tt.fix == "" && tt.c.Fix != "" {
			t.Errorf("%s: %+v", tt.name, tt.c)
		}
		if (tt.c.Status == Missing || tt.c.Status == Degraded) && tt.c.Means == "" {
			t.Errorf("%s: what does it mean? %+v", tt.name, tt.c)
		}
	}
}
