package rdma

import "errors"

// # The message protocol over one RC queue pair
//
// A message is one SEND or a chain of them: all but the last carry MORE and fill
// the peer's receive buffer exactly; the last carries the rest, 0 bytes only if
// the message is empty. Payloads are untouched; what the protocol has to say
// travels in the immediate of SEND_WITH_IMM:
//
//	bit 31      MORE: the message goes on in the next SEND
//	bit 30      CREDIT: a control message, no data
//	bit 29      CONTROL: the control receive that the peer's last CREDIT used is posted again
//	bits 16–28  zero
//	bits 0–15   data receives returned: posted again since the last return
//
// SEND without immediate is the last or only piece of a message, with nothing to
// return.
//
// # Credits
//
// Each side posts R receives before the other learns its queue pair number, and
// grants D = R-1 of them for data. A sender spends one credit for each data SEND
// and stops at none, so that a receive is always posted: RNR NAKs do not occur.
// A credit is owed back as soon as a buffer is posted in place of the one used.
// Debts travel with the next data, or alone in a CREDIT as soon as they reach
// half of the window.
//
// The one receive that is not granted is for CREDITs, one at a time: after a
// CREDIT its sender may send another only when CONTROL came back. CONTROL travels
// with data or with a CREDIT and never needs a message of its own, because:
//
//   - B sends a CREDIT only when it returns at least one data credit with it.
//   - While B waits for CONTROL, its CREDIT is on the way to A (RC delivers it,
//     and its receive is posted) or A has it. Having it, A holds a data credit and
//     owes CONTROL.
//   - If A then has data to send it can send, and CONTROL goes with it: B may send
//     CREDITs again. If A has none, nobody waits for credits of B's.
//
// A receive that a CREDIT used is posted again at once, with the same buffer: no
// handler ever holds it, so an exhausted pool cannot keep CONTROL back.
//
// With 3 ≤ R, half of the window is at least one and at most D, and once all
// data in flight has been taken and buffers were posted again everything is owed,
// so a return that a blocked sender needs is always due.
const (
	immMore     = 1 << 31
	immCredit   = 1 << 30
	immControl  = 1 << 29
	immZero     = 0x1fff << 16
	immReturned = 1<<16 - 1

	// controlReceives are the receives not granted for data.
	controlReceives = 1
	minReceives     = 3
)

// ErrPeerAborted is the reason of a close when the peer closed its end before it
// had sent all that it had accepted.
var ErrPeerAborted = errors.New("rdma: the peer closed the connection before all its messages were sent")
