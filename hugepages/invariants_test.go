//go:build invariants

package hugepages

import "testing"

func TestUseAfterReleasePanics(t *testing.T) {
	p := newTestPool(t, 1<<20)
	for name, f := range map[string]func(*Buf){
		"Bytes": func(b *Buf) { b.Bytes() }, "Len": func(b *Buf) { b.Len() }, "Cap": func(b *Buf) { b.Cap() },
		"Headroom": func(b *Buf) { b.Headroom() }, "Prepend": func(b *Buf) { b.Prepend(1) }, "TrimFront": func(b *Buf) { b.TrimFront(1) },
		"Resize": func(b *Buf) { b.Resize(1) }, "SetWindow": func(b *Buf) { b.SetWindow(0, 1) },
		"Arena": func(b *Buf) { b.Arena() }, "Purpose": func(b *Buf) { b.Purpose() },
	} {
		b := mustGet(t, p, 100, Batch)
		b.Release()
		next := mustGet(t, p, 100, Send) // the slot is in use again; the stale Buf must not pass for it
		mustPanic(t, func() { f(b) }, name+" of a released batch Buf (class of 256 B")
		next.Release()
	}
}

func TestDoubleReleasePanicsEvenWhenTheSlotIsInUseAgain(t *testing.T) {
	p := newTestPool(t, 1<<20)
	b := mustGet(t, p, 100, Batch)
	b.Release()
	next := mustGet(t, p, 100, Send)
	mustPanic(t, b.Release, "a batch Buf (class of 256 B) was released more often than retained")
	if next.Refs() != 1 || p.Outstanding() != 1 {
		t.Errorf("the double release hit the next owner: %d references, %d outstanding", next.Refs(), p.Outstanding())
	}
	next.Release()
}

func TestReleasedSlotsAreMangled(t *testing.T) {
	p := newTestPool(t, 1<<20)
	b := mustGet(t, p, 100, Batch)
	stale := b.Bytes()
	stale[5] = 1
	b.Release()
	for i, v := range stale {
		if v != mangleByte {
			t.Fatalf("byte %d of a released slot is %#x", i, v)
		}
	}
}

func TestWriteAfterReleaseIsFound(t *testing.T) {
	for name, found := range map[string]func(p *Pool){
		"at the next Get":              func(p *Pool) { p.Get(9000, Send) },
		"when the chunk is given back": func(p *Pool) { p.reclaim() },
		"when the arena is closed":     func(p *Pool) { p.Arena().Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, err := NewArena(ArenaOptions{Bytes: 1 << 20, Backing: Ordinary})
			if err != nil {
				t.Fatal(err)
			}
			p := NewPool(a)
			b := mustGet(t, p, 9000, Receive)
			stale := b.Bytes()
			b.Release()
			stale[8999] = 7
			mustPanic(t, func() { found(p) }, "write to a released slot: byte 8999 from its payload's start is 0x07 (class of 16 KiB, last used for receive)")
			mangle(stale)
		})
	}
}
