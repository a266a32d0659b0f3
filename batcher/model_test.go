package batcher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

func newPool(t testing.TB, bytes int) *hugepages.Pool {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: bytes, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	pool := hugepages.NewPool(arena)
	t.Cleanup(func() {
		if n := pool.Outstanding(); n != 0 {
			t.Errorf("%d buffers were not released", n)
		}
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	return pool
}

// fakeSink is a link that takes batches, keeps them, and answers when told to.
type fakeSink struct {
	t       testing.TB
	b       *Batcher
	refuse  error // what SendBatch answers, if not nil
	inside  func(id uint64)
	batches []sentBatch // in flight, by id
	values  [][]string  // of every batch taken, in order
	lastID  uint64
	next    int64 // log offset
}

type sentBatch struct {
	id      uint64
	buf     *hugepages.Buf
	records int
}

func (s *fakeSink) SendBatch(id uint64, buf *hugepages.Buf, records int) error {
	if s.refuse != nil {
		return s.refuse
	}
	if id <= s.lastID {
		s.t.Fatalf("batch %d after batch %d", id, s.lastID)
	}
	s.lastID = id
	batch, err := serialize.Open(buf.Bytes())
	if err != nil {
		s.t.Fatalf("batch %d: %v", id, err)
	}
	if batch.Len() != records || len(batch.Bytes()) != buf.Len() {
		s.t.Fatalf("batch %d of %d records and %d bytes, said to have %d and %d", id, batch.Len(), len(batch.Bytes()), records, buf.Len())
	}
	var values []string
	for _, r := range batch.All() {
		values = append(values, string(r.Value))
	}
	s.values = append(s.values, values)
	s.batches = append(s.batches, sentBatch{id, buf, records})
	if s.inside != nil {
		s.inside(id)
	}
	return nil
}

// answer answers in-flight batch i.
func (s *fakeSink) answer(i int, err error) {
	x := s.batches[i]
	s.batches = append(s.batches[:i:i], s.batches[i+1:]...)
	x.buf.Release()
	base := s.next
	if err == nil {
		s.next += int64(x.records)
	}
	if e := s.b.Done(x.id, base, err); e != nil {
		s.t.Fatalf("Done of batch %d: %v", x.id, e)
	}
	if e := s.b.Done(x.id, base, err); !errors.Is(e, ErrUnknownBatch) {
		s.t.Fatalf("second Done of batch %d: %v", x.id, e)
	}
}

// drop releases what is in flight without answering, as a lost link does.
func (s *fakeSink) drop() {
	for _, x := range s.batches {
		x.buf.Release()
	}
	s.batches = nil
}

// ledger is a Completer that insists on every token once and in order.
type ledger struct {
	t        testing.TB
	next     uint64
	ok       int
	failed   map[error]int
	offsets  map[uint64]int64 // by token
	callback func()
}

func (l *ledger) Complete(token uint64, offset int64, err error) {
	if token != l.next {
		l.t.Fatalf("completion of %d, want %d", token, l.next)
	}
	l.next++
	if err == nil {
		l.ok++
		if l.offsets != nil {
			l.offsets[token] = offset
		}
	} else {
		if offset != -1 {
			l.t.Fatalf("failed with offset %d", offset)
		}
		if l.failed == nil {
			l.failed = map[error]int{}
		}
		l.failed[err]++
	}
	if l.callback != nil {
		l.callback()
	}
}

// exhaust takes all that pool has, for batches large and small.
func exhaust(pool *hugepages.Pool) (all []*hugepages.Buf) {
	for _, n := range []int{defaultMaxBatchBytes, 1} {
		for {
			b, err := pool.Get(n, hugepages.Other)
			if err != nil {
				break
			}
			all = append(all, b)
		}
	}
	return all
}

// rig is a batcher over a fake sink, fed with numbered records.
type rig struct {
	t     testing.TB
	b     *Batcher
	sink  *fakeSink
	led   *ledger
	taken uint64
	now   int64
}

func newRig(t testing.TB, o Options) *rig {
	t.Helper()
	if o.Pool == nil {
		o.Pool = newPool(t, 4<<20)
	}
	r := &rig{t: t, sink: &fakeSink{t: t}, led: &ledger{t: t, offsets: map[uint64]int64{}}, now: 1}
	b, err := New(o, r.sink)
	if err != nil {
		t.Fatal(err)
	}
	r.b, r.sink.b = b, b
	return r
}

// add appends a value of n bytes that begins with its number, n >= 8.
func (r *rig) add(n int) error {
	v := make([]byte, n)
	binary.BigEndian.PutUint64(v, r.taken)
	r.taken++ // before the call, from within which more may be added
	err := r.b.Append(&serialize.Record{Value: v, Timestamp: r.now / 1e6}, Completion{r.led, r.taken - 1})
	if err != nil {
		r.taken--
	}
	return err
}

func (r *rig) adds(count, n int) {
	r.t.Helper()
	for range count {
		if err := r.add(n); err != nil {
			r.t.Fatalf("record %d: %v", r.taken, err)
		}
	}
}

// sizes is the number of records in each batch that the sink took.
func (r *rig) sizes() string {
	var s []int
	for _, v := range r.sink.values {
		s = append(s, len(v))
	}
	return fmt.Sprint(s)
}

func (r *rig) want(sizes string) {
	r.t.Helper()
	if got := r.sizes(); got != sizes {
		r.t.Fatalf("batches of %s records, want %s", got, sizes)
	}
}

// Random life of a batcher on virtual time: whatever happens, every record taken
// completes once and in order, those that succeed are in the log once and in
// order at the offset reported, no bound is exceeded, and no buffer is lost.
func TestModel(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, seed) })
	}
}

func runModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	o := Options{
		MaxBatchBytes: 256 + rng.IntN(4096), MaxBatchRecords: 1 + rng.IntN(50), PartialInFlight: 1 + rng.IntN(3), MaxBatches: 3 + rng.IntN(4),
		MaxQueuedRecords: 50 + rng.IntN(200),
	}
	o.MaxQueuedBytes = o.MaxBatchBytes + rng.IntN(20_000)
	if rng.IntN(2) == 0 {
		o.Linger = 50_000
	}
	if rng.IntN(2) == 0 {
		o.MaxDelay = 200_000
	}
	if rng.IntN(3) == 0 {
		o.MinInterval = 70_000
	}
	if rng.IntN(3) == 0 {
		o.Pool = newPool(t, 32<<10) // exhausted now and then
	}
	writable := 0
	o.OnWritable = func() { writable++ }
	r := newRig(t, o)
	b, sink := r.b, r.sink

	// What each batch said of its records: the log, and what failed.
	log := map[uint64]int64{} // number -> offset
	failure := errors.New("broker refuses")
	lost := errors.New("link lost")
	failed := 0
	record := func(i int) {
		x := sink.batches[i]
		batch, err := serialize.OpenTrusted(x.buf.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		for k := range batch.Len() {
			n := binary.BigEndian.Uint64(batch.Value(k))
			if _, twice := log[n]; twice {
				t.Fatalf("record %d twice in the log", n)
			}
			log[n] = sink.next + int64(k)
		}
	}
	refused := 0
	for range 4000 {
		r.now += rng.Int64N(20_000)
		switch k := rng.IntN(100); {
		case k < 60:
			size := 8 + rng.IntN(120)
			if rng.IntN(20) == 0 {
				size = 8 + rng.IntN(o.MaxBatchBytes)
			}
			switch err := r.add(size); {
			case err == nil:
			case errors.Is(err, ErrFull), errors.Is(err, hugepages.ErrExhausted):
				refused++
			case errors.Is(err, serialize.ErrRecordTooLarge) && size > o.MaxBatchBytes-serialize.HeaderBytes:
			default:
				t.Fatal(err)
			}
		case k < 85 && len(sink.batches) > 0:
			i := 0
			if rng.IntN(5) == 0 {
				i = rng.IntN(len(sink.batches)) // out of order
			}
			if rng.IntN(10) == 0 {
				failed += sink.batches[i].records
				sink.answer(i, failure)
			} else {
				record(i)
				sink.answer(i, nil)
			}
		case k < 88:
			sink.refuse = ErrBackpressure
		case k < 92:
			sink.refuse = nil
			b.Writable()
		case k == 92 && rng.IntN(10) == 0:
			before := b.Pending()
			sink.drop()
			b.Fail(lost)
			if b.Pending() != 0 || b.PendingBytes() != 0 || b.InFlight() != 0 {
				t.Fatalf("after Fail of %d records %d are pending", before, b.Pending())
			}
		default:
			b.Flush(r.now)
			if at := b.NextDeadline(); at != 0 && at <= r.now {
				t.Fatalf("deadline %d at %d: the loop would spin", at, r.now)
			}
		}
		if b.Pending() > o.MaxQueuedRecords || b.PendingBytes() > o.MaxQueuedBytes || b.InFlight() > o.MaxBatches || len(sink.batches) != b.InFlight() {
			t.Fatalf("bounds exceeded: %d records, %d bytes, %d batches in flight (the sink has %d)", b.Pending(), b.PendingBytes(), b.InFlight(), len(sink.batches))
		}
		if int(r.taken-r.led.next) != b.Pending() {
			t.Fatalf("%d pending, %d taken, %d completed", b.Pending(), r.taken, r.led.next)
		}
	}
	// An orderly end.
	sink.refuse = nil
	b.Writable()
	b.Close(r.now + 1e9)
	if err := r.add(8); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after Close: %v", err)
	}
	for b.Pending() > 0 {
		b.Flush(r.now)
		if len(sink.batches) == 0 {
			t.Fatalf("%d records pending and nothing in flight", b.Pending())
		}
		record(0)
		sink.answer(0, nil)
	}
	if r.led.next != r.taken {
		t.Fatalf("%d of %d completed", r.led.next, r.taken)
	}
	// What was given up may be in the log all the same; what was acknowledged is
	// there, at its offset.
	for n, off := range r.led.offsets {
		if at, ok := log[n]; !ok || at != off {
			t.Fatalf("record %d was told offset %d, the log has it at %d (%v)", n, off, at, ok)
		}
	}
	if r.led.failed[failure] > failed {
		t.Fatalf("%d failed, the broker refused %d", r.led.failed[failure], failed)
	}
	if refused > 0 && writable == 0 {
		t.Error("refused and never told to try again")
	}
	// Batches hold consecutive records, in the order of appending.
	next := uint64(0)
	for _, values := range sink.values {
		for _, v := range values {
			n := binary.BigEndian.Uint64([]byte(v))
			if n < next {
				t.Fatalf("record %d after %d", n, next)
			}
			next = n + 1
		}
	}
}
