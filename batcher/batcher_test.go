package batcher

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

func TestIdleLinkSendsAtTheEndOfTheCycle(t *testing.T) {
	r := newRig(t, Options{})
	r.adds(3, 100)
	r.want("[]") // the cycle is not over
	r.b.Flush(r.now)
	r.want("[3]")
	r.adds(2, 100)
	r.b.Flush(r.now) // one in flight is not busy yet
	r.want("[3 2]")
	r.b.Flush(r.now)
	r.want("[3 2]")
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
	if r.led.ok != 5 || r.b.Pending() != 0 || r.b.NextDeadline() != 0 {
		t.Errorf("%d completed, %d pending, deadline %d", r.led.ok, r.b.Pending(), r.b.NextDeadline())
	}
}

func TestBusyLinkGrowsTheBatch(t *testing.T) {
	r := newRig(t, Options{PartialInFlight: 1})
	r.adds(1, 100)
	r.b.Flush(r.now)
	for range 5 { // five cycles while the first is in flight
		r.adds(2, 100)
		r.b.Flush(r.now)
	}
	r.want("[1]")
	if at := r.b.NextDeadline(); at != 0 {
		t.Errorf("deadline %d, nothing is timed", at)
	}
	r.sink.answer(0, nil)
	r.want("[1]") // what the answer's cycle still appends goes with it
	r.adds(1, 100)
	r.b.Flush(r.now)
	r.want("[1 11]")
	r.sink.answer(0, nil)
}

func TestFullBatchLeavesAtOnceThoughTheLinkIsBusy(t *testing.T) {
	t.Run("by count", func(t *testing.T) {
		r := newRig(t, Options{PartialInFlight: 1, MaxBatchRecords: 4})
		r.adds(9, 100)
		r.want("[4 4]")
		r.b.Flush(r.now)
		r.want("[4 4]")
		for len(r.sink.batches) > 0 {
			r.sink.answer(0, nil)
		}
		r.b.Flush(r.now)
		r.want("[4 4 1]")
		r.sink.answer(0, nil)
	})
	t.Run("by bytes", func(t *testing.T) {
		r := newRig(t, Options{PartialInFlight: 1, MaxBatchBytes: serialize.HeaderBytes + 300})
		r.adds(7, 100)
		r.want("[3 3]")
		r.adds(1, 300) // does not fit beside the one, and fills a batch alone
		r.want("[3 3 1]")
		for len(r.sink.batches) > 0 {
			r.sink.answer(0, nil)
		}
		r.b.Flush(r.now)
		r.want("[3 3 1 1]")
		r.sink.answer(0, nil)
	})
}

func TestLinger(t *testing.T) {
	r := newRig(t, Options{Linger: 5 * time.Microsecond})
	r.adds(1, 100)
	r.now = 1000
	r.b.Flush(r.now)
	r.want("[]")
	if at := r.b.NextDeadline(); at != 6000 {
		t.Fatalf("deadline %d, want 6000", at)
	}
	r.now = 3000
	r.adds(1, 100)
	r.b.Flush(r.now)
	r.want("[]")
	if at := r.b.NextDeadline(); at != 6000 {
		t.Fatalf("deadline %d, want 6000: it counts from the first record", at)
	}
	r.b.Flush(5999)
	r.want("[]")
	r.b.Flush(6000)
	r.want("[2]")
	r.sink.answer(0, nil)
}

func TestMaxDelay(t *testing.T) {
	r := newRig(t, Options{PartialInFlight: 1, MaxDelay: 5 * time.Microsecond})
	r.adds(1, 100)
	r.b.Flush(1000)
	r.want("[1]")
	r.adds(2, 100)
	r.b.Flush(2000)
	r.want("[1]")
	if at := r.b.NextDeadline(); at != 7000 {
		t.Fatalf("deadline %d, want 7000", at)
	}
	r.b.Flush(7000)
	r.want("[1 2]")
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
}

// A limit of the frequency: the first leaves at once, the others not sooner than
// that after the one before, unless they are full.
func TestMinInterval(t *testing.T) {
	r := newRig(t, Options{MinInterval: 1000, MaxBatchRecords: 10, PartialInFlight: 8})
	flush := func(now int64, deadline int64) {
		t.Helper()
		r.b.Flush(now)
		if at := r.b.NextDeadline(); at != deadline {
			t.Fatalf("deadline %d at %d, want %d", at, now, deadline)
		}
	}
	r.adds(1, 8)
	flush(100, 0)
	r.want("[1]")
	r.adds(1, 8)
	flush(101, 1100)
	r.adds(2, 8)
	flush(1099, 1100)
	r.want("[1]")
	flush(1100, 0)
	r.want("[1 3]")
	r.adds(12, 8) // full
	flush(1200, 2100)
	r.want("[1 3 10]")
	r.b.Close(5000)
	r.want("[1 3 10 2]")
	for len(r.sink.batches) > 0 {
		r.sink.answer(0, nil)
	}
}

