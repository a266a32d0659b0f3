package hugepages

import (
	"errors"
	"runtime"
	"sync"
	"testing"
)

func fill(t *testing.T, p *Pool, n int) (out []*Buf) {
	t.Helper()
	for {
		b, err := p.Get(n, Batch)
		if errors.Is(err, ErrExhausted) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
}

// Memory cut for one size must serve another once it is free.
func TestFreeChunksChangeTheirClass(t *testing.T) {
	p := newTestPool(t, 4<<20)
	for range 3 {
		for _, n := range []int{100, 3000, 60000, p.MaxBytes(), 1000} {
			out := fill(t, p, n)
			if used := len(out) * slotBytes(classOf(n)); used < p.Arena().Report().Bytes/2 {
				t.Fatalf("only %d slots for %d B in an arena that should be free", len(out), n)
			}
			for _, b := range out {
				b.Release()
			}
		}
	}
}

// A chunk of which one slot is in use stays what it is, and its Buf untouched.
func TestChunksInUseStay(t *testing.T) {
	p := newTestPool(t, 1<<20)
	out := fill(t, p, 256)
	keep := out[len(out)/2]
	copy(keep.Bytes()[:256:256], "kept")
	for _, b := range out {
		if b != keep {
			b.Release()
		}
	}
	other := fill(t, p, 512)
	slots := p.target / slotBytes(0)
	if want := (1<<20 - 2*slots*slotBytes(0)) / slotBytes(1); len(other) < want {
		t.Errorf("%d slots of 512 B beside one chunk of 256 B, want %d at least", len(other), want)
	}
	for _, b := range other {
		if &b.slot[0] == &keep.slot[0] {
			t.Fatal("a slot in use was given away")
		}
		clear(b.slot)
		b.Release()
	}
	if string(keep.Bytes()[:4]) != "kept" {
		t.Error("a Buf in use was overwritten")
	}
	keep.Release()
}

func TestPoolsShareAnArena(t *testing.T) {
	a, err := NewArena(ArenaOptions{Bytes: 1 << 20, Backing: Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	p, q := NewPool(a), NewPool(a)
	seen := map[*byte]bool{}
	var out []*Buf
	for _, b := range append(fill(t, p, 4096), fill(t, q, 4096)...) {
		out = append(out, b)
		if first := &b.slot[0]; seen[first] {
			t.Fatal("two pools gave the same slot")
		} else {
			seen[first] = true
		}
	}
	if want := 1 << 20 / 4224; len(out) != want {
		t.Errorf("%d slots, want %d", len(out), want)
	}
	for _, b := range out {
		b.Release()
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// Several goroutines in a pool so small that chunks change class all the time.
func TestReclaimUnderContention(t *testing.T) {
	p := newTestPool(t, 256<<10)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				n := []int{200, 2000, 16000, 100000, 500}[(i+w)%5]
				b, err := p.Get(n, Frame)
				if err != nil {
					if !errors.Is(err, ErrExhausted) {
						t.Error(err)
						return
					}
					runtime.Gosched()
					continue
				}
				data := b.Bytes()
				data[0], data[n-1] = byte(w), byte(w)
				if i%7 == 0 {
					runtime.Gosched()
				}
				if data[0] != byte(w) || data[n-1] != byte(w) {
					t.Error("a Buf changed while in use")
				}
				b.Release()
			}
		})
	}
	wg.Wait()
	s := p.Stats()
	for _, c := range s.Classes {
		if c.Free != c.Slots {
			t.Errorf("class %d: %d of %d free", c.PayloadBytes, c.Free, c.Slots)
		}
	}
}
