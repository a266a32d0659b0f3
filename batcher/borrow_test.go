package batcher

import (
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// borrowRig is an inbox by hand whose batcher's goroutine is at rest.
type borrowRig struct {
	*rig
	in    *Inbox
	p     *Producer
	wakes int   // how often that goroutine was woken
	clock int64 // for who borrows
	cheap bool  // likewise
	token uint64
}

func newBorrowRig(t *testing.T, o Options) *borrowRig {
	t.Helper()
	r := &borrowRig{rig: newRig(t, o), clock: int64(time.Second)}
	var err error
	r.in, err = NewInbox(r.b, InboxOptions{Wake: func() { r.wakes++ }, Borrow: func(send func(int64, bool) bool) bool { return send(r.clock, r.cheap) }})
	if err != nil {
		t.Fatal(err)
	}
	if r.p, err = r.in.Producer(r.led); err != nil {
		t.Fatal(err)
	}
	return r
}

// produce appends the next record.
func (r *borrowRig) produce() {
	r.t.Helper()
	if err := r.tryProduce(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *borrowRig) tryProduce() error {
	err := r.p.Append(&serialize.Record{Value: []byte("0123456789")}, r.token)
	if err == nil {
		r.token++
	}
	return err
}

// A record that comes alone to an idle link leaves with its Append; while the link is
// busy, or records follow each other closely, the batcher's goroutine gathers them.
func TestLoneRecordLeavesByItself(t *testing.T) {
	r := newBorrowRig(t, Options{})
	r.produce()
	r.want("[1]")
	r.clock += aloneNanos
	r.produce() // the first is in flight
	if r.want("[1]"); r.wakes != 1 {
		t.Fatalf("%d wake-ups, want one for the record behind the first", r.wakes)
	}
	r.in.Drain(r.clock)
	r.want("[1 1]")
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
	r.clock += aloneNanos - 1
	r.produce() // too soon
	if r.want("[1 1]"); r.wakes != 2 {
		t.Fatalf("%d wake-ups, want one for the record that came soon after", r.wakes)
	}
	r.in.Drain(r.clock)
	r.sink.answer(0, nil)
	r.clock += aloneNanos
	r.produce()
	if r.want("[1 1 1 1]"); r.wakes != 2 {
		t.Fatalf("%d wake-ups, want none for a record that came alone", r.wakes)
	}
	r.sink.answer(0, nil)
	if !r.in.Idle() {
		t.Error("not idle after all was answered")
	}
}

// What the limits of time hold back, a link that takes nothing, and a close are for
// the batcher's goroutine.
func TestLoneRecordThatMustWait(t *testing.T) {
	t.Run("linger", func(t *testing.T) {
		r := newBorrowRig(t, Options{Linger: time.Millisecond})
		r.produce()
		if r.want("[]"); r.wakes != 1 {
			t.Fatalf("%d wake-ups", r.wakes)
		}
		r.in.Drain(r.clock)
		if at := r.in.NextDeadline(); at != r.clock+int64(time.Millisecond) {
			t.Fatalf("deadline %d", at)
		}
		r.in.Drain(r.in.NextDeadline())
		r.want("[1]")
		r.sink.answer(0, nil)
	})
	t.Run("back-pressure", func(t *testing.T) {
		r := newBorrowRig(t, Options{})
		r.sink.refuse = ErrBackpressure
		for range 2 {
			r.produce()
			r.clock += aloneNanos
		}
		if r.want("[]"); r.wakes != 1 {
			t.Fatalf("%d wake-ups, want one for the record behind the refused batch", r.wakes)
		}
		r.sink.refuse = nil
		r.b.Writable()
		r.in.Drain(r.clock)
		r.want("[1 1]")
		r.sink.answer(0, nil)
		r.sink.answer(0, nil)
	})
	t.Run("frequency", func(t *testing.T) {
		r := newBorrowRig(t, Options{MinInterval: time.Millisecond})
		for i := range 2 {
			r.produce()
			if i == 0 {
				r.sink.answer(0, nil)
			}
			r.clock += aloneNanos
		}
		if r.want("[1]"); r.wakes != 1 {
			t.Fatalf("%d wake-ups, want one for the record that came too soon", r.wakes)
		}
		r.in.Drain(r.clock)
		r.in.Drain(r.in.NextDeadline())
		r.want("[1 1]")
		r.sink.answer(0, nil)
	})
	t.Run("order", func(t *testing.T) { // behind a record that was staged, though the link is idle again
		r := newBorrowRig(t, Options{})
		for i := range 3 {
			r.produce()
			if i == 1 {
				r.sink.answer(0, nil)
				r.clock += aloneNanos
			}
		}
		if r.want("[1]"); r.wakes != 1 {
			t.Fatalf("%d wake-ups", r.wakes)
		}
		r.in.Drain(r.clock)
		r.want("[1 2]")
		r.sink.answer(0, nil)
	})
	t.Run("memory", func(t *testing.T) {
		r := newBorrowRig(t, Options{})
		taken := exhaust(r.b.opts.Pool)
		if err := r.tryProduce(); !errors.Is(err, hugepages.ErrExhausted) {
			t.Fatalf("%v, want that memory is exhausted", err)
		}
		for _, buf := range taken {
			buf.Release()
		}
		r.produce()
		r.in.Drain(r.clock)
		if r.want("[1]"); r.wakes == 0 {
			t.Error("nobody was woken to look for memory")
		}
		r.sink.answer(0, nil)
	})
	t.Run("close", func(t *testing.T) {
		r := newBorrowRig(t, Options{})
		r.in.Close(r.clock + 1)
		if r.wakes != 1 {
			t.Errorf("%d wake-ups, want one and the rest by Drain", r.wakes)
		}
		if err := r.tryProduce(); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		r.in.Drain(r.clock)
		r.want("[]")
	})
}

// Where sending is cheap, records that fill their batches leave one by one although the link
// is busy, as many as may be under way, and behind what was staged.
func TestRecordsThatFillTheirBatchLeaveByThemselves(t *testing.T) {
	r := newBorrowRig(t, Options{MaxBatchRecords: 1, MaxBatches: 4, PartialInFlight: 1})
	r.produce()
	r.produce() // dear: staged
	if r.want("[1]"); r.wakes != 1 {
		t.Fatalf("%d wake-ups, want one", r.wakes)
	}
	r.cheap = true
	r.produce() // behind that one
	r.want("[1]")
	r.in.Drain(r.clock)
	r.want("[1 1 1]")
	r.wakes = 0
	r.produce()
	r.want("[1 1 1 1]")
	if r.wakes != 0 {
		t.Fatalf("%d wake-ups, want none where sending is cheap", r.wakes)
	}
	r.produce() // too many are under way
	if r.want("[1 1 1 1]"); r.wakes != 1 {
		t.Fatalf("%d wake-ups, want one for the record that must wait", r.wakes)
	}
	for range 4 {
		r.sink.answer(0, nil)
	}
	r.in.Drain(r.clock)
	r.want("[1 1 1 1 1]")
	r.sink.answer(0, nil)
	if !r.in.Idle() {
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
		r := newBorrowRig(t, Options{MaxBatchRecords: c.records, PartialInFlight: 1})
		for i, want := range c.want {
			r.produce()
			if r.wakes != c.wakes[i] {
				t.Errorf("batches of %d: %d wake-ups after record %d, want %d", c.records, r.wakes, i, c.wakes[i])
			}
			r.in.Drain(r.clock)
			r.want(want)
		}
		for len(r.sink.batches) > 0 {
			r.sink.answer(0, nil)
		}
	}
}