func TestSinkBackpressure(t *testing.T) {
	r := newRig(t, Options{MaxBatchRecords: 4})
	r.sink.refuse = ErrBackpressure
	r.adds(6, 100)
	r.b.Flush(r.now)
	r.adds(1, 100)
	r.b.Flush(r.now)
	r.want("[]")
	if n := r.b.InFlight(); n != 0 {
		t.Errorf("%d in flight", n)
	}
	r.b.Writable() // still not
	r.want("[]")
	r.sink.refuse = nil
	r.b.Flush(r.now)
	r.want("[]")
	r.b.Writable()
	r.want("[4]")
	r.b.Flush(r.now)
	r.want("[4 3]")
	r.sink.answer(0, nil)
	r.sink.answer(0, nil)
	if r.led.ok != 7 {
		t.Errorf("%d completed", r.led.ok)
	}
}

func TestSinkErrorFailsTheBatch(t *testing.T) {
	r := newRig(t, Options{})
	broken := errors.New("no route")
	r.sink.refuse = broken
	r.adds(3, 100)
	r.b.Flush(r.now)
	if r.led.failed[broken] != 3 || r.b.Pending() != 0 {
		t.Errorf("%v failed, %d pending", r.led.failed, r.b.Pending())
	}
	r.sink.refuse = nil
	r.adds(1, 100)
	r.b.Flush(r.now)
	r.sink.answer(0, nil)
	if r.led.ok != 1 {
		t.Errorf("%d completed after the failure", r.led.ok)
	}
}

func TestAnswersOutOfOrderCompleteInOrder(t *testing.T) {
	r := newRig(t, Options{PartialInFlight: 3})
	for range 3 {
		r.adds(2, 100)
		r.b.Flush(r.now)
	}
	r.sink.answer(2, nil)
	r.sink.answer(1, errors.New("refused"))
	if r.led.next != 0 {
		t.Fatalf("%d completed before the first batch", r.led.next)
	}
	r.sink.answer(0, nil)
	if r.led.ok != 4 || r.led.next != 6 {
		t.Errorf("%d of %d completed well", r.led.ok, r.led.next)
	}
	for token, want := range map[uint64]int64{0: 2, 1: 3, 4: 0, 5: 1} {
		if got := r.led.offsets[token]; got != want {
			t.Errorf("record %d at offset %d, want %d", token, got, want)
		}
	}
}

func TestBounds(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
		size int
		fits int
	}{
		{"bytes", Options{MaxBatchBytes: 4096, MaxQueuedBytes: 10_000}, 1000, 10},
		{"records", Options{MaxBatchRecords: 10, MaxQueuedRecords: 25}, 8, 25},
		{"batches", Options{MaxBatchRecords: 10, MaxBatches: 3}, 8, 40},
	} {
		t.Run(tc.name, func(t *testing.T) {
			told := 0
			tc.o.OnWritable = func() { told++ }
			r := newRig(t, tc.o)
			r.sink.refuse = ErrBackpressure
			r.adds(tc.fits, tc.size)
			for range 3 {
				if err := r.add(tc.size); !errors.Is(err, ErrFull) {
					t.Fatalf("record beyond the bound: %v", err)
				}
			}
			r.b.Flush(r.now)
			if told != 0 {
				t.Fatal("told that there is room while there is none")
			}
			r.sink.refuse = nil
			r.b.Writable()
			r.b.Flush(r.now)
			for len(r.sink.batches) > 0 {
				r.sink.answer(0, nil)
				r.b.Flush(r.now)
			}
			if told != 1 || r.led.ok != tc.fits {
				t.Errorf("told %d times, %d completed", told, r.led.ok)
			}
			r.adds(1, tc.size)
			r.b.Fail(ErrClosed)
		})
	}
	r := newRig(t, Options{MaxBatchBytes: 1024})
	if err := r.add(1024 - serialize.HeaderBytes + 1); !errors.Is(err, serialize.ErrRecordTooLarge) {
		t.Errorf("record larger than a batch: %v", err)
	}
	r.adds(1, 1024-serialize.HeaderBytes)
	r.b.Flush(r.now)
	r.sink.answer(0, nil)
}

