package hugepages

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"unsafe"
)

// MaxArenaBytes bounds one arena; the counters of a Pool are packed for it (see
// usage).
const MaxArenaBytes = 256 << 30

var (
	// ErrOutstanding is Arena.Close's refusal while Bufs are out; its text counts
	// them by purpose.
	ErrOutstanding = errors.New("hugepages: buffers still in use")
	// ErrClosed is the answer of a Pool whose arena was closed.
	ErrClosed = errors.New("hugepages: arena closed")
)

// ArenaOptions size an Arena.
type ArenaOptions struct {
	// Bytes is the least size, 1 to MaxArenaBytes; it is rounded up to whole pages
	// of the backing.
	Bytes int
	// Backing is the best backing to try. Default HugeTLB2M. What cannot be had
	// falls back to the next worse one; Report says so.
	Backing Backing
	// Nodes binds the arena to these NUMA nodes: its pages come from nowhere else.
	// NewArena refuses nodes that the machine does not have; a kernel that cannot
	// bind is reported. Default: wherever the kernel puts them, which is the node of
	// the CPU that touches a page first.
	Nodes []int
	// Prefault backs every page in NewArena, so that no page fault is left to the
	// data path; a shortage is an error of NewArena then. Explicit huge pages are
	// prefaulted in any case, unless Elastic.
	Prefault bool
	// Elastic starts with no pages at all, and backs them as pools cut chunks from
	// them, up to Bytes; Pool.Trim gives free ones back to the system. Explicit huge
	// pages are not reserved then: others may have them first, and a page that
	// cannot be had is ErrExhausted. Not together with Prefault.
	Elastic bool
}

// Arena is one mapping outside the Go heap, at a fixed address until Close. Its
// methods may be called on any goroutine.
type Arena struct {
	sys    system
	mem    []byte
	report Report

	mu     sync.Mutex
	free   extents
	pools  []*Pool
	backed *backed // of an elastic arena; else nil
}

// NewArena maps an arena. It fails only on bad options and when not even ordinary
// pages can be mapped (or backed, with Prefault). The caller owns the arena and
// closes it.
func NewArena(o ArenaOptions) (*Arena, error) { return newArena(o, hostSystem()) }

func newArena(o ArenaOptions, sys system) (*Arena, error) {
	if o.Bytes <= 0 || o.Bytes > MaxArenaBytes {
		return nil, fmt.Errorf("hugepages: ArenaOptions.Bytes is %d; give 1 to %d", o.Bytes, MaxArenaBytes)
	}
	best := o.Backing
	if best == 0 {
		best = HugeTLB2M
	}
	if best > Ordinary {
		return nil, fmt.Errorf("hugepages: ArenaOptions.Backing is %v; give HugeTLB1G to Ordinary, or 0 for the default", best)
	}
	if o.Elastic && o.Prefault {
		return nil, errors.New("hugepages: ArenaOptions.Elastic and Prefault exclude each other; give one")
	}
	if err := sys.checkNodes(o.Nodes); err != nil {
		return nil, err
	}
	o.Backing = best
	a := &Arena{sys: sys}
	if err := a.mapBest(&o); err != nil {
		return nil, fmt.Errorf("hugepages: an arena of %s: %w", formatBytes(o.Bytes), err)
	}
	a.free = extents{{0, len(a.mem)}}
	if o.Elastic {
		a.backed = newBacked(len(a.mem), a.report.PageBytes)
	}
	return a, nil
}

// Bytes is the whole arena, for registration with a device. It is valid until
// Close; its contents belong to the Bufs. A device goes on using the pages that it
// was shown, so from this call on an elastic arena gives none back.
func (a *Arena) Bytes() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.backed != nil {
		a.backed.kept = true
	}
	return a.mem
}

// Len is how long the arena is in bytes, 0 once closed. Any goroutine.
func (a *Arena) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.mem)
}

// Report says which pages the arena has, and why not better ones.
func (a *Arena) Report() Report { return a.report }

// Contains tells whether all of p lies in the arena.
func (a *Arena) Contains(p []byte) bool { return a.Offset(p) >= 0 }

// Offset is p's distance from the start of the arena in bytes, -1 if p is not
// wholly inside.
func (a *Arena) Offset(p []byte) int {
	base := uintptr(unsafe.Pointer(unsafe.SliceData(a.mem)))
	at := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	if len(a.mem) == 0 || at < base || at-base > uintptr(len(a.mem)-min(len(p), len(a.mem))) || len(p) > len(a.mem) {
		return -1
	}
	return int(at - base)
}

// Close unmaps the arena. While Bufs are out it changes nothing and returns an
// error that wraps ErrOutstanding; release them and call it again. Any device
// must have given up the memory before. Closing twice is harmless.
func (a *Arena) Close() error {
	a.mu.Lock()
	pools := a.pools
	a.mu.Unlock()
	for i, p := range pools {
		if out := p.close(); out != "" {
			for _, q := range pools[:i] {
				q.reopen()
			}
			return fmt.Errorf("%w: %s; release them before closing the arena", ErrOutstanding, out)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mem == nil {
		return nil
	}
	mem := a.mem
	a.mem, a.free = nil, nil
	if err := a.sys.munmap(unsafe.Pointer(unsafe.SliceData(mem)), len(mem)); err != nil {
		return fmt.Errorf("hugepages: munmap: %w", err)
	}
	return nil
}

// describe lists what is in use by purpose, "3 receive (12 KiB), 1 send (4 KiB)".
func describe(s *[NumPurposes]Usage) string {
	var parts []string
	for p, u := range s {
		if u.Bufs != 0 {
			parts = append(parts, fmt.Sprintf("%d %s (%s)", u.Bufs, Purpose(p), formatBytes(u.Bytes)))
		}
	}
	return strings.Join(parts, ", ")
}
