package hugepages

// Usage is what one purpose holds. Bytes are those of whole slots, headroom
// included: the memory that is really gone.
type Usage struct {
	Bufs, Bytes         int // now
	PeakBufs, PeakBytes int // highest since the pool was made, each for itself
}

// ClassStats describe one size class that has slots.
type ClassStats struct {
	PayloadBytes int // largest Get that it serves
	SlotBytes    int
	Slots        int // cut so far
	Free         int // of those, not in use
}

// Stats describe a Pool. Numbers taken while others Get and Release may differ
// from each other by what was under way.
type Stats struct {
	Purposes       [NumPurposes]Usage // by Purpose
	Classes        []ClassStats       // by size, only those with slots
	ArenaBytes     int                // the whole arena: the limit
	BackedBytes    int                // of those, taken from the system; all of them unless the arena is elastic
	UndividedBytes int                // of those, not yet cut up by any of its pools
	Exhausted      int64              // Gets answered with ErrExhausted
}

// Stats takes a snapshot. It looks at every slot: for a metrics page, not for
// the data path.
func (p *Pool) Stats() Stats {
	s := Stats{Purposes: p.purposes(), ArenaBytes: p.arena.report.Bytes, Exhausted: p.failures.Load()}
	var slots, free [numClasses]int
	p.mu.Lock()
	for n := range p.chunks {
		if ch := p.chunks[n].Load(); ch != nil {
			slots[ch.class] += len(ch.bufs)
			free[ch.class] += ch.unused()
		}
	}
	p.arena.mu.Lock()
	_, s.UndividedBytes = p.arena.free.measure()
	s.BackedBytes = p.arena.backedBytes()
	p.arena.mu.Unlock()
	p.mu.Unlock()
	for c, n := range slots {
		if n > 0 {
			s.Classes = append(s.Classes, ClassStats{classPayload(c), slotBytes(c), n, free[c]})
		}
	}
	return s
}

// Outstanding is the number of Bufs in use; 0 when nothing leaked.
func (p *Pool) Outstanding() int {
	n := 0
	for _, u := range p.purposes() {
		n += u.Bufs
	}
	return n
}

// Usage is what the pool's Bufs taken for purpose hold. Any goroutine; cheap.
func (p *Pool) Usage(purpose Purpose) Usage { return p.usage[purpose].snapshot() }

func (p *Pool) purposes() (u [NumPurposes]Usage) {
	for i := range u {
		u[i] = p.usage[i].snapshot()
	}
	return u
}