func TestPoolExhausted(t *testing.T) {
	pool := newPool(t, 256<<10)
	told := 0
	r := newRig(t, Options{Pool: pool, OnWritable: func() { told++ }})
	var others []*hugepages.Buf
	for {
		b, err := pool.Get(128<<10, hugepages.Other)
		if err != nil {
			break
		}
		others = append(others, b)
	}
	if err := r.add(100); !errors.Is(err, hugepages.ErrExhausted) {
		t.Fatalf("append without a buffer: %v", err)
	}
	r.b.Flush(1000)
	if at := r.b.NextDeadline(); at != 1000+starvedRetryNanos || told != 0 {
		t.Fatalf("deadline %d, told %d times", at, told)
	}
	for _, b := range others {
		b.Release()
	}
	r.b.Flush(r.b.NextDeadline())
	if told != 1 || r.b.NextDeadline() != 0 {
		t.Fatalf("told %d times, deadline %d", told, r.b.NextDeadline())
	}
	r.adds(1, 100)
	r.b.Flush(r.now)
	r.sink.answer(0, nil)
	r.b.Close(0)
}

func TestClose(t *testing.T) {
	t.Run("sends what is open though the link is busy", func(t *testing.T) {
		r := newRig(t, Options{PartialInFlight: 1, Linger: time.Second})
		r.adds(1, 100)
		r.b.Flush(int64(2 * time.Second))
		r.b.Flush(int64(3 * time.Second))
		r.adds(2, 100)
		r.b.Close(int64(10 * time.Second))
		r.want("[1 2]")
		if err := r.add(100); !errors.Is(err, ErrClosed) {
			t.Errorf("append after Close: %v", err)
		}
		if at := r.b.NextDeadline(); at != int64(10*time.Second) {
			t.Errorf("deadline %d", at)
		}
		r.sink.answer(0, nil)
		r.sink.answer(0, nil)
		if r.led.ok != 3 || r.b.NextDeadline() != 0 {
			t.Errorf("%d completed, deadline %d", r.led.ok, r.b.NextDeadline())
		}
	})
	t.Run("waits for the sink", func(t *testing.T) {
		r := newRig(t, Options{})
		r.sink.refuse = ErrBackpressure
		r.adds(1, 100)
		r.b.Flush(1) // refused, waits
		r.adds(2, 100)
		r.b.Close(1000)
		r.sink.refuse = nil
		r.b.Writable()
		r.b.Flush(2)
		r.want("[1 2]")
		r.sink.answer(0, nil)
		r.sink.answer(0, nil)
	})
	t.Run("fails the rest at the deadline", func(t *testing.T) {
		r := newRig(t, Options{MaxBatchRecords: 2})
		r.adds(2, 100)
		r.sink.refuse = ErrBackpressure
		r.adds(3, 100)
		r.b.Close(1000)
		r.b.Flush(999)
		if r.b.Pending() != 5 {
			t.Fatalf("%d pending before the deadline", r.b.Pending())
		}
		r.b.Flush(1000)
		if r.led.failed[ErrCloseTimeout] != 5 || r.b.Pending() != 0 {
			t.Errorf("%v, %d pending", r.led.failed, r.b.Pending())
		}
		late := r.sink.batches[0]
		r.sink.drop()
		if err := r.b.Done(late.id, 0, nil); !errors.Is(err, ErrUnknownBatch) {
			t.Errorf("late answer: %v", err)
		}
		r.b.Close(2000)
		r.b.Flush(3000)
	})
	t.Run("of nothing", func(t *testing.T) {
		r := newRig(t, Options{})
		r.b.Close(5)
		r.b.Flush(10)
		if r.b.NextDeadline() != 0 {
			t.Errorf("deadline %d", r.b.NextDeadline())
		}
	})
}

func TestUnknownBatch(t *testing.T) {
	r := newRig(t, Options{MaxBatchRecords: 1})
	r.sink.refuse = ErrBackpressure
	r.adds(1, 100) // waits as batch 1
	for _, id := range []uint64{0, 1, 2, 1 << 60} {
		if err := r.b.Done(id, 0, nil); !errors.Is(err, ErrUnknownBatch) {
			t.Errorf("Done(%d): %v", id, err)
		}
	}
	r.b.Fail(ErrClosed)
}

// The sink answers inside SendBatch, and completers append more.
func TestReentrance(t *testing.T) {
	r := newRig(t, Options{MaxBatchRecords: 3})
	r.sink.inside = func(uint64) { r.sink.answer(0, nil) }
	more := 100
	r.led.callback = func() {
		if more > 0 {
			more--
			if err := r.add(50); err != nil {
				t.Error(err)
			}
		}
	}
	r.adds(10, 50)
	for r.b.Pending() > 0 {
		r.b.Flush(r.now)
	}
	if r.led.ok != 110 {
		t.Errorf("%d completed", r.led.ok)
	}
	for token, off := range r.led.offsets {
		if int64(token) != off {
			t.Fatalf("record %d at offset %d", token, off)
		}
	}
}

