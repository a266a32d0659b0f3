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
//	bit 28      YIELD: no data; bits 16–27 data receives are given back unused
//	bit 27      without YIELD, PACKED: the SEND holds whole messages, each behind its
//	            length in 4 bytes, little-endian; a length of 2^32−1 behind them: the
//	            rest is padding
//	bits 16–27  with YIELD as above, else zero but for PACKED
//	bits 0–15   data receives granted: posted for the peer since the last grant
//
// SEND without immediate is the last or only piece of a message, with nothing to
// grant.
//
// Small messages that wait together for the same flush go packed: one work request,
// one packet or two, one completion and one receive for all of them. A message that
// waits alone is sent from where it lies. A pack that has no room for the next message
// is padded where packets of one length travel together for less (CapTrains).
//
// # Credits
//
// A sender spends one credit for each data SEND and stops at none. A receive is
// posted before the peer hears of it, so a receive is always posted: RNR NAKs do
// not occur. Where a device has a shared receive queue, the connections of a loop
// share it, and the sum granted never exceeds it. The others have a queue each.
//
// A new connection holds two receives: one for data, one for control. When data
// comes, its receiver grants more, up to its window; with a shared queue no
// connection is granted more than what the others leave free, so that those which
// are busy come to hold equal parts and there is room for the next (the dynamic
// thresholds of Choudhury and Hahne, 1998, with α = 1). Receives whose messages
// wait for their handler count, so a reader that pauses cannot make the sum grow. A
// sender that has been idle keeps one credit and gives back the others with a
// YIELD, which spends a credit as data does.
//
// Grants travel with the next data, or alone in a CREDIT as soon as they are as
// many as the credits that the peer has been told of and not used.
//
// The one receive that is not granted is for CREDITs, one at a time: after a
// CREDIT its sender may send another only when CONTROL came back. CONTROL travels
// with data, with a YIELD or with a CREDIT and never needs a message of its own,
// because:
//
//   - B sends a CREDIT only when it grants at least one data credit with it.
//   - While B waits for CONTROL, its CREDIT is on the way to A (RC delivers it,
//     and its receive is posted) or A has it. Having it, A holds a data credit and
//     owes CONTROL. A YIELD leaves A one credit.
//   - If A then has data to send it can send, and CONTROL goes with it: B may send
//     CREDITs again. If A has none, nobody waits for credits of B's.
//
// A receive that a CREDIT used is posted again at once, with the same buffer: no
// handler ever holds it, so an exhausted pool cannot keep CONTROL back.
//
// Once all data in flight has been taken, a blocked sender has used all that it
// was told of, so the first receive that is posted for it is due at once.
//
// A peer that sends more than it was granted takes receives that belong to others.
// Its next completion shows it, and closes its connection.
const (
	immMore    = 1 << 31
	immCredit  = 1 << 30
	immControl = 1 << 29
	immYield   = 1 << 28
	immPacked  = 1 << 27
	immYielded = 0xfff << immYieldedShift
	immGranted = 1<<16 - 1

	immYieldedShift = 16

	// controlReceives are the receives not granted for data.
	controlReceives = 1
	// minReceives is what a connection holds that is idle.
	minReceives = controlReceives + 1
)

// ErrPeerAborted is the reason of a close when the peer closed its end before it
// had sent all that it had accepted.
var ErrPeerAborted = errors.New("rdma: the peer closed the connection before all its messages were sent")
