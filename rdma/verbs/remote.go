package verbs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

const (
	rocePort = 4791      // IANA's port of RoCEv2, fixed in RNICs and in rdma_rxe
	maxPSN   = 1<<24 - 1 // packet sequence and queue pair numbers have 24 bits
	maxQPN   = 1<<24 - 2 // 0xffffff is the multicast number
)

// checkRemote refuses what no kernel shall be asked for: r comes from a peer.
func checkRemote(r rdma.Remote, a rdma.DeviceAttr) error {
	addr := r.Addr.Unmap()
	switch {
	case r.UDPPort != rocePort:
		return fmt.Errorf("rdma/verbs: the peer listens on UDP port %d, and %s can send to port %d only: give the peer's device that port (it is free once per address)",
			r.UDPPort, a.Name, rocePort)
	case !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast():
		return fmt.Errorf("rdma/verbs: remote address %v is not that of a device", r.Addr)
	case addr.Is4() != a.GID.Is4():
		return fmt.Errorf("rdma/verbs: remote address %v; %s is on %v and reaches only its own family: dial an address of that family, or name another device", addr, a.Name, a.GID)
	case r.QPN < 2 || r.QPN > maxQPN || r.StartPSN > maxPSN:
		return fmt.Errorf("rdma/verbs: remote queue pair %#x with start PSN %#x: they have 24 bits, and numbers 0, 1 and 0xffffff are reserved", r.QPN, r.StartPSN)
	case r.PathMTU < 256 || r.PathMTU > a.PathMTU || r.PathMTU&(r.PathMTU-1) != 0:
		return fmt.Errorf("rdma/verbs: path MTU of %d bytes; %s carries 256, 512, … %d", r.PathMTU, a.Name, a.PathMTU)
	}
	return nil
}

// connectError says what the kernel's refusal of a queue pair's address means.
func connectError(device, step string, r rdma.Remote, err error) error {
	e := &Error{Op: "connect", Device: device, Err: fmt.Errorf("%s, to %v: %w", step, r.Addr, err)}
	switch {
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		e.Fix = "the peer's hardware address could not be found: check that `ping " + r.Addr.String() + "` works from the device's own address"
	case errors.Is(err, unix.EINVAL):
		e.Fix = "check that the GID table of the device still has its address (millrace doctor), and that both ends are in one network"
	}
	return e
}
