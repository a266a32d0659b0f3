package broker

// slab keeps values under small numbers that it hands out again once they were
// taken back. Its memory is that of the most that were in use at once.
type slab[T any] struct {
	slots []slabSlot[T]
	free  []uint32
	used  int
}

type slabSlot[T any] struct {
	value T
	gen   uint32
	inUse bool
}

// A key is generation << slabBits | index+1: never 0, and the key of a value
// taken back is not soon seen again.
const slabBits = 18

// maxSlab is the most values that a slab holds.
const maxSlab = 1<<slabBits - 1

// put keeps v; ok is false if the slab is full.
func (s *slab[T]) put(v T) (key uint32, ok bool) {
	var i uint32
	if n := len(s.free); n > 0 {
		i = s.free[n-1]
		s.free = s.free[:n-1]
	} else if len(s.slots) < maxSlab {
		i = uint32(len(s.slots))
		s.slots = append(s.slots, slabSlot[T]{})
	} else {
		return 0, false
	}
	slot := &s.slots[i]
	slot.value, slot.inUse = v, true
	s.used++
	return slot.gen<<slabBits | (i + 1), true
}

// at is the value under key, nil if there is none. It moves with the next put.
func (s *slab[T]) at(key uint32) *T {
	i := key&(1<<slabBits-1) - 1
	if int64(i) >= int64(len(s.slots)) {
		return nil
	}
	if slot := &s.slots[i]; slot.inUse && slot.gen&(1<<(32-slabBits)-1) == key>>slabBits {
		return &slot.value
	}
	return nil
}

// take removes and returns the value under key.
func (s *slab[T]) take(key uint32) (v T, ok bool) {
	p := s.at(key)
	if p == nil {
		return v, false
	}
	v = *p
	s.drop(key&(1<<slabBits-1) - 1)
	return v, true
}

func (s *slab[T]) drop(i uint32) {
	slot := &s.slots[i]
	var zero T
	slot.value, slot.inUse = zero, false
	slot.gen++
	s.free = append(s.free, i)
	s.used--
}

// takeAll removes every value and calls fn with each, in no order; fn may put.
func (s *slab[T]) takeAll(fn func(T)) {
	for i := range s.slots {
		if s.slots[i].inUse {
			v := s.slots[i].value
			s.drop(uint32(i))
			fn(v)
		}
	}
}
