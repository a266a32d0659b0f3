package softroce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/millrace/millrace/rdma"
)

// udpFabric makes one device over a UDP socket when it is first needed.
type udpFabric struct {
	addr netip.AddrPort
	opts Options
	mu   sync.Mutex
	dev  *Device
}

// NewFabric is the network of user-space devices over UDP sockets, for one
// rdma.EventLoop. addr is an address of this machine that peers can reach; port 0
// picks a free one, which the bootstrap tells the peers.
func NewFabric(addr netip.AddrPort, o Options) rdma.Fabric { return &udpFabric{addr: addr, opts: o} }

func (f *udpFabric) Name() string { return "softroce+udp" }

func (f *udpFabric) PerPeer() bool { return false }

func (f *udpFabric) Offer(context.Context, rdma.Peer) (rdma.Device, map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dev != nil {
		return nil, nil, errors.New("softroce: a UDP fabric serves one event loop")
	}
	link, err := NewUDPLink(f.addr)
	if err != nil {
		return nil, nil, err
	}
	d := New(link, f.opts)
	if d.pathMTU == 0 {
		return nil, nil, errors.Join(fmt.Errorf("softroce: the interface of %v carries packets of %d bytes, too small for RoCEv2", f.addr.Addr(), d.attr.MTU), d.Close())
	}
	f.dev = d
	return d, nil, nil
}

func (f *udpFabric) Join(ctx context.Context, p rdma.Peer, _ map[string]string) (rdma.Device, error) {
	d, _, err := f.Offer(ctx, p)
	return d, err
}

func (f *udpFabric) Drop(dev rdma.Device) error { return dev.Close() }

func (f *udpFabric) Close() error { return nil }
