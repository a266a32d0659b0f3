package hugepages

import (
	"fmt"
	"strings"
)

// Backing is the kind of pages under an Arena.
type Backing uint8

// From best to worst.
const (
	// HugeTLB1G is explicit (reserved) huge pages of 1 GiB.
	HugeTLB1G Backing = iota + 1
	// HugeTLB2M is explicit (reserved) huge pages of 2 MiB.
	HugeTLB2M
	// TransparentHuge is ordinary memory that the kernel was asked to back with
	// transparent huge pages, and of which it did so for the first page.
	TransparentHuge
	// Ordinary is pages of the machine's base size.
	Ordinary
)

func (b Backing) String() string {
	switch b {
	case HugeTLB1G:
		return "hugetlb 1 GiB"
	case HugeTLB2M:
		return "hugetlb 2 MiB"
	case TransparentHuge:
		return "transparent huge pages"
	case Ordinary:
		return "ordinary pages"
	}
	return fmt.Sprintf("Backing(%d)", uint8(b))
}

// Report says what an Arena got.
type Report struct {
	Backing   Backing
	Bytes     int   // size of the mapping: what was asked for, rounded up to whole pages
	PageBytes int   // size of one page of the backing
	Nodes     []int // NUMA nodes that the pages are bound to; nil: not bound
	// Reason is why this backing and not a better one, or why Nodes is nil though
	// nodes were asked for, and how to mend that. It is empty where nothing better was
	// asked for.
	Reason string
}

func (r Report) String() string {
	s := fmt.Sprintf("%s of %s", formatBytes(r.Bytes), r.Backing)
	if r.Nodes != nil {
		s += fmt.Sprintf(" on NUMA node %s", listNodes(r.Nodes))
	}
	if r.Reason != "" {
		s += " (" + r.Reason + ")"
	}
	return s
}

// formatBytes writes n in the largest binary unit that divides it.
func formatBytes(n int) string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n != 0 && n&(1<<u.shift-1) == 0 {
			return fmt.Sprintf("%d %s", n>>u.shift, u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// reasons collects why each better backing was refused.
type reasons []string

func (r *reasons) add(format string, args ...any) { *r = append(*r, fmt.Sprintf(format, args...)) }
func (r reasons) String() string                  { return strings.Join(r, ". ") }
