package eal

import (
	"errors"
	"strings"
	"syscall"
	"testing"
)

// Words are those of libdpdk 22.11.
func TestErrorsSayHowToMend(t *testing.T) {
	failed := errors.New("it failed")
	for _, tc := range []struct {
		e    Error
		want string
	}{
		{Error{"rte_eal_init --in-memory", "", syscall.EACCES, "EAL: FATAL: Cannot get hugepage information."}, "millrace doctor --fix"},
		{Error{"rte_eal_init --lcores=banana", "", syscall.EINVAL, "EAL: invalid parameter for --lcores"}, "eal= of the address"},
		{Error{"rte_eal_hotplug_add", "net_nosuch0", syscall.EFAULT, `EAL: failed to parse device "vdev:net_nosuch0"`}, "no such driver"},
		{Error{"rte_eal_hotplug_add", "net_ring0", syscall.EEXIST, ""}, "another number"},
		{Error{"rte_eal_hotplug_add", "net_af_packet0,iface=x", failed, "ioctl failed (SIOCGIFINDEX):No such device"}, "after the comma"},
		{Error{"rte_eal_hotplug_add", "net_af_packet0,iface=lo", failed, "Could not open AF_PACKET socket"}, "CAP_NET_RAW"},
		{Error{"rte_eal_hotplug_add", "net_memif0,rsize=99", syscall.EINVAL, "Invalid ring size"}, "after the comma"},
		{Error{"rte_eth_dev_get_port_by_name", "0000:01:00.0", syscall.ENODEV, ""}, "--bind=vfio-pci 0000:01:00.0)"},
		{Error{"rte_eth_dev_get_port_by_name", "net_ring1", syscall.ENODEV, ""}, "no --vdev"},
		{Error{"rte_eth_dev_configure", "net_af_packet0", syscall.EINVAL, "Frame size (9018) > device max frame size (1518)"}, "smaller mtu="},
		{Error{"rte_pktmbuf_pool_create", "net_ring0", syscall.ENOMEM, ""}, "raise -m"},
		{Error{"rte_eth_dev_start", "net_ring0", failed, ""}, "net_ring0: it failed"},
	} {
		if got := tc.e.Error(); !strings.Contains(got, tc.want) || !errors.Is(&tc.e, tc.e.Err) {
			t.Errorf("%q does not say %q", got, tc.want)
		}
	}
}
