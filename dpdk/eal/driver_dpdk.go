//go:build dpdk && cgo

package eal

import "strings"

// copies says whether the driver of a device copies frames, received and sent, between
// its mbufs and memory of the kernel or of another process. Cards read and write them
// where they lie; of the virtual devices, which begin with net_, two hand over pointers.
// The others copy: net_memif (its zero-copy client, which shows its peer all of
// libdpdk's memory, is not used), net_af_packet, net_tap, net_pcap and the rest.
func copies(device string) bool {
	return strings.HasPrefix(device, "net_") && !strings.HasPrefix(device, "net_ring") && !strings.HasPrefix(device, "net_null")
}

// waits says whether the driver of a device may wait for the kernel in a burst, as
// net_af_packet does until its ring has room (poll(2)) and net_pcap for its file. Cards
// and the virtual devices that are memory alone never do.
func waits(device string) bool { return copies(device) && !strings.HasPrefix(device, "net_memif") }
