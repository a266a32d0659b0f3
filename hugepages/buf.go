package hugepages

import "sync/atomic"

// HeadroomBytes is the room kept in front of every Buf's payload, so that a
// backend can put its headers there without moving the payload. 128 B holds
// Ethernet + VLAN + IPv6 + UDP + BTH + the longest RC extension header
// (14+4+40+8+12+28 = 106 B), rounded up to two cache lines.
const HeadroomBytes = 128

// Buf is a reference-counted window onto one slot of a Pool.
//
// Ownership: Get returns a Buf with one reference that the caller owns. Retain
// adds a reference, Release gives one back; the slot returns to the pool with
// the last. Retain and Release may be called on any goroutine. All other
// methods are for the one owner of the moment: whoever holds the reference that
// was handed on (for instance to Conn.Send) must not touch the Buf afterwards.
type Buf struct {
	slot  []byte // the whole slot, headroom included
	start int    // window start within slot
	end   int    // window end within slot
	refs  atomic.Int32
	pool  *Pool
}

// Bytes returns the window. It is valid until the caller's reference is released.
func (b *Buf) Bytes() []byte { return b.slot[b.start:b.end] }
