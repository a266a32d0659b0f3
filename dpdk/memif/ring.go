package memif

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// Ring layout (memif.h: memif_ring_t): cookie, flags and head on the first cache
// line, tail on the second, descriptors from the third.
const (
	ringCookie      = 0x3E31F20
	ringHeaderBytes = 128
	descBytes       = 16
	flagsHeadAt     = 4
	tailAt          = 64

	flagMaskInterrupt = 1 // ring: the receiver polls, do not kick
	// flagOnce, which is not the protocol's, says beside a cleared mask flag that one kick
	// is enough and that the sender may set the mask flag: the receiver clears it each time
	// before it sleeps. Other implementations ignore it, and kick with every burst.
	flagOnce     = 2
	descFlagNext = 1 // descriptor: the packet goes on in the next one
)

func ringBytes(slots int) int { return ringHeaderBytes + slots*descBytes }

// ring is one ring in shared memory. Its atomics are explained in the package
// comment.
type ring struct {
	flagsHead *uint32
	tailWord  *uint32
	desc      []byte
	slots     int
	mask      uint16
}

// ringAt views the ring at mem[off:]; the caller has checked bounds and that off
// is a multiple of 4.
func ringAt(mem []byte, off int, log2 uint8) ring {
	slots := 1 << log2
	m := mem[off : off+ringBytes(slots)]
	return ring{
		flagsHead: (*uint32)(unsafe.Pointer(&m[flagsHeadAt])),
		tailWord:  (*uint32)(unsafe.Pointer(&m[tailAt])),
		desc:      m[ringHeaderBytes:],
		slots:     slots,
		mask:      uint16(slots - 1),
	}
}

func (r *ring) head() uint16     { return uint16(atomic.LoadUint32(r.flagsHead) >> 16) }
func (r *ring) flags() uint32    { return atomic.LoadUint32(r.flagsHead) }
func (r *ring) tail() uint16     { return uint16(atomic.LoadUint32(r.tailWord)) }
func (r *ring) setTail(v uint16) { atomic.StoreUint32(r.tailWord, uint32(v)) }
func (r *ring) maskInterrupt()   { atomic.OrUint32(r.flagsHead, flagMaskInterrupt) }

// advanceHead moves the head and returns the flags as they were at that moment.
func (r *ring) advanceHead(n uint16) (flags uint32) {
	return atomic.AddUint32(r.flagsHead, uint32(n)<<16)
}

// arm asks for one kick.
func (r *ring) arm() {
	if atomic.LoadUint32(r.flagsHead)&flagOnce == 0 {
		atomic.OrUint32(r.flagsHead, flagOnce)
	}
	atomic.AndUint32(r.flagsHead, ^uint32(flagMaskInterrupt))
}

// descriptor is a copy of one slot's descriptor, taken once.
type descriptor struct {
	flags, region  uint16
	length, offset uint32
}

func (r *ring) read(i uint16) descriptor {
	d := r.desc[int(i&r.mask)*descBytes:][:descBytes]
	return descriptor{
		flags: binary.LittleEndian.Uint16(d), region: binary.LittleEndian.Uint16(d[2:]),
		length: binary.LittleEndian.Uint32(d[4:]), offset: binary.LittleEndian.Uint32(d[8:]),
	}
}

func (r *ring) write(i uint16, v descriptor) {
	d := r.desc[int(i&r.mask)*descBytes:][:descBytes]
	binary.LittleEndian.PutUint16(d, v.flags)
	binary.LittleEndian.PutUint16(d[2:], v.region)
	binary.LittleEndian.PutUint32(d[4:], v.length)
	binary.LittleEndian.PutUint32(d[8:], v.offset)
}

// setLength changes what a server changes when it fills an offered buffer.
func (r *ring) setLength(i uint16, n uint32) {
	d := r.desc[int(i&r.mask)*descBytes:][:descBytes]
	binary.LittleEndian.PutUint16(d, 0)
	binary.LittleEndian.PutUint32(d[4:], n)
}
