package hugepages

import (
	"fmt"
	"strings"
	"testing"
)

// mustPanic runs f and checks the text of its panic.
func mustPanic(t *testing.T, f func(), parts ...string) {
	t.Helper()
	defer func() {
		t.Helper()
		r := recover()
		if r == nil {
			t.Errorf("no panic; want one with %q", parts)
			return
		}
		for _, part := range parts {
			if !strings.Contains(fmt.Sprint(r), part) {
				t.Errorf("panic %q lacks %q", r, part)
			}
		}
	}()
	f()
}

func TestWindow(t *testing.T) {
	p := newTestPool(t, 1<<20)
	b := mustGet(t, p, 100, Send) // class of 256 B
	defer b.Release()
	check := func(what string, length, headroom, capacity int) {
		t.Helper()
		if b.Len() != length || len(b.Bytes()) != length || b.Headroom() != headroom || b.Cap() != capacity {
			t.Errorf("%s: len %d headroom %d cap %d, want %d %d %d", what, b.Len(), b.Headroom(), b.Cap(), length, headroom, capacity)
		}
	}
	check("Get", 100, 128, 256)
	copy(b.Bytes(), "payload")
	header := b.Prepend(8)
	check("Prepend", 108, 120, 264)
	if len(header) != 8 || cap(header) != 8 || &header[0] != &b.Bytes()[0] || string(b.Bytes()[8:15]) != "payload" {
		t.Errorf("Prepend gave %d bytes of capacity %d, window %q", len(header), cap(header), b.Bytes()[:15])
	}
	b.TrimFront(10)
	check("TrimFront", 98, 130, 254)
	if string(b.Bytes()[:5]) != "yload" {
		t.Errorf("TrimFront left %q", b.Bytes()[:5])
	}
	b.Resize(b.Cap())
	check("Resize to the end", 254, 130, 254)
	if cap(b.Bytes()) != b.Cap() {
		t.Errorf("an append could leave the slot: capacity %d, Cap %d", cap(b.Bytes()), b.Cap())
	}
	b.Resize(0)
	check("Resize to nothing", 0, 130, 254)
	b.SetWindow(-HeadroomBytes, 256)
	check("SetWindow to all", 384, 0, 384)
	b.SetWindow(256, 256)
	check("SetWindow to the end", 0, 384, 0)
	b.SetWindow(0, 100)
	check("SetWindow as after Get", 100, 128, 256)
	if string(b.Bytes()[:7]) != "payload" {
		t.Errorf("payload is now %q", b.Bytes()[:7])
	}

	for _, tt := range []struct {
		name string
		f    func()
	}{
		{"Prepend(129)", func() { b.Prepend(129) }}, {"Prepend(-1)", func() { b.Prepend(-1) }},
		{"TrimFront(101)", func() { b.TrimFront(101) }}, {"TrimFront(-1)", func() { b.TrimFront(-1) }},
		{"Resize(257)", func() { b.Resize(257) }}, {"Resize(-1)", func() { b.Resize(-1) }},
		{"SetWindow(-129, 0)", func() { b.SetWindow(-129, 0) }}, {"SetWindow(0, 257)", func() { b.SetWindow(0, 257) }},
		{"SetWindow(2, 1)", func() { b.SetWindow(2, 1) }},
	} {
		mustPanic(t, tt.f, tt.name)
		check("after the panic of "+tt.name, 100, 128, 256)
	}
}

func TestReferences(t *testing.T) {
	p := newTestPool(t, 1<<20)
	b := mustGet(t, p, 5000, Frame)
	if b.Retain() != b || b.Refs() != 2 {
		t.Errorf("after Retain: %d references", b.Refs())
	}
	b.Release()
	if p.Outstanding() != 1 || b.Refs() != 1 {
		t.Errorf("released once of twice: %d outstanding, %d references", p.Outstanding(), b.Refs())
	}
	b.Release()
	if p.Outstanding() != 0 {
		t.Errorf("%d outstanding", p.Outstanding())
	}
	mustPanic(t, b.Release, "released more often than retained", "frame", "8 KiB")
	b = mustGet(t, p, 5000, Frame)
	b.Release()
	mustPanic(t, func() { b.Retain() }, "Retain of a released frame Buf", "8 KiB")
}

func TestAccountingByPurpose(t *testing.T) {
	p := newTestPool(t, 4<<20)
	var out []*Buf
	for purpose := range Purpose(NumPurposes) {
		for range purpose + 1 {
			out = append(out, mustGet(t, p, 256<<purpose, purpose))
		}
	}
	for purpose := range Purpose(NumPurposes) {
		n := int(purpose) + 1
		bytes := n * (HeadroomBytes + 256<<purpose)
		if got, want := p.Stats().Purposes[purpose], (Usage{n, bytes, n, bytes}); got != want {
			t.Errorf("%v: %+v, want %+v", purpose, got, want)
		}
	}
	out[0].Release()
	mustGet(t, p, 4096, Receive).Release()
	if got, want := p.Stats().Purposes[Receive], (Usage{0, 0, 1, 4224}); got != want {
		t.Errorf("peaks: %+v, want %+v", got, want)
	}
	if n := p.Outstanding(); n != len(out)-1 {
		t.Errorf("%d outstanding, want %d", n, len(out)-1)
	}
	for _, b := range out[1:] {
		b.Release()
	}
	s := p.Stats()
	if s.ArenaBytes != 4<<20 || s.Exhausted != 0 || len(s.Classes) != 5 {
		t.Errorf("stats %+v", s)
	}
	cut := 0
	for _, c := range s.Classes {
		cut += c.Slots * c.SlotBytes
	}
	if cut+s.UndividedBytes != s.ArenaBytes {
		t.Errorf("%d cut + %d undivided of %d", cut, s.UndividedBytes, s.ArenaBytes)
	}
}

// Renew is Release and Get, and the pool cannot tell.
func TestRenew(t *testing.T) {
	p := newTestPool(t, 1<<20)
	b := mustGet(t, p, 100, Send) // class of 256 B
	before := p.Stats()
	if b.Renew(257) != nil || b.Renew(-1) != nil || b.Renew(p.MaxBytes()+1) != nil || b.Len() != 100 {
		t.Fatal("renewed for another class")
	}
	b.TrimFront(50)
	n := b.Renew(200)
	if n == nil || n.Len() != 200 || n.Headroom() != HeadroomBytes || n.Cap() != 256 || n.Refs() != 1 || n.Purpose() != Send {
		t.Fatalf("got %+v", n)
	}
	if after := p.Stats(); after.Purposes != before.Purposes || p.Outstanding() != 1 {
		t.Errorf("%+v, before %+v", after.Purposes, before.Purposes)
	}
	if !n.Of(p) || n.Of(nil) {
		t.Error("it does not know its pool")
	}
	n.Release()
	if p.Outstanding() != 0 {
		t.Errorf("%d outstanding", p.Outstanding())
	}
}
