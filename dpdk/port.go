// Package dpdk is poll mode: Port, a NIC-like port that is polled in bursts, and
// EventLoop, the backend that serves dpdk:// on a netpoll.Loop by running the
// user-space RoCEv2 engine to completion on a port.
package dpdk

import (
	"net"

	"github.com/millrace/millrace/netpoll"
)

// Port is one receive and one transmit queue of a poll-mode device. It has a single
// owner: all methods run on one goroutine. A device with several queues is several
// Ports, each for a loop of its own; see NewLinks.
//
// Frames are the port's memory (mbufs, memif descriptors). Between AllocBurst or
// RxBurst and TxBurst or FreeBurst a frame is the caller's.
type Port interface {
	// Info describes the port.
	Info() PortInfo
	// AllocBurst fills frames with empty frames to transmit; fewer than asked
	// means that the pool or ring is full for now.
	AllocBurst(frames []Frame) int
	// TxBurst transmits frames[i].Data[:Len] in order and returns how many were
	// taken; the rest stay the caller's. Received frames are taken as well, as they
	// are, but by memif's ports, each of whose rings has buffers of its own.
	TxBurst(frames []Frame) int
	// RxBurst fills frames with received ones and returns how many. The caller
	// gives each back with FreeBurst.
	RxBurst(frames []Frame) int
	// FreeBurst gives frames back to the port.
	FreeBurst(frames []Frame)
	// Close stops the port and frees it; all frames become invalid.
	Close() error
}

// Frame is one Ethernet frame in the port's memory.
type Frame struct {
	Data   []byte // whole room of the frame
	Len    int    // used bytes
	Handle uint64 // the port's own (mbuf pointer, descriptor index)
}

// Set fills in all of f. Ports use it for each frame: a composite literal is built on the
// stack in words and copied from there in pairs of words, for which the CPU waits until
// the words have left its store buffer.
func (f *Frame) Set(data []byte, n int, handle uint64) {
	f.Data, f.Len, f.Handle = data, n, handle
}

// PortInfo describes a Port.
type PortInfo struct {
	Name   string // net_memif0, memif, …
	Driver string // net_memif (libdpdk 22.11), memif (pure Go), …
	MAC    net.HardwareAddr
	MTU    int  // IP bytes per frame
	Ring   int  // transmit ring, frames: more in flight are refused
	Memory bool // frames pass through memory that this end and its peer share, and nothing else
	FD     int  // readable when RxBurst would find frames; -1 if the port must be polled
}

// LinkState is implemented by ports that come up after they were made, such as
// memif, which waits for its peer.
type LinkState interface {
	// Up says whether frames can pass now. It may be called while another
	// goroutine owns the port.
	Up() bool
}

// Watched is netpoll's.
type Watched = netpoll.Watched

// Watcher is implemented by ports whose memory tells whether RxBurst would find frames;
// see netpoll.Watcher.
type Watcher interface {
	Watch(ws []Watched) (_ []Watched, ok bool)
}

// Placer is implemented by ports that are memory of their two ends (PortInfo.Memory).
type Placer interface {
	// Place gives the n bytes of the next frame, to be written; nil if there is no room,
	// or frames of AllocBurst are out.
	Place(n int) []byte
	// Publish transmits what the last Place gave.
	Publish()
	// Lone is the received frame that waits alone; nil if none does, or several.
	Lone() []byte
	// Taken gives back what the last Lone gave: RxBurst is not to find it.
	Taken()
}

// Armer is implemented by ports whose Info().FD becomes readable only if asked for.
type Armer interface {
	// Arm asks for it, once, and reports whether the port is idle: false means that
	// RxBurst would find frames already.
	Arm() (idle bool)
}
