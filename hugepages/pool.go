package hugepages

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

var (
	// ErrExhausted is Get's answer when neither a free slot nor room for more is
	// left now. Its text says what holds the memory. Turn it into back-pressure.
	ErrExhausted = errors.New("hugepages: pool exhausted")
	// ErrTooLarge is Get's answer to more than MaxBytes, which no waiting mends.
	ErrTooLarge = errors.New("hugepages: buffer too large")
)

// Pool hands out slots of an Arena. Its methods may be called on any goroutine;
// Get and Release neither lock nor allocate while the class has a free slot. They
// do share cache lines: pools of their own over one arena serve busy loops on
// different CPUs better than one shared pool.
//
// A class takes chunks from the arena as it needs them. When the arena has no
// room left, chunks of which every slot is free are taken from the classes that
// hold them, so that yesterday's sizes do not starve today's.
type Pool struct {
	arena     *Arena
	maxBytes  int
	target    int // chunk size aimed at
	exhausted [numClasses]exhaustedError
	failures  atomic.Int64

	classes [numClasses]class
	usage   [NumPurposes]usage

	// chunks by number; nil where there is none. Get reads it without mu.
	chunks []atomic.Pointer[chunk]

	mu     sync.Mutex // changes to chunks, and everything below
	idle   []uint32   // numbers without a chunk, last one first
	closed bool
}

// class is the stack of a size class's free slots. head is tag << 32 | index+1 of
// the top slot, 0 in the low half when empty; each pop raises the tag, so that a
// pop that slept through others cannot take a stale next for the true one unless
// exactly a multiple of 2^32 pops passed meanwhile. Heads lie a cache line apart.
type class struct {
	head     atomic.Uint64
	units    uint64 // slot bytes / slotAlign
	detached uint32 // see Pool.detach; under Pool.mu
	_        [44]byte
}

// chunk is a stretch of the arena cut into slots of one class.
type chunk struct {
	class      int
	off, bytes int   // in the arena
	bufs       []Buf // one for each slot
	detached   int   // see Pool.detach; under Pool.mu
}

// NewPool makes a pool that takes its memory from a. Several pools may share an
// arena; the arena's Close closes them.
func NewPool(a *Arena) *Pool {
	p := &Pool{arena: a, target: chunkTarget(len(a.mem))}
	for c := range p.classes {
		p.classes[c].units = uint64(slotBytes(c) / slotAlign)
		p.exhausted[c] = exhaustedError{p, c}
		if slotBytes(c) <= len(a.mem) {
			p.maxBytes = classPayload(c)
		}
	}
	// Four times the chunks of target size, because chunks may be smaller.
	n := min(4*len(a.mem)/p.target+numClasses, maxChunks)
	p.chunks = make([]atomic.Pointer[chunk], n)
	p.idle = make([]uint32, n)
	for i := range p.idle {
		p.idle[i] = uint32(n - 1 - i)
	}
	a.mu.Lock()
	a.pools = append(a.pools, p)
	p.closed = a.mem == nil
	a.mu.Unlock()
	return p
}

// Arena is the arena the pool takes its memory from.
func (p *Pool) Arena() *Arena { return p.arena }

// MaxBytes is the largest n that Get can ever serve: the payload of the largest
// class with a slot no larger than the arena, 64 MiB at most.
func (p *Pool) MaxBytes() int { return p.maxBytes }

// Get returns a Buf whose window is n bytes after HeadroomBytes of headroom, with
// one reference that the caller owns. The bytes are not cleared. purpose is one of
// the constants; another panics. Errors wrap ErrTooLarge, ErrExhausted or
// ErrClosed.
func (p *Pool) Get(n int, purpose Purpose) (*Buf, error) {
	u := &p.usage[purpose]
	if uint(n) > uint(p.maxBytes) {
		return nil, p.refuse(n)
	}
	c := classOf(n)
	b := p.pop(c)
	if b == nil {
		var err error
		if b, err = p.grow(c); err != nil {
			return nil, err
		}
	}
	b.checkMangled()
	b = b.handle()
	b.start, b.end, b.purpose = HeadroomBytes, HeadroomBytes+n, purpose
	u.add(p.classes[c].units)
	b.refs.Store(1)
	return b, nil
}

func (p *Pool) refuse(n int) error {
	if n < 0 {
		return fmt.Errorf("hugepages: Get of %d bytes", n)
	}
	return fmt.Errorf("%w: %d B asked for, at most %d B from an arena of %s; split it, or enlarge the arena",
		ErrTooLarge, n, p.maxBytes, formatBytes(p.arena.report.Bytes))
}

// put takes back the slot of a Buf without references.
func (p *Pool) put(b *Buf) {
	mangle(b.slot)
	p.usage[b.purpose].sub(p.classes[b.class].units)
	p.push(b.home())
}

func (p *Pool) push(b *Buf) {
	head := &p.classes[b.class].head
	for {
		h := head.Load()
		b.next.Store(uint32(h))
		if head.CompareAndSwap(h, h>>32<<32|uint64(b.index+1)) {
			return
		}
	}
}

// pop takes a free slot, nil if there is none. Between the loads and the swap the
// top may have been popped and its chunk even given to another class; then the
// tag has changed and the swap fails, so what was read does not matter.
func (p *Pool) pop(c int) *Buf {
	head := &p.classes[c].head
	for {
		h := head.Load()
		top := uint32(h)
		if top == 0 {
			return nil
		}
		b := p.node(top - 1)
		if b == nil {
			continue
		}
		if head.CompareAndSwap(h, (h>>32+1)<<32|uint64(b.next.Load())) {
			return b
		}
	}
}

// node is the slot's Buf by index, nil if its chunk is gone.
func (p *Pool) node(index uint32) *Buf {
	ch := p.chunks[index>>slotBits].Load()
	if i := int(index & (1<<slotBits - 1)); ch != nil && i < len(ch.bufs) {
		return &ch.bufs[i]
	}
	return nil
}
