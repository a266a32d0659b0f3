package batcher

import (
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// borrowRig is an inbox by hand whose batcher's goroutine is at rest, and how often it
// was woken.
func borrowRig(t *testing.T, o Options) (r *rig, in *Inbox, p *Producer, wakes *int, now *int64, cheap *bool) {
	t.Helper()
	r = newRig(t, o)
	wakes, now, cheap = new(int), new(int64), new(bool)
	*now = int64(time.Second)
	var err error
	in, err = NewInbox(r.b, InboxOptions{Wake: func() { *wakes++ }, Borrow: func(send func(int64, bool) bool) bool { return send(*now, *cheap) }})
	if err != nil {
		t.Fatal(err)
	}
	if p, err = in.Producer(r.led); err != nil {
		t.Fatal(err)
	}
	return r, in, p, wakes, now, cheap
}

// A record that comes alone to an idle link leaves with its Append; while the link is
// busy, or records follow each other closely, the batcher's goroutine gathers them.
func TestLoneRecordLeavesByItself(t *testing.T) {
	r, in, p, wakes, now, _ := borrowRig(t, Options{})
	token := uint64(0)
	add := func() {
		t.Helper()
		if err := p.Append(&serialize.Record{Value: []byte("0123456789")}, token); err != nil {
			t.Fatal(err)
		}
		token++
	}
	add()
	r.want("[1]")
	*now += aloneNanos
	add() // the first is in flight
	if r.want("[1]"); *wakes != 1 {
		t.Fatalf("%d wake-ups, want one for the record behind the first", *wakes)
	}
	in.Drain(*now)
	r.want("[1 1]")
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
	*now += aloneNanos - 1
	add() // too soon
	if r.want("[1 1]"); *wakes != 2 {
		t.Fatalf("%d wake-ups, want one for the record that came soon after", *wakes)
	}
	in.Drain(*now)
	r.sink.answer(0, nil)
	*now += aloneNanos
	add()
	if r.want("[1 1 1 1]"); *wakes != 2 {
		t.Fatalf("%d wake-ups, want none for a record that came alone", *wakes)
	}
	r.sink.answer(0, nil)
	if !in.Idle() {
		t.Error("not idle after all was answered")
	}
}

// What the limits of time hold back, a link that takes nothing, and a close are for
// the batcher's goroutine.
func TestLoneRecordThatMustWait(t *testing.T) {
	rec := serialize.Record{Value: []byte("0123456789")}
	t.Run("linger", func(t *testing.T) {
		r, in, p, wakes, now, _ := borrowRig(t, Options{Linger: time.Millisecond})
		if err := p.Append(&rec, 0); err != nil {
			t.Fatal(err)
		}
		if r.want("[]"); *wakes != 1 {
			t.Fatalf("%d wake-ups", *wakes)
		}
		in.Drain(*now)
		if at := in.NextDeadline(); at != *now+int64(time.Millisecond) {
			t.Fatalf("deadline %d", at)
		}
		in.Drain(in.NextDeadline())
		r.want("[1]")
		r.sink.answer(0, nil)
	})
	t.Run("back-pressure", func(t *testing.T) {
		r, in, p, wakes, now, _ := borrowRig(t, Options{})
		r.sink.refuse = ErrBackpressure
		for token := range uint64(2) {
			if err := p.Append(&rec, token); err != nil {
				t.Fatal(err)
			}
			*now += aloneNanos
		}
		if r.want("[]"); *wakes != 1 {
			t.Fatalf("%d wake-ups, want one for the record behind the refused batch", *wakes)
		}
		r.sink.refuse = nil
		r.b.Writable()
		in.Drain(*now)
		r.want("[1 1]")
		r.sink.answer(0, nil)
		r.sink.answer(0, nil)
	})
	t.Run("frequency", func(t *testing.T) {
		r, in, p, wakes, now, _ := borrowRig(t, Options{MinInterval: time.Millisecond})
		for token := range uint64(2) {
			if err := p.Append(&rec, token); err != nil {
				t.Fatal(err)
			}
			if token == 0 {
				r.sink.answer(0, nil)
			}
			*now += aloneNanos
		}
		if r.want("[1]"); *wakes != 1 {
			t.Fatalf("%d wake-ups, want one for the record that came too soon", *wakes)
		}
		in.Drain(*now)
		in.Drain(in.NextDeadline())
		r.want("[1 1]")
		r.sink.answer(0, nil)
	})
	t.Run("order", func(t *testing.T) { // behind a record that was staged, though the link is idle again
		r, in, p, wakes, now, _ := borrowRig(t, Options{})
		for token := range uint64(3) {
			if err := p.Append(&rec, token); err != nil {
				t.Fatal(err)
			}
			if token == 1 {
				r.sink.answer(0, nil)
				*now += aloneNanos
			}
		}
		if r.want("[1]"); *wakes != 1 {
			t.Fatalf("%d wake-ups", *wakes)
		}
		in.Drain(*now)
		r.want("[1 2]")
		r.sink.answer(0, nil)
	})
	t.Run("memory", func(t *testing.T) {
		r, in, p, wakes, now, _ := borrowRig(t, Options{})
		taken := exhaust(r.b.opts.Pool)
		if err := p.Append(&rec, 0); !errors.Is(err, hugepages.ErrExhausted) {
			t.Fatalf("%v, want that memory is exhausted", err)
		}
		for _, buf := range taken {
			buf.Release()
		}
		if err := p.Append(&rec, 0); err != nil {
			t.Fatal(err)
		}
		in.Drain(*now)
		if r.want("[1]"); *wakes == 0 {
			t.Error("nobody was woken to look for memory")
		}
		r.sink.answer(0, nil)
	})
	t.Run("close", func(t *testing.T) {
		r, in, p, wakes, now, _ := borrowRig(t, Options{})
		in.Close(*now + 1)
		if *wakes != 1 {
			t.Errorf("%d wake-ups, want one and the rest by Drain", *wakes)
		}
		if err := p.Append(&rec, 0); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		in.Drain(*now)
		r.want("[]")
	})
}

// Where sending is cheap, records that fill their batches leave one by one although the link
// is busy, as many as may be under way, and behind what was staged.
func TestRecordsThatFillTheirBatchLeaveByThemselves(t *testing.T) {
	r, in, p, wakes, now, cheap := borrowRig(t, Options{MaxBatchRecords: 1, MaxBatches: 4, PartialInFlight: 1})
	token := uint64(0)
	add := func() {
		t.Helper()
		if err := p.Append(&serialize.Record{Value: []byte("0123456789")}, token); err != nil {
			t.Fatal(err)
		}
		token++
	}
	add()
	add() // dear: staged
	if r.want("[1]"); *wakes != 1 {
		t.Fatalf("%d wake-ups, want one", *wakes)
	}
	*cheap = true
	add() // behind that one
	r.want("[1]")
	in.Drain(*now)
	r.want("[1 1 1]")
	*wakes = 0
	add()
	r.want("[1 1 1 1]")
	if *wakes != 0 {
		t.Fatalf("%d wake-ups, want none where sending is cheap", *wakes)
	}
	add() // too many are under way
	if r.want("[1 1 1 1]"); *wakes != 1 {
		t.Fatalf("%d wake-ups, want one for the record that must wait", *wakes)
	}
	for range 4 {
		r.sink.answer(0, nil)
	}
	in.Drain(*now)
	r.want("[1 1 1 1 1]")
	r.sink.answer(0, nil)
	if !in.Idle() {
		t.Error("not idle after all was answered")
	}
}

// A record that fills its batch leaves while the link is busy, without another behind it,
// also where one before it waits for the link.
func TestFullBatchOfProducersLeavesThoughTheLinkIsBusy(t *testing.T) {
	for _, c := range []struct {
		records int
		want    []string // what has left after each record and a Drain
		wakes   []int
	}{
		{1, []string{"[1]", "[1 1]", "[1 1 1]"}, []int{0, 1, 2}},
		{2, []string{"[1]", "[1]", "[1 2]", "[1 2]", "[1 2 2]"}, []int{0, 1, 2, 3, 4}},
	} {
		r, in, p, wakes, now, _ := borrowRig(t, Options{MaxBatchRecords: c.records, PartialInFlight: 1})
		for i, want := range c.want {
			if err := p.Append(&serialize.Record{Value: []byte("0123456789")}, uint64(i)); err != nil {
				t.Fatal(err)
			}
			if *wakes != c.wakes[i] {
				t.Errorf("batches of %d: %d wake-ups after record %d, want %d", c.records, *wakes, i, c.wakes[i])
			}
			in.Drain(*now)
			r.want(want)
		}
		for len(r.sink.batches) > 0 {
			r.sink.answer(0, nil)
		}
	}
}
