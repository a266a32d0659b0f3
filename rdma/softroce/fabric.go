package softroce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// PacketFabricName is the name of the fabric of NewPacketFabric: everything that
// RoCEv2 packets over UDP port 4791 reach, cards and the kernel's Soft-RoCE included.
const PacketFabricName = "rocev2"

// udpFabricName is that of engines which tell each other their UDP ports.
const udpFabricName = "softroce+udp"

// linkFabric makes one device over a link when it is first needed.
type linkFabric struct {
	name string
	open func() (*Device, error)
	mu   sync.Mutex
	made bool
}

// NewFabric is the network of user-space devices over UDP sockets, for one
// rdma.EventLoop. addr is an address of this machine that peers can reach; port 0
// picks a free one, which the bootstrap tells the peers.
func NewFabric(addr netip.AddrPort, o Options) rdma.Fabric {
	return &linkFabric{name: udpFabricName, open: func() (*Device, error) {
		l, err := NewUDPLink(addr)
		if err != nil {
			return nil, err
		}
		return newLinkDevice(l, o)
	}}
}

// NewRawFabric is the same network as NewFabric, reached over packet sockets of the
// interface that has the address and of loopback: less work for the kernel, and the
// whole ICRC checked over IPv4. The program needs CAP_NET_RAW.
func NewRawFabric(addr netip.AddrPort, o Options) rdma.Fabric {
	return &linkFabric{name: udpFabricName, open: func() (*Device, error) { return newPacketDevice("", addr, o) }}
}

// NewPacketFabric is RoCEv2 on a network device of the kernel's, for one
// rdma.EventLoop: user-space devices over packet sockets, RNICs and kernel Soft-RoCE
// are its peers. addr is one of the device's addresses; port 0 stands for 4791, which
// the latter two need. The program needs CAP_NET_RAW.
func NewPacketFabric(netdev string, addr netip.AddrPort, o Options) rdma.Fabric {
	if addr.Port() == 0 {
		addr = netip.AddrPortFrom(addr.Addr(), roce.UDPPort)
	}
	return &linkFabric{name: PacketFabricName, open: func() (*Device, error) { return newPacketDevice(netdev, addr, o) }}
}

func newPacketDevice(netdev string, addr netip.AddrPort, o Options) (*Device, error) {
	l, err := NewPacketLink(netdev, addr)
	if err != nil {
		return nil, err
	}
	d, err := newLinkDevice(l, o)
	if err != nil {
		return nil, err
	}
	if err := l.FilterQPNs(d.QPNBlock()); err != nil {
		return nil, errors.Join(fmt.Errorf("softroce: %s: %w", l.attr.Name, err), d.Close())
	}
	return d, nil
}

func newLinkDevice(l Link, o Options) (*Device, error) {
	d := New(l, o)
	if d.pathMTU == 0 {
		return nil, errors.Join(fmt.Errorf("softroce: %s at %v carries packets of %d bytes, too small for RoCEv2", d.attr.Name, d.attr.Local, d.attr.MTU), d.Close())
	}
	return d, nil
}

func (f *linkFabric) Name() string { return f.name }

func (f *linkFabric) PerPeer() bool { return false }

func (f *linkFabric) Offer(context.Context, rdma.Peer) (rdma.Device, map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made {
		return nil, nil, fmt.Errorf("softroce: a fabric of %s serves one event loop", f.name)
	}
	d, err := f.open()
	if err != nil {
		return nil, nil, err
	}
	f.made = true
	return d, nil, nil
}

func (f *linkFabric) Join(ctx context.Context, p rdma.Peer, _ map[string]string) (rdma.Device, error) {
	d, _, err := f.Offer(ctx, p)
	return d, err
}

func (f *linkFabric) Drop(dev rdma.Device) error { return dev.Close() }

func (f *linkFabric) Close() error { return nil }
