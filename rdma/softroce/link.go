package softroce

import "net/netip"

// Link carries RoCEv2 packets between engines: a UDP socket, a poll-mode port, or
// memory with seeded faults. A Link belongs to the goroutine of its Device.
//
// A packet's payload, as engine and link exchange it, is what follows the UDP
// header: BTH, extension headers, payload, pad, ICRC.
type Link interface {
	// Attr describes the link.
	Attr() LinkAttr
	// Path prepares sending to a peer: addresses and ports are fixed for the life
	// of a queue pair. srcPort is the UDP source port if the link can choose one.
	Path(dst netip.AddrPort) (Path, error)
	// TxAlloc fills frames with empty transmit frames, each of Attr().MTU bytes
	// of Data, and returns how many it could give (0: full, try after a later
	// Poll). The link owns them until Tx takes them back or TxFree.
	TxAlloc(frames []Frame) int
	// TxFree gives back frames that TxAlloc gave and Tx did not take.
	TxFree(frames []Frame)
	// Tx sends frames in order, in as few system calls or bursts as possible, and
	// returns how many were taken; those that were not stay the engine's (send
	// again or TxFree). A frame that the link takes may still be lost.
	Tx(frames []Frame) int
	// Rx fills frames with received packets and returns how many. Their Data is
	// valid until RxFree or the next Rx.
	Rx(frames []Frame) int
	// RxFree gives the frames of the last Rx back.
	RxFree(frames []Frame)
	// FD is readable when Rx, having found nothing, would find packets again; -1 if
	// there is no descriptor.
	FD() int
	// Close frees the link.
	Close() error
}

// Armer is implemented by a Link whose FD becomes readable only if asked for. Arm
// asks for it, once, and reports whether the link is idle: false means that Rx
// would find packets already, or that FD will not tell.
type Armer interface {
	Arm() (idle bool)
}

// PathCloser is implemented by a Link that keeps something for each of its paths.
type PathCloser interface {
	// ClosePath ends the use of a path of the link's. Frames of it that Tx did not
	// take yet may still be sent.
	ClosePath(*Path)
}

// LinkState is implemented by a Link that can tell whether its network can be
// reached. Up must not block.
type LinkState interface {
	Up() bool
}

// LinkAttr describes a Link.
type LinkAttr struct {
	Name  string         // softroce+udp, net_memif0, memory
	Local netip.AddrPort // address and UDP port that peers send to
	MTU   int            // bytes after the UDP header that fit one packet
	Queue int            // frames that may be in flight from here before a burst is likely dropped or refused
	// Trains: frames of one length to one peer, the last of which may be shorter, cost
	// much less together than others.
	Trains bool
}

// Path is a prepared destination.
type Path struct {
	Dst netip.AddrPort
	// Pseudo is the headers that the ICRC covers before the BTH: 8 bytes of ones,
	// the IP and the UDP header as they will be on the wire with the variable
	// fields masked to ones and zero in the length fields, as roce.AppendPseudo makes
	// them (IBTA annex A17.3.3).
	Pseudo []byte
	// Link is the link's own handle (header template, neighbour, sockaddr).
	Link any
}

// Frame is one packet in memory of the link's.
type Frame struct {
	Data []byte // payload as described at Link
	Len  int    // used bytes of Data
	Path *Path  // Tx: where to; nil on Rx
	Src  netip.AddrPort
	// Pseudo is, on Rx, the ICRC pseudo header of the packet as it arrived, its
	// length fields included. It is nil if the link cannot see the IP header, or saw
	// that it is what roce.AppendPseudo makes from Src to the local address (for
	// IPv4: identification 0, don't fragment).
	Pseudo []byte
	Idents *Idents // Rx, Pseudo nil: the link cannot see the IPv4 identification; judges it
	Handle uint64  // the link's own
}
