package hugepages

import (
	"fmt"
	"sync/atomic"
)

// Purpose is what a Buf was taken for. It is counted under it until its last
// Release, also where a received Buf is sent on.
type Purpose uint8

const (
	Receive Purpose = iota // receive buffers of a backend
	Send                   // messages to send
	Batch                  // batches being built
	Frame                  // frames and packets of a device
	Other

	NumPurposes = 5
)

func (p Purpose) String() string {
	switch p {
	case Receive:
		return "receive"
	case Send:
		return "send"
	case Batch:
		return "batch"
	case Frame:
		return "frame"
	case Other:
		return "other"
	}
	return fmt.Sprintf("Purpose(%d)", uint8(p))
}

// usage counts what one purpose holds. Count and bytes share one word, so that a
// Get and a Release cost one atomic add each and the peaks are exact: bits 0..29
// are Bufs (256 GiB / 384 B per slot < 2^30), bits 30..63 are bytes in units of
// slotAlign (256 GiB / 64 B = 2^32). Usages lie a cache line apart.
type usage struct {
	now       atomic.Uint64
	peakBufs  atomic.Uint64
	peakUnits atomic.Uint64
	_         [40]byte
}

const usageBits = 30

func (u *usage) add(units uint64) {
	now := u.now.Add(units<<usageBits | 1)
	raise(&u.peakBufs, now&(1<<usageBits-1))
	raise(&u.peakUnits, now>>usageBits)
}

func (u *usage) sub(units uint64) { u.now.Add(-(units<<usageBits | 1)) }

func raise(peak *atomic.Uint64, v uint64) {
	for old := peak.Load(); v > old; old = peak.Load() {
		if peak.CompareAndSwap(old, v) {
			return
		}
	}
}

func (u *usage) snapshot() Usage {
	now := u.now.Load()
	return Usage{
		Bufs: int(now & (1<<usageBits - 1)), Bytes: int(now>>usageBits) * slotAlign,
		PeakBufs: int(u.peakBufs.Load()), PeakBytes: int(u.peakUnits.Load()) * slotAlign,
	}
}
