package hugepages

import "slices"

// extents are an arena's free stretches: sorted, apart, never empty ones. Chunks
// of many slots are taken from the low end and chunks of one large slot from the
// high end, so that small and large do not break up each other's room.
type extents []extent

type extent struct{ off, bytes int }

// takeLow cuts n bytes off the lowest stretch that has them; off is -1 if none.
func (e *extents) takeLow(n int) (off int) {
	for i := range *e {
		if x := &(*e)[i]; x.bytes >= n {
			off = x.off
			x.off += n
			x.bytes -= n
			e.drop(i)
			return off
		}
	}
	return -1
}

// takeHigh cuts n bytes off the end of the highest stretch that has them.
func (e *extents) takeHigh(n int) (off int) {
	for i := len(*e) - 1; i >= 0; i-- {
		if x := &(*e)[i]; x.bytes >= n {
			x.bytes -= n
			off = x.off + x.bytes
			e.drop(i)
			return off
		}
	}
	return -1
}

func (e *extents) drop(i int) {
	if (*e)[i].bytes == 0 {
		*e = slices.Delete(*e, i, i+1)
	}
}

// put gives [off, off+n) back and joins it with its neighbours.
func (e *extents) put(off, n int) {
	i, _ := slices.BinarySearchFunc(*e, off, func(x extent, off int) int { return x.off - off })
	*e = slices.Insert(*e, i, extent{off, n})
	if s := *e; i+1 < len(s) && off+n == s[i+1].off {
		s[i].bytes += s[i+1].bytes
		*e = slices.Delete(s, i+1, i+2)
	}
	if s := *e; i > 0 && s[i-1].off+s[i-1].bytes == off {
		s[i-1].bytes += s[i].bytes
		*e = slices.Delete(s, i, i+1)
	}
}

// measure gives the size of the largest stretch and of all.
func (e extents) measure() (largest, total int) {
	for _, x := range e {
		largest = max(largest, x.bytes)
		total += x.bytes
	}
	return largest, total
}
