//go:build !invariants

package batcher

import (
	"testing"

	"github.com/millrace/millrace/serialize"
)

// With the tag invariants the pool makes a new Buf for every Get, by design.
func TestNoAllocations(t *testing.T) {
	sink := &echoSink{}
	b, err := New(Options{Pool: newPool(t, 4<<20)}, sink)
	if err != nil {
		t.Fatal(err)
	}
	sink.b = b
	done := Completion{To: &counter{}}
	rec := serialize.Record{Value: make([]byte, 128)}
	in, err := NewInbox(b, InboxOptions{Wake: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := in.Producer(done.To)
	if err != nil {
		t.Fatal(err)
	}
	now := int64(0)
	cycle := func() {
		for i := range 1500 {
			done.Token = uint64(i)
			if err := b.Append(&rec, done); err != nil {
				t.Fatal(err)
			}
			if err := p.Append(&rec, done.Token); err != nil {
				t.Fatal(err)
			}
		}
		in.Drain(now)
		b.Flush(now)
		now++
	}
	cycle()
	if n := testing.AllocsPerRun(20, cycle); n != 0 {
		t.Errorf("%v allocations per 3000 messages", n)
	}
	b.Close(now)
}

// Nor where the producer sends its record itself.
func TestNoAllocationsAlone(t *testing.T) {
	sink := &echoSink{}
	b, err := New(Options{Pool: newPool(t, 4<<20)}, sink)
	if err != nil {
		t.Fatal(err)
	}
	sink.b = b
	now, wakes := aloneNanos, 0
	in, err := NewInbox(b, InboxOptions{Wake: func() { wakes++ }, Borrow: func(send func(int64, bool) bool) bool { return send(now, false) }})
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{}
	p, err := in.Producer(c)
	if err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 128)
	if n := testing.AllocsPerRun(100, func() {
		if err := p.Append(&serialize.Record{Value: value}, 0); err != nil {
			t.Fatal(err)
		}
		now += aloneNanos
	}); n != 0 || wakes != 0 || c.ok != 101 {
		t.Errorf("%v allocations per message, %d wake-ups, %d of 101 completed", n, wakes, c.ok)
	}
}
