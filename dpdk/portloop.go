package dpdk

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

// fabricName is that of package verbs: a port on an Ethernet reaches everything
// that speaks RoCEv2 over UDP, RNICs and kernel Soft-RoCE included.
const fabricName = "rocev2"

// NewPortEventLoop is the backend of dpdk:// for one netpoll.Loop whose connections
// share a port of a network: a network card, net_af_packet, AF_XDP. open is called
// once, when the loop first listens or dials; the link belongs to the loop then.
func NewPortEventLoop(open func(context.Context) (*Link, error), o rdma.EventLoopOptions) *rdma.EventLoop {
	o.Scheme, o.DeviceParam = "dpdk", "port"
	return rdma.NewEventLoop(&portFabric{open: open}, o)
}

type portFabric struct {
	open func(context.Context) (*Link, error)
	mu   sync.Mutex
	dev  *softroce.Device
}

func (f *portFabric) Name() string  { return fabricName }
func (f *portFabric) PerPeer() bool { return false }

func (f *portFabric) Offer(ctx context.Context, _ rdma.Peer) (rdma.Device, map[string]string, error) {
	dev, err := f.device(ctx)
	return dev, nil, err
}

func (f *portFabric) Join(ctx context.Context, _ rdma.Peer, _ map[string]string) (rdma.Device, error) {
	return f.device(ctx)
}

func (f *portFabric) device(ctx context.Context) (rdma.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dev != nil {
		return f.dev, nil
	}
	link, err := f.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("dpdk: the port does not open: %w", err)
	}
	f.dev = softroce.New(link, softroce.Options{})
	return f.dev, nil
}

// Drop implements rdma.Fabric. The port stays for others until Close.
func (f *portFabric) Drop(rdma.Device) error { return nil }

func (f *portFabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dev == nil {
		return nil
	}
	return f.dev.Close()
}
