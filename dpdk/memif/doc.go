// Package memif is DPDK's memif in pure Go: a point-to-point packet port over
// shared memory between two processes of one machine. It speaks version 2.0 of
// the protocol, in both roles, and works against libdpdk's net_memif
// (drivers/net/memif in DPDK).
//
// # Memory
//
// The client owns all of it: one region, a sealed memfd, with two rings and a
// buffer for every ring slot. Both ends write and read packets in place, so a
// frame crosses without a copy.
//
// Each ring has a head, written only by the client, and a tail, written only by
// the server. On the ring client → server, head counts packets sent and tail
// packets consumed; on the ring server → client, head counts empty buffers that
// the client offers and tail those that the server has filled.
//
// # Memory order
//
// A ring index is published with sync/atomic after the slot's descriptor and
// bytes were written, and read with sync/atomic before they are read. Go's
// atomics are sequentially consistent, hence store-release and load-acquire at
// least: whoever sees the new index sees the bytes, on x86 and on ARM alike.
// Giving a slot back is the mirror image: the last read of its bytes precedes
// the store that lets the other side overwrite them.
//
// Sleeping needs more than acquire and release: the receiver clears the mask flag
// and then looks at the index, the sender stores the index and then looks at the
// flag. At least one of the two must see the other's store, or a packet lies in
// the ring of a sleeper. Sequential consistency gives exactly that.
//
// A receiver of this package sets a second flag, which says that one kick is enough: the
// sender that gives it sets the mask flag again. Before it next sleeps the receiver
// clears it anew, so a kick that comes late costs a wake-up and never one that is due.
// Freed slots are told to the peer several at a time: when a burst finds nothing, before
// a sleep, or when they are a quarter of the ring.
//
// The protocol's indices and flags are 16 bits wide and Go has no 16-bit atomics.
// Flags (low half, little-endian) and head (high half) share one aligned 32-bit
// word: head moves by an atomic add of n<<16, whose carry leaves the word, and
// flags change by atomic and/or, so that neither writer disturbs the other. Tail
// has a word of its own.
//
// # A peer that is not to be trusted
//
// Everything the peer writes is read once, checked, and then used: region,
// offset and length of a descriptor must lie inside the region, an index can
// never run ahead by more than the ring. A region must be sealed against
// shrinking, since touching a page that its file has lost kills the process. A
// peer that exits or is killed leaves the mapping intact; it is removed by Close,
// which the port's owner calls, and by nobody else.
package memif
