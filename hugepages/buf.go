package hugepages

import (
	"fmt"
	"sync/atomic"
)

// HeadroomBytes is the room kept in front of every Buf's payload, so that a
// backend can put its headers there without moving the payload. 128 B holds
// Ethernet + VLAN + IPv6 + UDP + BTH + the longest RC extension header
// (14+4+40+8+12+28 = 106 B), rounded up to two cache lines.
const HeadroomBytes = 128

// Buf is a reference-counted window onto one slot of a Pool.
//
// Ownership: Get returns a Buf with one reference that the caller owns. Retain
// adds a reference, Release gives one back; the slot returns to the pool with
// the last. Retain, Release and Refs may be called on any goroutine. All other
// methods are for the one owner of the moment: whoever holds the reference that
// was handed on (for instance to Conn.Send) must not touch the Buf afterwards.
//
// The methods that move the window panic when it would leave the slot: the room
// is known (Headroom, Cap), so that is a mistake in the program.
type Buf struct {
	slot    []byte // the whole slot, headroom included; capacity ends with it
	start   int    // window start within slot
	end     int    // window end within slot
	refs    atomic.Int32
	next    atomic.Uint32 // index+1 of the next free slot; only while free
	index   uint32        // chunk << slotBits | slot within the chunk
	class   uint8
	purpose Purpose
	pool    *Pool
}

// Bytes returns the window. It is valid until the caller's reference is released.
// Bytes that nobody has written since Get are whatever the slot held before.
func (b *Buf) Bytes() []byte {
	b.live("Bytes")
	return b.slot[b.start:b.end]
}

// Len is the length of the window in bytes.
func (b *Buf) Len() int {
	b.live("Len")
	return b.end - b.start
}

// Cap is how long the window can get by moving its end: the bytes from its start
// to the end of the slot.
func (b *Buf) Cap() int {
	b.live("Cap")
	return len(b.slot) - b.start
}

// Headroom is how many bytes Prepend can still take.
func (b *Buf) Headroom() int {
	b.live("Headroom")
	return b.start
}

// Prepend grows the window by n bytes at the front and returns those bytes for
// the caller to fill. n is at most Headroom.
func (b *Buf) Prepend(n int) []byte {
	b.live("Prepend")
	if uint(n) > uint(b.start) {
		b.misuse("Prepend", n, b.start)
	}
	b.start -= n
	return b.slot[b.start : b.start+n : b.start+n]
}

// TrimFront takes n bytes, at most Len, off the front of the window; they become
// headroom.
func (b *Buf) TrimFront(n int) {
	b.live("TrimFront")
	if uint(n) > uint(b.end-b.start) {
		b.misuse("TrimFront", n, b.end-b.start)
	}
	b.start += n
}

// Resize moves the end of the window so that it is n bytes long, n at most Cap.
func (b *Buf) Resize(n int) {
	b.live("Resize")
	if uint(n) > uint(len(b.slot)-b.start) {
		b.misuse("Resize", n, len(b.slot)-b.start)
	}
	b.end = b.start + n
}

// SetWindow puts the window at [start, end), counted from where Get puts a
// window's start: start may go down to -HeadroomBytes, end up to what Cap was
// after Get. Whoever builds a message back to front places its pieces with it.
func (b *Buf) SetWindow(start, end int) {
	b.live("SetWindow")
	if start < -HeadroomBytes || end < start || end > len(b.slot)-HeadroomBytes {
		panic(fmt.Sprintf("hugepages: SetWindow(%d, %d) of a Buf that goes from %d to %d",
			start, end, -HeadroomBytes, len(b.slot)-HeadroomBytes))
	}
	b.start, b.end = start+HeadroomBytes, end+HeadroomBytes
}

// Retain adds a reference and returns b. The caller must hold one.
func (b *Buf) Retain() *Buf {
	if b.refs.Add(1) <= 1 {
		panic(fmt.Sprintf("hugepages: Retain of a released %s Buf (class of %s)", b.purpose, formatBytes(classPayload(int(b.class)))))
	}
	return b
}

// Release gives one reference back; with the last, the slot returns to its pool.
// Releasing more often than Get and Retain gave panics, as long as the slot was
// not handed out again in between (with the build tag invariants: always).
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n > 0:
	case n == 0:
		b.pool.put(b)
	default:
		panic(fmt.Sprintf("hugepages: a %s Buf (class of %s) was released more often than retained",
			b.purpose, formatBytes(classPayload(int(b.class)))))
	}
}

// Renew is Release and Get of n bytes for the same purpose in one, for who has the only
// reference and is done with the window: it costs nothing that others could see. b is
// then as after Release. nil, and nothing has happened, if n bytes take another class.
func (b *Buf) Renew(n int) *Buf {
	b.live("Renew")
	if uint(n) > uint(b.pool.maxBytes) || classOf(n) != int(b.class) {
		return nil
	}
	purpose := b.purpose
	mangle(b.slot)
	b = b.home().handle()
	b.start, b.end, b.purpose = HeadroomBytes, HeadroomBytes+n, purpose
	b.refs.Store(1)
	return b
}

// Of tells whether b came from p.
func (b *Buf) Of(p *Pool) bool { return b.pool == p }

// Refs is the number of references. It tells the owner whether it is the only
// one; what other goroutines do meanwhile may change any other answer.
func (b *Buf) Refs() int32 { return b.refs.Load() }

// Arena is the arena the slot lies in, for the key of its registration.
func (b *Buf) Arena() *Arena {
	b.live("Arena")
	return b.pool.arena
}

// Purpose is what the Buf was taken for.
func (b *Buf) Purpose() Purpose {
	b.live("Purpose")
	return b.purpose
}

func (b *Buf) misuse(method string, n, room int) {
	panic(fmt.Sprintf("hugepages: %s(%d) of a Buf with room for %d", method, n, room))
}
