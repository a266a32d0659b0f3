package dpdk

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/intel-go/nff-go/types"
	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/internal/rtnetlink"
)

// kernelNet is the kernel beside a port: it answers ARP and keeps routes, and the
// port uses what it knows.
type kernelNet struct {
	dev  *rtnetlink.Device
	sink int // UDP: takes what arrives for the port's address, so that the kernel refuses nothing
}

// openKernelNet prepares questions about the network device of that name, which
// has the address local.
func openKernelNet(name string, local netip.AddrPort) (*kernelNet, error) {
	dev, err := rtnetlink.Open(name)
	if err != nil {
		return nil, fmt.Errorf("dpdk: asking the kernel about %s: %w", name, err)
	}
	k := &kernelNet{dev: dev, sink: -1}
	if err := k.openSink(local); err != nil {
		return nil, errors.Join(fmt.Errorf("dpdk: %s on %s: %w (the address must be one of that device, and the UDP port free)", local, name, err), k.close())
	}
	return k, nil
}

// openSink binds a socket that drops everything. Packets of the port reach the
// kernel too where it shares the device (net_af_packet, net_tap); without a socket
// it would tell the peers that nobody is here.
func (k *kernelNet) openSink(local netip.AddrPort) (err error) {
	family, sa := sockaddr(local)
	if k.sink, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return err
	}
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	if err = unix.SetsockoptSockFprog(k.sink, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}); err != nil {
		return err
	}
	return unix.Bind(k.sink, sa)
}

func sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (k *kernelNet) close() error {
	if k.sink >= 0 {
		_ = unix.Close(k.sink)
		k.sink = -1
	}
	return k.dev.Close()
}

// gateway is the station behind which dst lies; the zero Addr where dst is on the
// device's own network.
func (k *kernelNet) gateway(dst netip.Addr) (netip.Addr, error) {
	r, err := k.dev.Route(dst)
	if err == nil && r.Local {
		err = fmt.Errorf("%s is an address of this machine, which %s does not reach", dst, k.dev.Name)
	}
	return r.Gateway, err
}

// lookup is the kernel's entry for a neighbour. Where it has none, it is made to
// look for one.
func (k *kernelNet) lookup(addr netip.Addr) (types.MACAddress, bool) {
	mac, ok := k.dev.Neighbour(addr)
	if !ok {
		k.dev.Ask(addr)
	}
	return types.MACAddress(mac), ok
}
