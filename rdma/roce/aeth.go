package roce

import (
	"fmt"
	"sort"
	"time"
)

// Syndrome is the first byte of the AETH (IBTA vol. 1, table 45): zero in bit 7, the kind in
// bits 6:5, credits, RNR timer or NAK code in bits 4:0.
type Syndrome uint8

const (
	// SyndromeACK is a positive acknowledgement without end-to-end credits (the
	// credit field's value for "invalid").
	SyndromeACK Syndrome = 0x1f
	// SyndromeRNR, with a timer code in bits 4:0, says that the receive queue is
	// empty and when to try again.
	SyndromeRNR Syndrome = 0x20

	NAKSequence          Syndrome = 0x60 // a packet is missing: send again from the PSN given
	NAKInvalidRequest    Syndrome = 0x61 // the request breaks the protocol or does not fit its buffer
	NAKRemoteAccess      Syndrome = 0x62 // the remote key does not allow it
	NAKRemoteOperational Syndrome = 0x63 // the responder cannot go on
	NAKInvalidRD         Syndrome = 0x64 // of reliable datagrams; ends a connection too
)

const (
	syndromeKind = 0xe0 // bit 7 is reserved: set, it makes none of the kinds
	syndromeCode = 0x1f
)

// IsACK tells a positive acknowledgement, with or without credits.
func (s Syndrome) IsACK() bool { return s&syndromeKind == 0 }

// IsRNR tells a receiver-not-ready NAK.
func (s Syndrome) IsRNR() bool { return s&syndromeKind == 0x20 }

// IsNAK tells a NAK other than receiver-not-ready.
func (s Syndrome) IsNAK() bool { return s&syndromeKind == 0x60 }

// String names the kind.
func (s Syndrome) String() string {
	switch {
	case s.IsACK():
		return "ACK"
	case s.IsRNR():
		return fmt.Sprintf("RNR NAK %v", s.RNRTime())
	}
	switch s {
	case NAKSequence:
		return "NAK PSN sequence error"
	case NAKInvalidRequest:
		return "NAK invalid request"
	case NAKRemoteAccess:
		return "NAK remote access error"
	case NAKRemoteOperational:
		return "NAK remote operational error"
	case NAKInvalidRD:
		return "NAK invalid RD request"
	}
	return fmt.Sprintf("syndrome %#02x", uint8(s))
}

// rnrTimes is the RNR NAK timer field in units of 10 µs (IBTA vol. 1, table 46).
var rnrTimes = [32]uint32{
	65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192,
	256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
}

// RNRTime is how long the requester must wait after an RNR NAK.
func (s Syndrome) RNRTime() time.Duration {
	return time.Duration(rnrTimes[s&syndromeCode]) * 10 * time.Microsecond
}

// RNRSyndrome is the RNR NAK with the shortest timer of at least d, or the
// longest one, 655.36 ms.
func RNRSyndrome(d time.Duration) Syndrome {
	code := 1 + sort.Search(len(rnrTimes)-1, func(i int) bool { return (SyndromeRNR | Syndrome(i+1)).RNRTime() >= d })
	return SyndromeRNR | Syndrome(code&syndromeCode)
}

// AckTimeout is the local ACK timeout of code t, 4.096 µs · 2^t; code 0 means
// none (IBTA vol. 1, §9.7.6.1.3).
func AckTimeout(t uint8) time.Duration {
	if t == 0 {
		return 0
	}
	return 4096 * time.Nanosecond << (t & 31)
}
