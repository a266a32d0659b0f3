package hugepages

import "golang.org/x/sys/unix"

// minBackBytes is the least that an elastic arena takes from the system at once:
// one madvise for several small pages.
const minBackBytes = 64 << 10

// backed knows which units of an elastic arena have pages. Under Arena.mu.
type backed struct {
	unit  int // bytes: a page of the backing, or minBackBytes
	units []bool
	n     int  // of those, true
	kept  bool // a device may know the pages: give none back
}

func newBacked(bytes, pageBytes int) *backed {
	unit := max(pageBytes, minBackBytes)
	return &backed{unit: unit, units: make([]bool, (bytes+unit-1)/unit)}
}

// back gives [off, off+n) pages. It is false if the system has none left.
func (a *Arena) back(off, n int) bool {
	b := a.backed
	if b == nil {
		return true
	}
	for i := off / b.unit; i*b.unit < off+n; i++ {
		if b.units[i] {
			continue
		}
		if a.sys.populate(a.unitBytes(i), a.sys.pageSize) != nil {
			return false
		}
		b.units[i] = true
		b.n++
	}
	return true
}

func (a *Arena) unitBytes(i int) []byte {
	at := i * a.backed.unit
	return a.mem[at:min(at+a.backed.unit, len(a.mem))]
}

// trim gives the pages back to the system of which nothing is in use, and returns
// how many bytes.
func (a *Arena) trim() (bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.backed
	if b == nil || b.kept {
		return 0
	}
	for _, x := range a.free {
		for i := (x.off + b.unit - 1) / b.unit; i < len(b.units); i++ {
			mem := a.unitBytes(i)
			if i*b.unit+len(mem) > x.off+x.bytes {
				break
			}
			if !b.units[i] || a.sys.madvise(mem, unix.MADV_DONTNEED) != nil {
				continue
			}
			b.units[i] = false
			b.n--
			bytes += len(mem)
		}
	}
	return bytes
}

// backedBytes is how much of the arena may have pages.
func (a *Arena) backedBytes() int {
	if a.backed == nil {
		return len(a.mem)
	}
	return min(a.backed.n*a.backed.unit, len(a.mem))
}

// BackedBytes is how much of the arena has been taken from the system: all of it,
// unless the arena is elastic. Any goroutine.
func (a *Arena) BackedBytes() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.backedBytes()
}

// Elastic reports whether the arena can give memory back: it was made so, and no
// device was shown it. Any goroutine.
func (a *Arena) Elastic() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.backed != nil && !a.backed.kept
}

// Trim gives chunks of which every slot is free back to the arena, and the pages
// that are free then, of all its pools, back to the system. It returns how many
// bytes those were: 0 unless the arena is Elastic and no device was shown it
// (Arena.Bytes). Gets that find no free slot wait for it, and what it gave back is
// cut and faulted in anew by the next that need it: for quiet times. Any goroutine.
func (p *Pool) Trim() (bytes int) {
	if p.arena.backed == nil {
		return 0
	}
	p.mu.Lock()
	if !p.closed {
		p.reclaim()
	}
	p.mu.Unlock()
	return p.arena.trim()
}
