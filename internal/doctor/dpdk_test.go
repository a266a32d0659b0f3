package doctor

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestDPDKChecks(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s + "\n")} }
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
		{"vfio, none", vfio(t.Context(), bare), Missing, "no IOMMU", "intel_iommu=on"},
		{"vfio", vfio(t.Context(), full), "", "1 groups, vfio-pci loaded", ""},
		{"cards, none", networkCards(t.Context(), bare), "", "none", ""},
		{"cards", networkCards(t.Context(), full), "", "0000:01:00.0 ice on node 1", "--bind=vfio-pci 0000:01:00.0"},
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
