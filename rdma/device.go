// Package rdma is the verbs-shaped device interface, the message protocol over
// reliable-connected queue pairs (credits, segmentation), and EventLoop, the
// RdmaEventLoop: the backend that serves rdma:// on a netpoll.Loop.
package rdma

import (
	"errors"
	"fmt"
	"net/netip"
)

// Device is one RDMA device: an RNIC or kernel Soft-RoCE through libibverbs, or
// the user-space engine. A device and everything created from it belong to one
// goroutine, the loop's.
type Device interface {
	// Attr describes the device.
	Attr() DeviceAttr
	// AllocPD makes a protection domain: memory, queue pairs and shared receive
	// queues that may be used together.
	AllocPD() (PD, error)
	// CreateCQ makes a completion queue of at least depth entries.
	CreateCQ(depth int) (CQ, error)
	// PollEvents fills events with what happened outside of any completion queue, in
	// order, and returns how many. Look after Progress, and before blocking on FD.
	PollEvents(events []Event) int
	// Progress drives a device that has no hardware or kernel behind it: it
	// receives packets, answers them, retransmits, and transmits what was posted.
	// It never blocks. work counts packets; deadline is the monotonic time in
	// nanoseconds, on the clock of now, at which it must run again without a
	// notification (0 = none). Hardware devices return 0, 0.
	Progress(now int64) (work int, deadline int64)
	// FD is readable, once Arm was called on the CQs, when Progress, CQ.Poll or
	// PollEvents would find work; -1 if the device has no descriptor to block on.
	FD() int
	// Close destroys everything made from the device and frees it.
	Close() error
}

// DeviceAttr describes a Device.
type DeviceAttr struct {
	Name      string // rxe0, softroce+udp, net_memif0, …
	Label     string // rnic, soft-roce, user-space
	GID       netip.Addr
	UDPPort   uint16 // the port peers must send to; 4791 except where it is taken
	PathMTU   int    // largest payload of one packet, bytes: 256, 512, 1024, 2048 or 4096
	MaxMsg    int    // largest message, bytes
	MaxInline int    // largest inline payload, bytes; 0 if none
	MaxQPWR   int    // deepest send or receive queue

	Caps            Capability
	MaxSRQWR        int // deepest shared receive queue; 0 without CapSRQ
	MaxRdAtomic     int // READs and atomics that a queue pair may have under way; 0 without CapRead
	MaxDestRdAtomic int // READs and atomics that a queue pair may accept at once; 0 without CapRead
}

// Capability is a set of what only some devices can do. SEND, receive and
// completions need none.
type Capability uint16

const (
	CapWrite    Capability = 1 << iota // WRITE and WRITE_WITH_IMM, both ways
	CapRead                            // READ, both ways
	CapAtomic                          // COMPARE_SWAP and FETCH_ADD, both ways, atomic among all operations through this device
	CapSRQ                             // shared receive queues, with limit event
	CapTrains                          // packets of one length to one peer cost less together: full SENDs after one another are cheap
	CapUnsummed                        // packets may go without ICRC: the way to the peer is memory of the two ends
)

// Has tells whether all of want are there.
func (c Capability) Has(want Capability) bool { return c&want == want }

// EventKind tells what happened.
type EventKind uint8

const (
	EventQPFatal         EventKind = iota // a queue pair is in error because of what its peer asked for, or a failure of the device
	EventCommEstablished                  // the first packet came to a queue pair before Connect was done with it
	EventLastWQE                          // a queue pair in error takes no more from its shared receive queue
	EventSRQLimit                         // a shared receive queue fell below its limit
	EventPortUp                           // the device can reach its network again
	EventPortDown                         // and cannot
	EventDeviceFatal                      // the device is of no use any more; all its queue pairs are in error
)

var eventNames = [...]string{
	"queue pair failed", "communication established", "last WQE reached", "SRQ limit reached", "port up", "port down", "device failed",
}

// String says it in words.
func (k EventKind) String() string {
	if int(k) < len(eventNames) {
		return eventNames[k]
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// Event is an asynchronous event. Those of a closed object never come.
type Event struct {
	Kind EventKind
	QPN  uint32 // of the queue pair events
	SRQ  SRQ    // of EventSRQLimit
	// Status of EventQPFatal says why, where no completion does; else it is Success.
	Status Status
}

var (
	// ErrQueueFull refuses a post beyond the queue's depth.
	ErrQueueFull = errors.New("rdma: work queue full")
	// ErrQPState refuses an operation in the present state of the queue pair.
	ErrQPState = errors.New("rdma: wrong queue pair state")
	// ErrNotSupported is what errors.Is finds where a device lacks a feature; the
	// text says which and why.
	ErrNotSupported = errors.New("rdma: not supported by this device")
)

// NotSupportedError names a feature that a device lacks. It is an ErrNotSupported.
type NotSupportedError struct {
	Device  string
	Feature string // READ, shared receive queue, …
	Reason  string // may be empty
}

// Error names device, feature and reason.
func (e *NotSupportedError) Error() string {
	s := fmt.Sprintf("rdma: %s does not support %s", e.Device, e.Feature)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// Is makes it an ErrNotSupported.
func (e *NotSupportedError) Is(target error) bool { return target == ErrNotSupported }
