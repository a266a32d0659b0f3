package verbs

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/millrace/millrace/rdma"
)

// FabricName is the name of the fabric of NewFabric: everything that RoCEv2
// packets over UDP port 4791 reach.
const FabricName = "rocev2"

// Options of a device.
type Options struct {
	Choice
	// Logger gets the device's asynchronous events. Default slog.Default.
	Logger *slog.Logger
}

// Open opens a device. What cannot be is refused with an *Error that names the
// fix; without any device it wraps rdma.ErrNotSupported.
func Open(o Options) (rdma.Device, error) {
	if err := load(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	port, gid, err := find(thisHost(), o.Choice)
	if err != nil {
		return nil, err
	}
	return open(port, gid, o)
}

// Probe tells whether Open would find a device for c, without opening it.
func Probe(c Choice) error {
	if err := load(); err != nil {
		return err
	}
	_, _, err := find(thisHost(), c)
	return err
}

func find(h host, c Choice) (*Port, GID, error) {
	ports, err := list(h.root)
	if err != nil {
		return nil, GID{}, err
	}
	if len(ports) == 0 {
		return nil, GID{}, h.noDevice()
	}
	port, gid, err := choose(ports, c, routeTo)
	if err != nil {
		return nil, GID{}, err
	}
	return port, gid, h.deviceFile(port)
}

// NewFabric is the rdma.Fabric of one device of this machine, for one EventLoop.
// The device is chosen and opened when the loop first listens or dials; where o
// names neither a device nor an address, the first peer's address decides.
func NewFabric(o Options) (rdma.Fabric, error) {
	if err := load(); err != nil {
		return nil, err
	}
	return &fabric{opts: o}, nil
}

type fabric struct {
	opts Options
	mu   sync.Mutex
	dev  rdma.Device
}

func (f *fabric) Name() string  { return FabricName }
func (f *fabric) PerPeer() bool { return false }

func (f *fabric) Offer(ctx context.Context, peer rdma.Peer) (rdma.Device, map[string]string, error) {
	dev, err := f.device(ctx, peer)
	return dev, nil, err
}

func (f *fabric) Join(ctx context.Context, peer rdma.Peer, _ map[string]string) (rdma.Device, error) {
	return f.device(ctx, peer)
}

func (f *fabric) device(ctx context.Context, peer rdma.Peer) (rdma.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dev != nil {
		return f.dev, nil
	}
	o := f.opts
	if o.Device == "" && !o.Local.IsValid() && !o.Remote.IsValid() && peer.Addr != "" {
		addr, err := Resolve(ctx, peer.Addr)
		if err != nil {
			return nil, fmt.Errorf("rdma/verbs: address of the peer %q: %w", peer.Addr, err)
		}
		o.Remote = addr
	}
	dev, err := Open(o)
	if err == nil {
		f.dev = dev
	}
	return dev, err
}

// Drop implements rdma.Fabric. The device stays for others until Close.
func (f *fabric) Drop(rdma.Device) error { return nil }

func (f *fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dev == nil {
		return nil
	}
	return f.dev.Close()
}
