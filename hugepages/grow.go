package hugepages

import "fmt"

// exhaustedError is made once for each class, so that a Get that fails allocates
// nothing; its text tells the state at the time it is read.
type exhaustedError struct {
	pool  *Pool
	class int
}

func (e *exhaustedError) Error() string {
	s := e.pool.Stats()
	out := describe(&s.Purposes)
	if out == "" {
		out = "none"
	}
	if s.BackedBytes < s.ArenaBytes && s.UndividedBytes >= slotBytes(e.class) {
		return fmt.Sprintf("%v: no slot of %d B free, and the system gives no more than %s of the %s that the arena may have; in use: %s; release buffers, or free memory or huge pages on this machine",
			ErrExhausted, slotBytes(e.class), formatBytes(s.BackedBytes), formatBytes(s.ArenaBytes), out)
	}
	return fmt.Sprintf("%v: no slot of %d B free, nor room for one in the %s undivided of an arena of %s; in use: %s; release buffers or enlarge the arena",
		ErrExhausted, slotBytes(e.class), formatBytes(s.UndividedBytes), formatBytes(s.ArenaBytes), out)
}

func (e *exhaustedError) Unwrap() error { return ErrExhausted }

// grow gives class c another chunk and returns a slot of it.
func (p *Pool) grow(c int) (*Buf, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	// While this goroutine waited for mu, another may have grown the class, or
	// detach may have held its slots.
	if b := p.pop(c); b != nil {
		return b, nil
	}
	ch := p.carve(c)
	if ch == nil && p.reclaim() {
		ch = p.carve(c)
	}
	if ch == nil {
		if b := p.pop(c); b != nil { // released meanwhile
			return b, nil
		}
		p.failures.Add(1)
		return nil, &p.exhausted[c]
	}
	for i := len(ch.bufs) - 1; i > 0; i-- {
		p.push(&ch.bufs[i])
	}
	return &ch.bufs[0], nil
}

// carve cuts a chunk for class c from the arena; nil if there is no room or no
// number left.
func (p *Pool) carve(c int) *chunk {
	if len(p.idle) == 0 {
		return nil
	}
	size := slotBytes(c)
	off, slots := p.arena.take(size, max(1, p.target/size))
	if slots == 0 {
		return nil
	}
	number := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	ch := &chunk{class: c, off: off, bytes: slots * size, bufs: make([]Buf, slots)}
	for i := range ch.bufs {
		b, at := &ch.bufs[i], off+i*size
		b.slot = p.arena.mem[at : at+size : at+size]
		b.index, b.class, b.pool = number<<slotBits|uint32(i), uint8(c), p
		mangle(b.slot)
	}
	p.chunks[number].Store(ch)
	return ch
}

// reclaim gives the chunks back to the arena of which all slots are free, and
// tells whether there were any. A first look without holding anything up picks
// the classes worth it, so that a Get that fails again and again stays cheap.
func (p *Pool) reclaim() bool {
	var worth [numClasses]bool
	for n := range p.chunks {
		if ch := p.chunks[n].Load(); ch != nil && !worth[ch.class] {
			worth[ch.class] = ch.unused() == len(ch.bufs)
		}
	}
	freed := false
	for c, w := range worth {
		if w {
			p.detach(c)
			freed = p.reattach(c) || freed
		}
	}
	return freed
}

// detach takes all free slots of class c off its stack and counts them in their
// chunks. Slots between a pop and the end of Get, or between the last Release and
// the push, count as in use. Until reattach, a Get of the class waits for mu.
func (p *Pool) detach(c int) {
	cl := &p.classes[c]
	h := cl.head.Load()
	for !cl.head.CompareAndSwap(h, (h>>32+1)<<32) {
		h = cl.head.Load()
	}
	cl.detached = uint32(h)
	for i := cl.detached; i != 0; {
		p.chunks[(i-1)>>slotBits].Load().detached++
		i = p.node(i - 1).next.Load()
	}
}

// reattach undoes detach, except that chunks with every slot free go back to the
// arena. It tells whether there were any.
func (p *Pool) reattach(c int) (freed bool) {
	cl := &p.classes[c]
	for i := cl.detached; i != 0; {
		b := p.node(i - 1)
		i = b.next.Load()
		if ch := p.chunks[b.index>>slotBits].Load(); ch.detached == len(ch.bufs) {
			b.checkMangled()
			freed = true
		} else {
			p.push(b)
		}
	}
	cl.detached = 0
	for n := range p.chunks {
		ch := p.chunks[n].Load()
		if ch == nil || ch.class != c {
			continue
		}
		if ch.detached == len(ch.bufs) {
			p.chunks[n].Store(nil)
			p.idle = append(p.idle, uint32(n))
			p.arena.put(ch.off, ch.bytes)
		}
		ch.detached = 0
	}
	return freed
}

// close gives all chunks back to the arena and makes Get answer ErrClosed. If
// slots are in use, it changes nothing and says which.
func (p *Pool) close() (inUse string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.classes {
		p.detach(c)
	}
	out := 0
	for n := range p.chunks {
		if ch := p.chunks[n].Load(); ch != nil {
			out += len(ch.bufs) - ch.detached
		}
	}
	for c := range p.classes {
		p.reattach(c)
	}
	if out == 0 {
		p.closed = true
		return ""
	}
	u := p.purposes()
	if inUse = describe(&u); inUse == "" {
		inUse = fmt.Sprintf("%d in the middle of Get or Release", out)
	}
	return inUse
}

// reopen undoes close.
func (p *Pool) reopen() {
	p.mu.Lock()
	p.closed = false
	p.mu.Unlock()
}

// unused counts the slots without references.
func (ch *chunk) unused() int {
	n := 0
	for i := range ch.bufs {
		if ch.bufs[i].refs.Load() <= 0 {
			n++
		}
	}
	return n
}

// take cuts room for 1 to slots slots of size bytes; slots is 0 on return if
// there is none.
func (a *Arena) take(size, slots int) (off, got int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slots == 1 {
		if off = a.free.takeHigh(size); off < 0 {
			return 0, 0
		}
	} else {
		largest, _ := a.free.measure()
		if slots = min(slots, largest/size); slots == 0 {
			return 0, 0
		}
		off = a.free.takeLow(slots * size)
	}
	if !a.back(off, slots*size) {
		a.free.put(off, slots*size)
		return 0, 0
	}
	return off, slots
}

// put gives room back.
func (a *Arena) put(off, n int) {
	a.mu.Lock()
	a.free.put(off, n)
	a.mu.Unlock()
}
