package hugepages

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

// newTestPool makes a pool over ordinary pages; at the end of the test everything
// must have come back.
func newTestPool(t testing.TB, bytes int) *Pool {
	t.Helper()
	a, err := NewArena(ArenaOptions{Bytes: bytes, Backing: Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return NewPool(a)
}

func mustGet(t testing.TB, p *Pool, n int, purpose Purpose) *Buf {
	t.Helper()
	b, err := p.Get(n, purpose)
	if err != nil {
		t.Fatalf("Get(%d): %v", n, err)
	}
	return b
}

func TestGetGivesTheWindowAskedFor(t *testing.T) {
	p := newTestPool(t, 64<<20)
	for _, n := range []int{0, 1, 255, 256, 257, 4096, 4097, 64 << 10, 64<<10 + 1, 96 << 10, 1 << 20, 8 << 20, p.MaxBytes()} {
		b := mustGet(t, p, n, Send)
		if b.Len() != n || len(b.Bytes()) != n || b.Headroom() != HeadroomBytes || b.Cap() < n || b.Refs() != 1 || b.Purpose() != Send {
			t.Errorf("Get(%d): len %d headroom %d cap %d refs %d purpose %v", n, b.Len(), b.Headroom(), b.Cap(), b.Refs(), b.Purpose())
		}
		if addr := uintptr(unsafe.Pointer(unsafe.SliceData(b.slot))); addr%slotAlign != 0 {
			t.Errorf("Get(%d): slot at %#x is not aligned", n, addr)
		}
		if b.Arena() != p.Arena() || !p.Arena().Contains(b.Bytes()) {
			t.Errorf("Get(%d) lies outside the arena", n)
		}
		b.Release()
	}
	if p.MaxBytes() < 8<<20 {
		t.Errorf("MaxBytes %d", p.MaxBytes())
	}
}

func TestGetRefusals(t *testing.T) {
	p := newTestPool(t, 1<<20)
	if _, err := p.Get(p.MaxBytes()+1, Send); !errors.Is(err, ErrTooLarge) {
		t.Errorf("beyond MaxBytes: %v", err)
	}
	if _, err := p.Get(-1, Send); err == nil || errors.Is(err, ErrTooLarge) {
		t.Errorf("negative: %v", err)
	}
	var out []*Buf
	var err error
	for err == nil {
		var b *Buf
		if b, err = p.Get(4096, Batch); err == nil {
			out = append(out, b)
		}
	}
	if !errors.Is(err, ErrExhausted) {
		t.Fatalf("full pool: %v", err)
	}
	for _, part := range []string{"4224 B", "batch", "enlarge the arena"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	if want := 1 << 20 / slotBytes(4); len(out) != want {
		t.Errorf("%d slots of 4 KiB in 1 MiB, want %d", len(out), want)
	}
	if n := testing.AllocsPerRun(100, func() { p.Get(4096, Batch) }); n != 0 {
		t.Errorf("a Get that fails allocates %v times", n)
	}
	if s := p.Stats(); s.Exhausted < 100 || s.Purposes[Batch].Bufs != len(out) {
		t.Errorf("stats %+v", s)
	}
	for _, b := range out {
		b.Release()
	}
}

func TestConcurrentGetRelease(t *testing.T) {
	p := newTestPool(t, 4<<20)
	const workers, rounds = 4, 20000
	hand := make(chan *Buf, 64) // released on another goroutine than got
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for range rounds {
				n := 1 << rnd.IntN(19)
				b, err := p.Get(n, Purpose(rnd.IntN(NumPurposes)))
				if err != nil {
					if !errors.Is(err, ErrExhausted) {
						t.Error(err)
						return
					}
					runtime.Gosched()
					continue
				}
				mark := byte(rnd.Uint32())
				data := b.Bytes()
				data[0], data[n-1] = mark, mark
				b.Retain()
				select {
				case hand <- b:
				case other := <-hand:
					other.Release()
					b.Release()
				}
				if data[0] != mark || data[n-1] != mark {
					t.Error("a Buf changed while a reference was held")
				}
				b.Release()
			}
		})
	}
	wg.Wait()
	close(hand)
	for b := range hand {
		b.Release()
	}
	if n := p.Outstanding(); n != 0 {
		t.Errorf("%d outstanding", n)
	}
	for _, c := range p.Stats().Classes {
		if c.Free != c.Slots {
			t.Errorf("class %d: %d of %d free", c.PayloadBytes, c.Free, c.Slots)
		}
	}
}

func BenchmarkGetRelease(b *testing.B) {
	p := newTestPool(b, 64<<20)
	b.ReportAllocs()
	for b.Loop() {
		buf, err := p.Get(1024, Send)
		if err != nil {
			b.Fatal(err)
		}
		buf.Release()
	}
}

func BenchmarkGetReleaseParallel(b *testing.B) {
	p := newTestPool(b, 64<<20)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			buf, err := p.Get(1024, Send)
			if err != nil {
				b.Fatal(err)
			}
			buf.Release()
		}
	})
}
