package afxdp

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is one of a socket's four rings, mapped. For fill and transmit rings the
// program produces, for completion and receive rings it consumes. The package
// comment explains the atomics.
type ring struct {
	mem      []byte
	producer *uint32
	consumer *uint32
	flags    *uint32
	entries  unsafe.Pointer
	size     uint32
	own      uint32 // this side's index
	other    uint32 // the kernel's, as last seen
}

// ringOn views a mapped ring. The mapping is the kernel's; its offsets are too.
func ringOn(mem []byte, o unix.XDPRingOffset, size int) ring {
	return ring{
		mem:      mem,
		producer: (*uint32)(unsafe.Pointer(&mem[o.Producer])),
		consumer: (*uint32)(unsafe.Pointer(&mem[o.Consumer])),
		flags:    (*uint32)(unsafe.Pointer(&mem[o.Flags])),
		entries:  unsafe.Pointer(&mem[o.Desc]),
		size:     uint32(size),
	}
}

// desc is entry i of a receive or transmit ring, addr that of the others.
func (r *ring) desc(i uint32) *unix.XDPDesc {
	return &unsafe.Slice((*unix.XDPDesc)(r.entries), r.size)[i&(r.size-1)]
}

func (r *ring) addr(i uint32) *uint64 {
	return &unsafe.Slice((*uint64)(r.entries), r.size)[i&(r.size-1)]
}

// room is how many entries a producing program may write from own on; it looks at
// the kernel's index only if fewer than want are known.
func (r *ring) room(want uint32) uint32 {
	if r.size-(r.own-r.other) < want {
		r.other = atomic.LoadUint32(r.consumer)
	}
	return r.size - (r.own - r.other)
}

func (r *ring) produce(n uint32) {
	r.own += n
	atomic.StoreUint32(r.producer, r.own)
}

// ready is how many entries a consuming program may read from own on, as room.
func (r *ring) ready(want uint32) uint32 {
	if r.other-r.own < want {
		r.other = atomic.LoadUint32(r.producer)
	}
	return r.other - r.own
}

func (r *ring) consume(n uint32) {
	r.own += n
	atomic.StoreUint32(r.consumer, r.own)
}

// wantsKick says that the kernel sleeps until a system call.
func (r *ring) wantsKick() bool { return atomic.LoadUint32(r.flags)&unix.XDP_RING_NEED_WAKEUP != 0 }
