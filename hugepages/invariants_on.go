//go:build invariants

package hugepages

import (
	"bytes"
	"fmt"
)

// In this build
//   - every Get makes a new Buf for its slot, so that a stale Buf stays stale
//     although the slot is in use again: any access to it and any further Release
//     panic;
//   - a free slot holds mangleByte throughout, so that a stale slice reads as
//     rubbish, and a write through one panics at the next Get of that slot or when
//     its chunk is given back.
const mangleByte = 0xDB

var mangled = bytes.Repeat([]byte{mangleByte}, 4096)

// live panics if b was released.
func (b *Buf) live(method string) {
	if refs := b.refs.Load(); refs <= 0 {
		panic(fmt.Sprintf("hugepages: %s of a released %s Buf (class of %s, %d references)",
			method, b.purpose, formatBytes(classPayload(int(b.class))), refs))
	}
}

// handle makes the Buf that Get returns; the slot's own stays in the pool and
// mirrors whether the slot is in use.
func (b *Buf) handle() *Buf {
	b.refs.Store(1)
	return &Buf{slot: b.slot, index: b.index, class: b.class, pool: b.pool}
}

// home is the slot's own Buf, marked free.
func (b *Buf) home() *Buf {
	h := b.pool.node(b.index)
	h.purpose = b.purpose
	h.refs.Store(0)
	return h
}

func mangle(slot []byte) {
	for len(slot) > 0 {
		slot = slot[copy(slot, mangled):]
	}
}

// checkMangled panics if a free slot was written to.
func (b *Buf) checkMangled() {
	for off := 0; off < len(b.slot); off += len(mangled) {
		part := b.slot[off:min(off+len(mangled), len(b.slot))]
		if bytes.Equal(part, mangled[:len(part)]) {
			continue
		}
		for i, v := range part {
			if v != mangleByte {
				panic(fmt.Sprintf("hugepages: write to a released slot: byte %d from its payload's start is %#02x (class of %s, last used for %s)",
					off+i-HeadroomBytes, v, formatBytes(classPayload(int(b.class))), b.purpose))
			}
		}
	}
}
