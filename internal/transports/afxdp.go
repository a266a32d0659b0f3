package transports

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/afxdp"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// afxdpDevice is one queue of a network device that the kernel keeps; the kernel
// has the address, and answers for it.
func afxdpDevice(netdev string) Device {
	name := "afxdp:" + netdev
	probe := func() *Unavailable {
		if err := afxdp.Probe(); err != nil {
			return &Unavailable{Transport: "dpdk", Device: name, Reason: err.Error(), Fix: "run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF; millrace doctor tells more"}
		}
		return nil
	}
	return Device{Name: name, Probe: probe, New: func(u *url.URL) (netpoll.Backend, error) {
		q := u.Query()
		number := func(name string, def, high int) (int, error) {
			if !q.Has(name) {
				return def, nil
			}
			n, err := strconv.Atoi(q.Get(name))
			if err != nil || n < 0 || n > high {
				return 0, fmt.Errorf("%s: %s=%q: give 0 to %d", u, name, q.Get(name), high)
			}
			return n, nil
		}
		queue, err := number("queue", 0, 1<<16-1)
		if err != nil {
			return nil, err
		}
		udp, err := number("udp", rocePort, 1<<16-1)
		if err != nil {
			return nil, err
		}
		for name := range q {
			if name != "port" && name != "queue" && name != "udp" {
				return nil, fmt.Errorf("%s: unknown parameter %q: an AF_XDP port takes queue and udp", u, name)
			}
		}
		local, err := localAddr(u)
		if err != nil {
			return nil, err
		}
		local = netip.AddrPortFrom(local.Addr(), uint16(udp))
		open := func(context.Context) (*dpdk.Link, error) { return openXDP(netdev, queue, local) }
		return deviceParam{dpdk.NewPortEventLoop(open, rdma.EventLoopOptions{}), []string{"port", "queue", "udp"}}, nil
	}}
}

// rocePort is RoCEv2's UDP port (IBTA annex A17).
const rocePort = 4791

func openXDP(netdev string, queue int, local netip.AddrPort) (*dpdk.Link, error) {
	dev, err := afxdp.Attach(netdev, afxdp.Match{Local: local})
	if err != nil {
		return nil, err
	}
	port, err := dev.Open(afxdp.Config{Queue: queue})
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	whole := xdpPort{port, dev}
	link, err := dpdk.NewLink(whole, dpdk.LinkConfig{Local: local, NetDev: netdev})
	if err != nil {
		return nil, errors.Join(err, whole.Close())
	}
	return link, nil
}

// xdpPort is a port that has its device's program to itself.
type xdpPort struct {
	*afxdp.Port
	dev *afxdp.Netdev
}

func (p xdpPort) Close() error { return errors.Join(p.Port.Close(), p.dev.Close()) }
