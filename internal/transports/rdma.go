package transports

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

var rdmaUDP = Transport{
	Scheme: "rdma",
	Probe:  available,
	New: func(u *url.URL) (netpoll.Backend, error) {
		local, err := localAddr(u)
		if err != nil {
			return nil, err
		}
		return rdma.NewEventLoop(softroce.NewFabric(local, softroce.Options{}), rdma.EventLoopOptions{}), nil
	},
}

var dpdkMemif = Transport{
	Scheme: "dpdk",
	Probe:  available,
	New: func(*url.URL) (netpoll.Backend, error) {
		return dpdk.NewEventLoop(&memif.Pairs{}, rdma.EventLoopOptions{}), nil
	},
}

// localAddr is the address of this machine from which the host of u is reached,
// or at which it listens: the one of the same network. Port 0: any.
func localAddr(u *url.URL) (netip.AddrPort, error) {
	// Connecting a datagram socket sends nothing, but chooses the source address.
	c, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), "9"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: no route to that host, or no such host: %w", u, err)
	}
	defer c.Close()
	return netip.AddrPortFrom(c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), 0), nil
}
