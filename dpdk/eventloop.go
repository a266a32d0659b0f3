package dpdk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

// Pairs makes point-to-point ports between two processes of one machine: the
// passive side of a connection makes one end and describes it, the active side
// joins with that description. Any goroutine.
type Pairs interface {
	// Name says which kind of port it is; both ends must use the same wire format.
	Name() string
	// Serve makes the end that waits. The port is usable at once; bursts find
	// nothing until the peer has joined.
	Serve(ctx context.Context) (Port, map[string]string, error)
	// Join makes the other end of a port that a peer described.
	Join(ctx context.Context, link map[string]string) (Port, error)
	// Close frees what Serve made besides the ports.
	Close() error
}

// The two ends of a point-to-point port need addresses that both know, and
// nobody else sees: link-local ones (RFC 3927).
var (
	servingEnd = netip.MustParseAddrPort("169.254.77.1:4791")
	joiningEnd = netip.MustParseAddrPort("169.254.77.2:4791")
)

// The parameter of a link by which the serving end offers packets without ICRC. An end
// that does not know it leaves it unread, and keeps the ICRC.
const (
	paramICRC = "icrc"
	icrcNone  = "none"
)

// NewEventLoop is the backend of dpdk:// for one netpoll.Loop: the message
// protocol of rdma.EventLoop over the user-space RoCEv2 engine, run to completion
// on a port of its own for each loop of each peer process.
func NewEventLoop(p Pairs, o rdma.EventLoopOptions) *rdma.EventLoop {
	o.Scheme, o.DeviceParam = "dpdk", "port"
	return rdma.NewEventLoop(&fabric{p}, o)
}

type fabric struct{ pairs Pairs }

func (f *fabric) Name() string  { return f.pairs.Name() }
func (f *fabric) PerPeer() bool { return true }

func (f *fabric) Offer(ctx context.Context, _ rdma.Peer) (rdma.Device, map[string]string, error) {
	p, link, err := f.pairs.Serve(ctx)
	if err != nil {
		return nil, nil, err
	}
	unsummed := p.Info().Memory
	if unsummed {
		link = maps.Clone(link)
		link[paramICRC] = icrcNone
	}
	dev, err := deviceOn(p, servingEnd, unsummed)
	return dev, link, err
}

func (f *fabric) Join(ctx context.Context, _ rdma.Peer, link map[string]string) (rdma.Device, error) {
	p, err := f.pairs.Join(ctx, link)
	if err != nil {
		return nil, err
	}
	return deviceOn(p, joiningEnd, p.Info().Memory && link[paramICRC] == icrcNone)
}

func (f *fabric) Drop(dev rdma.Device) error { return dev.Close() }
func (f *fabric) Close() error               { return f.pairs.Close() }

// deviceOn runs the engine on one end of a point-to-point port, which it owns
// from now on. unsummed: its packets may go without ICRC.
func deviceOn(p Port, local netip.AddrPort, unsummed bool) (rdma.Device, error) {
	link, err := NewLink(p, LinkConfig{Local: local, PointToPoint: true})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dpdk: %s: %w", p.Info().Name, err), p.Close())
	}
	return softroce.New(link, softroce.Options{Unsummed: unsummed}), nil
}