// The link is found lost inside SendBatch, at top level and while completions
// are being told, and then SendBatch refuses the batch too.
func TestFailInsideSendBatch(t *testing.T) {
	lost := errors.New("lost")
	for _, answer := range []error{ErrBackpressure, lost} {
		r := newRig(t, Options{MaxBatchRecords: 2})
		s := &failingSink{r: r, err: answer, lost: lost}
		r.b.sink = s
		r.adds(2, 50)
		if r.led.failed[lost] != 2 || r.b.Pending() != 0 {
			t.Fatalf("%v failed, %d pending", r.led.failed, r.b.Pending())
		}
		// Now from within a completion: batch 2 is taken, its answer appends a
		// batch, sending which loses the link.
		s.take = true
		r.adds(2, 50)
		s.take = false
		once := true
		r.led.callback = func() {
			if once {
				once = false
				r.adds(2, 50)
			}
		}
		if err := r.b.Done(2, 0, nil); err != nil {
			t.Fatal(err)
		}
		if r.led.ok != 2 || r.led.failed[lost] != 4 || r.b.Pending() != 0 || r.b.InFlight() != 0 {
			t.Fatalf("%d completed, %v failed, %d pending", r.led.ok, r.led.failed, r.b.Pending())
		}
		r.b.Close(0)
	}
}

type failingSink struct {
	r         *rig
	err, lost error
	take      bool
}

func (s *failingSink) SendBatch(_ uint64, b *hugepages.Buf, _ int) error {
	if s.take {
		b.Release()
		return nil
	}
	s.r.b.Fail(s.lost)
	return s.err
}

// A completer that appends again whatever failed must not keep Fail from ending.
func TestFailEndsThoughCompletersAppend(t *testing.T) {
	r := newRig(t, Options{})
	refused := 0
	r.led.callback = func() {
		if err := r.add(50); errors.Is(err, ErrFull) {
			refused++
		}
	}
	r.adds(5, 50)
	r.b.Fail(errors.New("lost"))
	if refused != 5 || r.b.Pending() != 0 {
		t.Errorf("%d refused, %d pending", refused, r.b.Pending())
	}
	r.led.callback = nil
	r.adds(1, 50)
	r.b.Fail(ErrClosed)
}

func TestBadOptions(t *testing.T) {
	pool := newPool(t, 1<<20)
	for _, tc := range []struct {
		o    Options
		text string
	}{
		{Options{}, "Pool is missing"},
		{Options{Pool: pool, MaxBatchBytes: 100}, "MaxBatchBytes 100"},
		{Options{Pool: pool, MaxBatchBytes: 2 << 20}, "the pool's largest buffer"},
		{Options{Pool: pool, MaxBatchRecords: -1}, "MaxBatchRecords -1"},
		{Options{Pool: pool, MaxBatchRecords: serialize.MaxRecords + 1}, "MaxBatchRecords"},
		{Options{Pool: pool, PartialInFlight: -1}, "PartialInFlight -1"},
		{Options{Pool: pool, PartialInFlight: 5, MaxBatches: 4}, "MaxBatches 4"},
		{Options{Pool: pool, MaxQueuedBytes: 1000}, "MaxQueuedBytes 1000"},
		{Options{Pool: pool, MaxQueuedRecords: 10}, "MaxQueuedRecords 10"},
		{Options{Pool: pool, Linger: -1}, "Linger"},
		{Options{Pool: pool, MinInterval: -1}, "MinInterval"},
		{Options{Pool: pool, Linger: 2, MaxDelay: 1}, "MaxDelay 1ns is less than Linger 2ns"},
	} {
		if _, err := New(tc.o, nil); err == nil || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%q: %v", tc.text, err)
		}
	}
}

// echoSink answers every batch at once or keeps none waiting; it allocates
// nothing.
type echoSink struct {
	b    *Batcher
	next int64
}

func (s *echoSink) SendBatch(id uint64, b *hugepages.Buf, records int) error {
	b.Release()
	s.next += int64(records)
	return s.b.Done(id, s.next-int64(records), nil)
}

type counter struct{ ok, failed int }

func (c *counter) Complete(_ uint64, _ int64, err error) {
	if err == nil {
		c.ok++
	} else {
		c.failed++
	}
}
