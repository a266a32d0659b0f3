package rdma

import (
	"context"

	"github.com/millrace/millrace/rdma/bootstrap"
)

// Fabric gives an EventLoop its devices. Making a device may take tens of
// milliseconds, so Offer, Join and Drop run on goroutines of the control path,
// several at a time; once returned, a device belongs to the loop's goroutine
// until it is handed to Drop.
//
// Where the network joins everybody (a UDP socket, an RNIC) there is one device
// for all peers. Where a link is point to point (memif) there is one for each
// loop of each peer process: the passive side makes one end and describes it,
// the active side joins with that description.
type Fabric interface {
	// Name says which kind of link it is. Both ends of a connection must use
	// fabrics of the same name. 1 to 64 printable bytes.
	Name() string
	// PerPeer tells whether each peer gets a device of its own. If not, Offer and
	// Join are called once at most in the life of an EventLoop.
	PerPeer() bool
	// Offer makes the device for a peer that dialled, and says how the peer
	// joins: at most 16 parameters, names up to 64 bytes, values 1 to 512.
	Offer(ctx context.Context, peer Peer) (Device, map[string]string, error)
	// Join makes the device for a link that peer offered.
	Join(ctx context.Context, peer Peer, link map[string]string) (Device, error)
	// Drop closes a device that no connection uses any more.
	Drop(dev Device) error
	// Close frees the fabric; all its devices were dropped.
	Close() error
}

// Peer is the other end of a link: one event loop of one process.
type Peer struct {
	Instance bootstrap.Instance // random for each process
	Loop     uint64             // of that process
	Addr     string             // TCP address of its bootstrap, for messages
}

// DeviceFabric is the fabric of one existing device that reaches all peers. It
// owns dev, and serves one EventLoop. name tells both ends that they mean the
// same network, "udp" for instance.
func DeviceFabric(name string, dev Device) Fabric { return &deviceFabric{name, dev} }

type deviceFabric struct {
	name string
	dev  Device
}

func (f *deviceFabric) Name() string  { return f.name }
func (f *deviceFabric) PerPeer() bool { return false }
func (f *deviceFabric) Offer(context.Context, Peer) (Device, map[string]string, error) {
	return f.dev, nil, nil
}
func (f *deviceFabric) Join(context.Context, Peer, map[string]string) (Device, error) {
	return f.dev, nil
}
func (f *deviceFabric) Drop(Device) error { return nil }
func (f *deviceFabric) Close() error      { return f.dev.Close() }
