// Package eal makes ports of libdpdk: network cards that a PMD of libdpdk drives,
// and virtual devices such as net_memif, net_ring or net_af_packet. It needs
// cgo, the build tag dpdk and Debian's libdpdk-dev; without them every
// constructor returns ErrNotBuilt.
//
// The frames of a card lie in an arena of package hugepages, beside the card's NUMA node:
// its mbufs have external buffers there, so what is written into a frame is what the
// card sends. Where libdpdk cannot do that they lie in its own memory, which is no copy
// more. Virtual devices but net_ring and net_null copy each frame. Stats counts both.
//
// A port makes one crossing per burst, a call into C without cgo's bookkeeping
// (internal/ccall) unless the driver may wait for the kernel: the crossing transmits what is given,
// receives into a stash, gives freed frames back and refills a stash of empty
// frames. AllocBurst, RxBurst and FreeBurst work on the stashes and cross only
// when a stash has run out. All arrays lie in C memory.
//
// # Threads
//
// Init runs rte_eal_init on a thread of its own that ends with it, so that the
// CPU affinity it sets stays off Go's threads. libdpdk's own threads take no
// signals. A port may be used from any goroutine, by one at a time: its pool is a
// stack without locks that only the port's owner touches, so no thread needs to be
// registered with libdpdk (and a goroutine needs no LockOSThread).
//
// # How many ports
//
// libdpdk has RTE_MAX_ETHPORTS ports in a process: 32 in Debian's build. Each loop
// of each peer process takes one of net_memif, and serving takes one more. The next
// one fails with libdpdk's "Reached maximum number of Ethernet ports". dpdk/memif
// has no such limit and speaks to net_memif.
//
// # A net_memif peer that dies
//
// net_memif unmaps the shared memory on libdpdk's interrupt thread as soon as the
// control socket of a peer closes, without regard for a burst under way. A port
// holds the lock that this disconnect takes on its way for the length of each
// burst, which makes the unmapping wait. The lock is found in the driver's private
// structure and recognised by the random secret of the interface; see Guarded.
// What remains: net_memif trusts the offsets and lengths that its peer writes into
// the rings, so a hostile peer can crash this process.
package eal

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/dpdk"
)

// ErrNotBuilt says that this binary has no libdpdk in it.
var ErrNotBuilt = errors.New("dpdk/eal: this binary was built without libdpdk; install libdpdk-dev and gcc, then rebuild with `make build` (or `go build -tags dpdk`)")

// Options size a port. Zero values take the defaults.
type Options struct {
	MTU        int // IP bytes per frame; default the device's own (net_memif: what a frame has room for)
	FrameBytes int // room of one frame; default 4352: a 4096-byte RoCE payload and all headers
	Frames     int // frames that the owner can hold at once; default 768
	Ring       int // descriptors per queue, for devices that can choose; default 256
}

const (
	defaultFrameBytes = 4352
	defaultFrames     = 768
	defaultRing       = 256

	minMTU        = 576 // RFC 791
	minFrameBytes = 64
	maxFrameBytes = 65535 - 128 // an mbuf's 16-bit buffer length, less its headroom
	maxFrames     = 1 << 16
	maxRing       = 1 << 14 // ETH_MEMIF_MAX_LOG2_RING_SIZE

	etherHeaderBytes = 14
)

func (o Options) withDefaults() (Options, error) {
	set := func(v *int, def, min, max int, what string) error {
		if *v == 0 {
			*v = def
		}
		if *v < min || *v > max {
			return fmt.Errorf("dpdk/eal: %s is %d; it must be in %d…%d", what, *v, min, max)
		}
		return nil
	}
	if o.MTU != 0 {
		if err := set(&o.MTU, 0, minMTU, maxFrameBytes-etherHeaderBytes, "Options.MTU"); err != nil {
			return o, err
		}
		if o.FrameBytes == 0 {
			o.FrameBytes = max(defaultFrameBytes, o.MTU+etherHeaderBytes)
		}
	}
	if err := set(&o.FrameBytes, defaultFrameBytes, minFrameBytes, maxFrameBytes, "Options.FrameBytes"); err != nil {
		return o, err
	}
	if err := set(&o.Frames, defaultFrames, 1, maxFrames, "Options.Frames"); err != nil {
		return o, err
	}
	return o, set(&o.Ring, defaultRing, 2, maxRing, "Options.Ring")
}

// Role of a net_memif interface. The server listens; the client connects, and its
// memory holds the rings and buffers.
type Role int

const (
	Server Role = iota
	Client
)

func (r Role) String() string {
	if r == Client {
		return "client"
	}
	return "server"
}

// MemifConfig describes one net_memif interface: one link to one peer process.
type MemifConfig struct {
	Role Role
	// Socket, ID and Secret name the interface. A server leaves them zero and gets
	// its own back from MemifOf; a client is told them by the server.
	Socket  string
	ID      uint32
	Secret  string
	Options Options // Ring is rounded up to a power of two
}

// Memif is what a peer process needs to connect to a server interface.
type Memif struct {
	Socket string
	ID     uint32
	Secret string
}

// Port is a port of libdpdk.
type Port interface {
	dpdk.Port
	dpdk.LinkState
	// Guarded says whether a net_memif port can survive a peer that dies during a
	// burst. It is false for other devices, which do not need it, and for a
	// libdpdk whose net_memif is laid out in an unknown way.
	Guarded() bool
	// Stats counts what the port did. Any goroutine, also after Close.
	Stats() Stats
}

// OpenPort is a port that is open, and what it did.
type OpenPort struct {
	Info  dpdk.PortInfo
	Queue int
	Stats Stats
}

// Stats of a Port. A frame that was not copied lies where the engine reads or writes it
// when the device, or the port at the other end, has it: none of our code copies it, nor
// does libdpdk.
type Stats struct {
	RxFrames, TxFrames uint64 // copied or not
	RxCopied, TxCopied uint64 // of these, those that libdpdk's driver copied
	Dropped            uint64 // received frames dropped because they came in several segments
	Starved            uint64 // times that the pool had no empty frame
	// Memory says where the frames lie: in an arena of package hugepages, or in
	// libdpdk's memory, and why.
	Memory string
}
