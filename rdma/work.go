package rdma

import "fmt"

// Opcode of a send work request.
type Opcode uint8

const (
	OpSend        Opcode = iota // a message
	OpSendImm                   // a message, and 32 bits beside it
	OpWrite                     // Data into the peer's memory; the peer's program is not told
	OpWriteImm                  // the same, then 32 bits that take one of the peer's receives, without its buffer
	OpRead                      // the peer's memory into Data
	OpCompareSwap               // 8 bytes of the peer's memory become SwapAdd if they were Compare; Data takes the old value
	OpFetchAdd                  // SwapAdd is added to 8 bytes of the peer's memory; Data takes the old value
)

var opNames = [...]string{"SEND", "SEND_WITH_IMM", "WRITE", "WRITE_WITH_IMM", "READ", "COMPARE_SWAP", "FETCH_ADD"}

// String names the operation as the IBTA specification does.
func (o Opcode) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("Opcode(%d)", uint8(o))
}

// SendWR is a send work request. Data must lie in registered memory (or be at
// most MaxInline long with Inline set, which READ and atomics cannot have) and stay
// untouched until its completion.
//
// Requests are executed in order, except that a READ may see what requests
// after it wrote: wait for its completion where that matters.
type SendWR struct {
	ID       uint64
	Op       Opcode
	Imm      uint32 // host order; SEND_WITH_IMM and WRITE_WITH_IMM
	Data     []byte // 8 bytes for atomics, which hold the old value in this machine's byte order
	Signaled bool   // ask for a completion; errors always complete
	Inline   bool   // the device copies Data at the post
	// Late says that nobody waits for the completion: it may come some milliseconds
	// late, or tens of them where the two ends share memory. A device that sends
	// acknowledgements itself then saves those that would wake two programs for nothing.
	Late bool

	RemoteAddr uint64 // WRITE, READ, atomics: MR.RemoteAddr of the peer; for atomics a multiple of 8
	RKey       uint32 // and its MR.RKey
	Compare    uint64 // COMPARE_SWAP
	SwapAdd    uint64 // COMPARE_SWAP and FETCH_ADD
}

// RecvWR is a receive work request: one buffer for one incoming message.
type RecvWR struct {
	ID   uint64
	Data []byte
}

// WCOpcode tells what completed.
type WCOpcode uint8

const (
	WCSend         WCOpcode = iota // SEND, SEND_WITH_IMM
	WCRecv                         // a RecvWR, filled by a SEND
	WCWrite                        // WRITE, WRITE_WITH_IMM
	WCRead                         // READ
	WCCompareSwap                  // COMPARE_SWAP
	WCFetchAdd                     // FETCH_ADD
	WCRecvWriteImm                 // a RecvWR, taken by a WRITE_WITH_IMM: its buffer is as it was
)

// IsRecv tells a RecvWR's completion from a SendWR's.
func (o WCOpcode) IsRecv() bool { return o == WCRecv || o == WCRecvWriteImm }

// WC is a work completion. A send completes when the peer's queue pair has
// acknowledged the whole message; a READ or an atomic when its answer is in Data.
type WC struct {
	ID     uint64
	Op     WCOpcode // of a failed one only IsRecv has a meaning
	Status Status
	QPN    uint32
	Bytes  int // received (WCRecv) or written by the peer (WCRecvWriteImm)
	Imm    uint32
	HasImm bool
}

// Status of a completion; names and values are those of enum ibv_wc_status.
type Status uint8

// The statuses that reliable connections have.
const (
	Success           Status = 0
	LocalLengthError  Status = 1  // IBV_WC_LOC_LEN_ERR
	LocalQPOpError    Status = 2  // IBV_WC_LOC_QP_OP_ERR
	LocalProtError    Status = 4  // IBV_WC_LOC_PROT_ERR
	FlushError        Status = 5  // IBV_WC_WR_FLUSH_ERR
	BadResponse       Status = 7  // IBV_WC_BAD_RESP_ERR
	LocalAccessError  Status = 8  // IBV_WC_LOC_ACCESS_ERR
	RemoteInvalidReq  Status = 9  // IBV_WC_REM_INV_REQ_ERR
	RemoteAccessError Status = 10 // IBV_WC_REM_ACCESS_ERR
	RemoteOpError     Status = 11 // IBV_WC_REM_OP_ERR
	RetryExceeded     Status = 12 // IBV_WC_RETRY_EXC_ERR
	RNRRetryExceeded  Status = 13 // IBV_WC_RNR_RETRY_EXC_ERR
	RemoteInvalidRD   Status = 15 // IBV_WC_REM_INV_RD_REQ_ERR
	RemoteAborted     Status = 16 // IBV_WC_REM_ABORT_ERR
	FatalError        Status = 19 // IBV_WC_FATAL_ERR
	ResponseTimeout   Status = 20 // IBV_WC_RESP_TIMEOUT_ERR
	GeneralError      Status = 21 // IBV_WC_GENERAL_ERR
)

var statusNames = [...]string{
	"success", "local length error", "local QP operation error", "local EE context operation error",
	"local protection error", "Work Request Flushed Error", "memory management operation error", "bad response error",
	"local access error", "remote invalid request error", "remote access error", "remote operation error",
	"transport retry counter exceeded", "RNR retry counter exceeded", "local RDD violation error",
	"remote invalid RD request", "aborted error", "invalid EE context number", "invalid EE context state",
	"fatal error", "response timeout error", "general error", "TM error", "TM software rendezvous",
}

// String gives libibverbs' wording (ibv_wc_status_str).
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status %d", uint8(s))
}
