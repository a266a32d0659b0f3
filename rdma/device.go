// Package rdma is the verbs-shaped device interface, the message protocol over
// reliable-connected queue pairs (credits, segmentation), and EventLoop, the
// RdmaEventLoop: the backend that serves rdma:// on a netpoll.Loop.
package rdma

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/millrace/millrace/hugepages"
)

// Device is one RDMA device: an RNIC or kernel Soft-RoCE through libibverbs, or
// the user-space engine. A device and everything created from it belong to one
// goroutine, the loop's.
type Device interface {
	// Attr describes the device.
	Attr() DeviceAttr
	// RegisterMR makes an arena's memory usable in work requests. It is called
	// once per arena; the region lives until the device is closed.
	RegisterMR(a *hugepages.Arena) (*MR, error)
	// CreateCQ makes a completion queue of at least depth entries.
	CreateCQ(depth int) (CQ, error)
	// CreateQP makes a queue pair in state INIT.
	CreateQP(cfg QPConfig) (QP, error)
	// Progress drives a device that has no hardware or kernel behind it: it
	// receives packets, answers them, retransmits, and transmits what was posted.
	// It never blocks. work counts packets; deadline is the monotonic time in
	// nanoseconds, on the clock of now, at which it must run again without a
	// notification (0 = none). Hardware devices return 0, 0.
	Progress(now int64) (work int, deadline int64)
	// FD is readable, once Arm was called on the CQs, when Progress or CQ.Poll
	// would find work; -1 if the device has no descriptor to block on.
	FD() int
	// Close destroys the device's queue pairs and frees it.
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
}

// MR is a registered memory region.
type MR struct {
	Arena *hugepages.Arena
	LKey  uint32
	RKey  uint32
}

// Opcode of a send work request.
type Opcode uint8

const (
	OpSend    Opcode = iota // a message
	OpSendImm               // a message, and 32 bits beside it
)

// String names the operation as the IBTA specification does.
func (o Opcode) String() string {
	switch o {
	case OpSend:
		return "SEND"
	case OpSendImm:
		return "SEND_WITH_IMM"
	}
	return fmt.Sprintf("Opcode(%d)", uint8(o))
}

// SendWR is a send work request. Data must lie in registered memory (or be at
// most MaxInline long with Inline set) and stay untouched until its completion.
type SendWR struct {
	ID       uint64
	Op       Opcode
	Imm      uint32 // host order; SEND_WITH_IMM only
	Data     []byte
	Signaled bool // ask for a completion; errors always complete
	Inline   bool // the device copies Data at the post
}

// RecvWR is a receive work request: one buffer for one incoming message.
type RecvWR struct {
	ID   uint64
	Data []byte
}

// WCOpcode tells what completed.
type WCOpcode uint8

const (
	WCSend WCOpcode = iota // a SendWR
	WCRecv                 // a RecvWR
)

// WC is a work completion. A send completes when the peer's queue pair has
// acknowledged the whole message.
type WC struct {
	ID     uint64
	Op     WCOpcode
	Status Status
	QPN    uint32
	Bytes  int // received bytes (WCRecv)
	Imm    uint32
	HasImm bool
}

// Status of a completion; names and values are those of enum ibv_wc_status.
type Status uint8

const (
	Success           Status = 0
	LocalLengthError  Status = 1  // IBV_WC_LOC_LEN_ERR
	LocalQPOpError    Status = 2  // IBV_WC_LOC_QP_OP_ERR
	LocalProtError    Status = 4  // IBV_WC_LOC_PROT_ERR
	FlushError        Status = 5  // IBV_WC_WR_FLUSH_ERR
	RemoteInvalidReq  Status = 9  // IBV_WC_REM_INV_REQ_ERR
	RemoteAccessError Status = 10 // IBV_WC_REM_ACCESS_ERR
	RemoteOpError     Status = 11 // IBV_WC_REM_OP_ERR
	RetryExceeded     Status = 12 // IBV_WC_RETRY_EXC_ERR
	RNRRetryExceeded  Status = 13 // IBV_WC_RNR_RETRY_EXC_ERR
	FatalError        Status = 19 // IBV_WC_FATAL_ERR
)

var statusNames = map[Status]string{
	Success: "success", LocalLengthError: "local length error", LocalQPOpError: "local QP operation error",
	LocalProtError: "local protection error", FlushError: "Work Request Flushed Error",
	RemoteInvalidReq: "remote invalid request error", RemoteAccessError: "remote access error",
	RemoteOpError: "remote operation error", RetryExceeded: "transport retry counter exceeded",
	RNRRetryExceeded: "RNR retry counter exceeded", FatalError: "fatal error",
}

// String gives libibverbs' wording (ibv_wc_status_str).
func (s Status) String() string {
	if n, ok := statusNames[s]; ok {
		return n
	}
	return fmt.Sprintf("status %d", uint8(s))
}

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

// QPConfig sizes a queue pair. Both queues complete on the given CQs, which may
// be one.
type QPConfig struct {
	SendCQ, RecvCQ CQ
	SendWRs        int // depth of the send queue
	RecvWRs        int // depth of the receive queue
}

// Remote is the other end of a connected queue pair.
type Remote struct {
	Addr     netip.Addr // GID
	UDPPort  uint16
	QPN      uint32
	StartPSN uint32 // PSN of the first packet that the remote sends
	PathMTU  int    // agreed path MTU, bytes
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
	// PostRecv posts receive buffers; allowed from INIT on.
	PostRecv(wrs []RecvWR) (n int, err error)
	// Close destroys the pair. Posted work is dropped without a completion; the
	// device no longer touches its memory after the return.
	Close() error
}

var (
	// ErrQueueFull refuses a post beyond the queue's depth.
	ErrQueueFull = errors.New("rdma: work queue full")
	// ErrQPState refuses an operation in the present state of the queue pair.
	ErrQPState = errors.New("rdma: wrong queue pair state")
	// ErrNotSupported is wrapped where a device lacks a feature; the text says
	// which and why.
	ErrNotSupported = errors.New("rdma: not supported by this device")
)
