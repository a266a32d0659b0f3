package softroce

// Stats counts what a device did since it was made. All are packets unless the
// name says otherwise.
type Stats struct {
	TxPackets, TxBytes uint64 // handed to the link, retransmissions and acknowledgements included
	RxPackets, RxBytes uint64 // received, rejected ones included
	Messages           uint64 // requests executed: messages received whole, READ requests, atomics
	LaneSent           uint64 // messages sent into memory of the peer's, which nobody acknowledges

	Retransmitted uint64 // data packets sent again
	Timeouts      uint64 // expiries of the retransmission timer
	TxRefused     uint64 // bursts that the link did not take whole, or gave no frames for

	AcksSent, AcksReceived       uint64
	AnswersSent                  uint64 // READ responses and atomic acknowledgements
	SeqNAKsSent, SeqNAKsReceived uint64 // NAK, PSN sequence error
	RNRNAKsSent, RNRNAKsReceived uint64 // NAK, receiver not ready
	ImpliedNAKs                  uint64 // answers that show that an earlier one was lost
	ErrNAKsSent, ErrNAKsReceived uint64 // NAK, any error that ends the queue pair

	// Received packets that changed nothing but were answered.
	Duplicates   uint64 // requests received before: acknowledged or answered again
	OutOfOrder   uint64 // requests ahead of the one expected
	NoReceive    uint64 // requests that found no posted receive
	CQFull       uint64 // requests that found no room for their completion
	StaleAcks    uint64 // acknowledgements of what was acknowledged before
	BadResponses uint64 // answers that do not fit what was asked: the queue pair ends
	BadRequests  uint64 // requests answered with an error NAK

	// Received packets that were dropped in silence, by the first check that failed.
	DropLength  uint64 // shorter than its headers, pad and ICRC, or longer than any packet
	DropVersion uint64 // transport version other than 0
	DropQPN     uint64 // no such queue pair
	DropOpcode  uint64 // not an operation of reliable connections
	DropState   uint64 // queue pair not connected, or in error
	DropSource  uint64 // not from the queue pair's peer
	DropPKey    uint64 // not of the default partition
	DropICRC    uint64 // damaged, or not meant for this address
	DropAck     uint64 // acknowledges or answers what was never sent, or with an undefined syndrome
	DropReplay  uint64 // a READ or atomic again, which the pair does not remember, or not so

	// What is registered now, not packets.
	Regions, RegionBytes uint64
}

// Dropped is the sum of the packets dropped in silence.
func (s *Stats) Dropped() uint64 {
	return s.DropLength + s.DropVersion + s.DropQPN + s.DropOpcode + s.DropState + s.DropSource + s.DropPKey + s.DropICRC + s.DropAck + s.DropReplay
}
