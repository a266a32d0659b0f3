package rdma

import "net/netip"

// CQ is a completion queue.
type CQ interface {
	// Poll fills wcs and returns how many.
	Poll(wcs []WC) int
	// Arm asks for one notification on Device.FD at the next completion. Poll
	// again after it before blocking.
	Arm() error
	// Close frees the queue; its queue pairs must be gone.
	Close() error
}

// SRQConfig sizes a shared receive queue.
type SRQConfig struct {
	WRs int // depth
}

// SRQ is a receive queue that several queue pairs of one domain take from. Its
// receives complete on the RecvCQ of the queue pair that took them.
type SRQ interface {
	// PostRecv posts receive buffers in order; n is how many were taken. err is
	// ErrQueueFull when the queue is full.
	PostRecv(wrs []RecvWR) (n int, err error)
	// SetLimit asks for one EventSRQLimit, when a receive is taken and fewer than
	// limit are left. 0 takes the wish back.
	SetLimit(limit int) error
	// Close frees the queue; its queue pairs must be gone. What is posted is dropped
	// without a completion.
	Close() error
}

// QPConfig sizes a queue pair. Both queues complete on the given CQs, which may
// be one.
type QPConfig struct {
	SendCQ, RecvCQ CQ
	SendWRs        int    // depth of the send queue
	RecvWRs        int    // depth of the receive queue; 0 with an SRQ
	SRQ            SRQ    // takes receives from there; nil: a receive queue of its own
	Access         Access // what the peer may do through this pair
	// MaxRdAtomic and MaxDestRdAtomic are how many READs and atomics the pair has under
	// way at most, and accepts from its peer at once; 0: none.
	MaxRdAtomic, MaxDestRdAtomic int
}

// Remote is the other end of a connected queue pair.
type Remote struct {
	Addr     netip.Addr // GID
	UDPPort  uint16
	QPN      uint32
	StartPSN uint32 // PSN of the first packet that the remote sends
	PathMTU  int    // agreed path MTU, bytes
	// MaxDestRdAtomic is the remote's; the pair keeps within it.
	MaxDestRdAtomic int
	// Unsummed: both ends have CapUnsummed and agreed to leave the ICRC out.
	Unsummed bool
}

// QPState is the state of a queue pair (IBTA vol. 1, §10.3).
type QPState uint8

const (
	QPInit        QPState = iota // made; receives may be posted
	QPReadyToSend                // connected
	QPError                      // failed for good; what was posted comes back with an error
)

// QP is a reliable-connected queue pair.
type QP interface {
	// Num is the 24-bit queue pair number.
	Num() uint32
	// StartPSN is the PSN of the first packet that this end sends.
	StartPSN() uint32
	// State is the present state.
	State() QPState
	// Connect takes the pair from INIT through RTR to RTS.
	Connect(r Remote) error
	// PostSend posts wrs in order; n is how many were taken. err is ErrQueueFull
	// when the queue is full, ErrQPState when the pair is not RTS.
	PostSend(wrs []SendWR) (n int, err error)
	// PostRecv posts receive buffers; allowed from INIT on, and only without an SRQ.
	PostRecv(wrs []RecvWR) (n int, err error)
	// Close destroys the pair. Posted work is dropped without a completion; the
	// device no longer touches its memory after the return. Receives that it had
	// taken from an SRQ and whose completions nobody has polled are not lost: each goes
	// back to the SRQ, to be filled again, or completes on RecvCQ after all. Otherwise
	// peers that come and go would empty the SRQ of all others.
	Close() error
}
