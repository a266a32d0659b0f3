package serialize

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Encoder lays out records that are all there as one batch, with the help of
// other goroutines if the batch is large. The bytes are those that a Builder makes
// of the same records, whatever the number of workers.
//
// A batch is cut into chunks of whole blocks. Everybody takes chunks, first to
// measure them, then, when the layout is known, to copy payload, pack columns
// and take the checksum of what was copied, each into a region of the batch of
// its own. The caller works too, so that it never waits for a helper to wake.
//
// It is for who holds many records at once. The aggregator has no use for workers:
// its batches are smaller than what is worth sharing, and its producers copy their
// records side by side already.
//
// Encode may be called by one goroutine at a time.
type Encoder struct {
	helpers int
	limits

	// The batch under way. Who has taken a chunk may read it, and what is not of
	// other chunks; the caller changes it while no chunk is out.
	dst     []byte
	records []Record
	chunk   int // records, whole blocks
	p       parts
	whole   layout
	chunks  []chunk
	wakes   bool     // helpers that sleep are to be woken
	starts  []int64  // block times, if timestamps are steps
	lens    []uint32 // of values, as measured
	times   []int64  // timestamps, as measured
	ends    []uint32 // where blocks begin in the payload of their chunk

	// ticket is phase<<32 | first chunk nobody has taken<<16 | end of those. The
	// caller takes from the front, helpers from the back: so a core mostly writes
	// what it has measured, and where it wrote the batch before. Phases count up,
	// so that a helper that wakes late takes nothing of a phase that is over.
	_        [64]byte // a cache line that changes apart from those that do not
	ticket   atomic.Uint64
	finished atomic.Int32 // chunks of this phase
	parked   atomic.Int32
	_        [64]byte
	wake     chan struct{}
	stop     chan struct{}
	stopped  sync.WaitGroup
	ended    time.Time // of the last batch
}

// limits say when work is shared; tests lower them.
type limits struct {
	shareBytes   int // smallest payload that is shared with helpers that are awake
	wakeBytes    int // smallest payload that helpers are woken for, come what may
	chunkRecords int // most records in a chunk
}

// chunk is what one worker does in one go.
type chunk struct {
	l   layout
	at  int    // where its payload begins in the batch's
	crc uint32 // of its payload, counted as if the rest of the payload followed
}

const (
	// shareBytes: batches of 512 KiB were measured to take 0.7 of the time with two
	// workers, of 2 MiB half; of 128 KiB they took as long or longer.
	shareBytes = 512 << 10
	// wakeBytes: a thread that sleeps on a virtual machine wakes in 50 to 200 µs and
	// then is slow for a while; batches of 4 MiB were measured to lose by it.
	wakeBytes = 8 << 20
	// streamGap: batches that follow each other this closely keep helpers awake, so
	// that a wake-up serves all of them. It is less than a helper's idleRounds.
	streamGap = 20 * time.Microsecond
	// chunkRecords: a chunk of log lines is 130 KiB, which stays in a second-level
	// cache.
	chunkRecords = 1024
	// chunksPerWorker, if chunkRecords allows so few: a worker that starts late finds
	// some left, and the last one to finish does not keep the others long. 512 KiB
	// took 0.92 of the time that eight took. leastChunkBytes: less is not worth what a
	// chunk costs, a third of a microsecond.
	chunksPerWorker = 2
	leastChunkBytes = 24 << 10
	// idleRounds is how often a helper looks for chunks before it parks, each time
	// for some 0.2 µs and then letting others run: some 30 µs in all.
	idleRounds = 100
	looks      = 200
)

// NewEncoder makes an encoder whose batches are encoded by up to workers
// goroutines, the caller's included; more than GOMAXPROCS make no sense. Batches
// from 512 KiB on are shared with helpers that are awake, which they are for some
// 30 µs after a shared batch. Those that sleep are woken for a batch that closely
// follows another, and for one of 8 MiB or more. Close ends them.
func NewEncoder(workers int) (*Encoder, error) {
	if workers < 1 || workers > 1<<10 {
		return nil, fmt.Errorf("serialize: %d workers, want 1 to %d", workers, 1<<10)
	}
	e := &Encoder{
		helpers: workers - 1, limits: limits{shareBytes, wakeBytes, chunkRecords},
		wake: make(chan struct{}, workers), stop: make(chan struct{}),
	}
	for range e.helpers {
		e.stopped.Go(e.help)
	}
	return e, nil
}

// Close ends the workers. The encoder must not be used afterwards.
func (e *Encoder) Close() {
	close(e.stop)
	e.stopped.Wait()
}

// Encode lays records out in dst and returns the batch, the front of dst. Nil
// without records. ErrFull: they need more than len(dst) bytes or MaxBatchBytes.
// It allocates only where a batch has more records than any before.
func (e *Encoder) Encode(dst []byte, records []Record) ([]byte, error) {
	n := len(records)
	switch {
	case n == 0:
		return nil, nil
	case n > MaxRecords:
		return nil, fmt.Errorf("%w: %d records, a batch has at most %d", ErrFull, n, MaxRecords)
	}
	e.dst, e.records = dst[:min(len(dst), MaxBatchBytes)], records
	defer func() { e.dst, e.records = nil, nil }()
	e.cut()
	e.run(measure)
	e.whole = layout{}
	for i := range e.chunks {
		c := &e.chunks[i]
		c.at = e.whole.payload
		e.whole.merge(&c.l)
	}
	e.p = e.whole.parts()
	if p := &e.p; p.end > len(e.dst) {
		return nil, fmt.Errorf("%w: %d records need %d bytes, there are %d", ErrFull, n, p.end, len(e.dst))
	}
	e.run(write)
	out := e.finish()
	if e.helpers > 0 {
		e.ended = time.Now()
	}
	return out, nil
}

// cut decides what the chunks are.
func (e *Encoder) cut() {
	n := len(e.records)
	e.chunk = MaxRecords // one, for the caller
	if e.helpers > 0 {
		if bytes := e.typicalBytes(); e.shared(bytes * n) {
			share := max(n/(chunksPerWorker*(e.helpers+1)), leastChunkBytes/max(1, bytes))
			e.chunk = min(e.chunkRecords, max(1, blocks(share))<<blockShift)
		}
	}
	count := (n + e.chunk - 1) / e.chunk
	if cap(e.chunks) < count {
		e.chunks = make([]chunk, count)
	}
	e.chunks = e.chunks[:count]
	if cap(e.starts) < blocks(n) {
		e.starts, e.ends = make([]int64, blocks(n)), make([]uint32, blocks(n))
	}
	e.starts = e.starts[:blocks(n)]
	if cap(e.lens) < n {
		e.lens, e.times = make([]uint32, n), make([]int64, n)
	}
}

// typicalBytes is what a record has, judging by a few.
func (e *Encoder) typicalBytes() int {
	const samples = 16
	bytes := 0
	for i := range samples {
		r := &e.records[i*len(e.records)/samples]
		bytes += len(r.Key) + len(r.Value) + len(r.Headers)
	}
	return bytes / samples
}

// shared says whether helpers take part in a batch of so many bytes: if it is large
// enough, and they are awake or worth waking. The layout does not depend on the
// answer.
func (e *Encoder) shared(bytes int) bool {
	if bytes < e.shareBytes {
		return false
	}
	e.wakes = bytes >= e.wakeBytes || time.Since(e.ended) < streamGap
	return e.wakes || int(e.parked.Load()) < e.helpers
}

// The two phases of a batch. The lowest bit of a phase's number says which.
const (
	measure = 0
	write   = 1
)

// run does one phase, and returns when all of its chunks are finished.
func (e *Encoder) run(which uint64) {
	if len(e.chunks) == 1 { // no helper sees it
		e.do(which, 0)
		return
	}
	e.finished.Store(0)
	phase := e.ticket.Load()>>32 + 1
	if phase&1 != which {
		phase++ // the batch before was refused
	}
	count := len(e.chunks)
	e.ticket.Store(phase<<32 | uint64(count))
	if count > 1 && which == measure && e.wakes {
		for range min(int(e.parked.Load()), count-1) {
			select {
			case e.wake <- struct{}{}:
			default: // as many as there are workers have been told
			}
		}
	}
	for e.step(true) {
	}
	for !look(func() bool { return int(e.finished.Load()) == count }) {
		runtime.Gosched()
	}
}

// look asks for a moment whether something has come to be.
func look(is func() bool) bool {
	for range looks {
		if is() {
			return true
		}
	}
	return false
}

// left says whether a chunk is left to take.
func (e *Encoder) left() bool {
	t := e.ticket.Load()
	return t>>16&0xffff < t&0xffff
}

// step does one chunk; false if there is none to take.
func (e *Encoder) step(front bool) bool {
	for {
		t := e.ticket.Load()
		first, end := t>>16&0xffff, t&0xffff
		if first >= end {
			return false
		}
		taken, rest := end-1, t-1
		if front {
			taken, rest = first, t+1<<16
		}
		if e.ticket.CompareAndSwap(t, rest) {
			e.do(t>>32&1, int(taken))
			e.finished.Add(1)
			return true
		}
	}
}

// do does a phase's work on chunk i.
func (e *Encoder) do(phase uint64, i int) {
	if phase == measure {
		e.measure(i)
	} else {
		e.write(i)
	}
}

// help is a helper: it looks for chunks for a moment, then parks until woken.
func (e *Encoder) help() {
	for {
		for idle := 0; idle < idleRounds; idle++ {
			if !look(e.left) {
				runtime.Gosched()
				continue
			}
			for e.step(false) {
				idle = 0
			}
		}
		e.parked.Add(1)
		// A batch that came before the line above did not count this helper.
		if !e.step(false) {
			select {
			case <-e.wake:
			case <-e.stop:
				e.parked.Add(-1)
				return
			}
		}
		e.parked.Add(-1)
	}
}

// part is the records of chunk i, and the first one's index.
func (e *Encoder) part(i int) (records []Record, first int) {
	first = i * e.chunk
	return e.records[first:min(first+e.chunk, len(e.records))], first
}

// measure finds the layout of chunk i as if it were a batch.
func (e *Encoder) measure(i int) {
	records, first := e.part(i)
	n := len(records)
	ends := e.ends[first>>blockShift:][:blocks(n)]
	var l layout
	rich := gather(records, e.lens[first:first+n], e.times[first:first+n], ends)
	addMany(&l, e.lens[first:first+n], e.times[first:first+n])
	if rich {
		var keys, headers [blockRecords]uint32
		var attrs [blockRecords]uint8
		values := l.payload
		for b := range ends {
			ends[b] += uint32(l.payload - values)
			block := records[b<<blockShift : min((b+1)<<blockShift, n)]
			for k := range block {
				r := &block[k]
				keys[k], headers[k], attrs[k] = length(r.Key), length(r.Headers), attributesOf(r)
			}
			l.addRich(keys[:len(block)], headers[:len(block)], attrs[:len(block)], b == 0)
		}
	}
	e.chunks[i].l = l
}

// length is p's, or that of a batch if it is longer: it does not fit then either.
func length(p []byte) uint32 { return uint32(min(len(p), MaxBatchBytes)) }

// write lays out chunk i: its payload, checkpoints and columns.
func (e *Encoder) write(i int) {
	records, first := e.part(i)
	c := &e.chunks[i]
	for b := first >> blockShift; b < blocks(first+len(records)); b++ {
		if b > 0 {
			binary.LittleEndian.PutUint32(e.dst[e.p.checkpoints+4*(b-1):], uint32(c.at)+e.ends[b])
		}
	}
	e.columns(records, first)
	copyAll := copyValues
	if c.l.hasKeys || c.l.hasHeaders {
		copyAll = copyRich
	}
	at := HeaderBytes + c.at
	end := at + c.l.payload
	_, crc := copyAll(e.dst[at:end], records)
	c.crc = shiftCRC(crc, e.p.checkpoints-end)
}

// copyRich is copyValues of records that may have keys and headers.
func copyRich(dst []byte, records []Record) (bytes int, crc uint32) {
	summed := 0
	for i := range records {
		r := &records[i]
		bytes += copy(dst[bytes:], r.Key)
		bytes += copy(dst[bytes:], r.Value)
		bytes += copy(dst[bytes:], r.Headers)
		if bytes-summed >= crcChunk {
			crc, summed = updateCRC(crc, dst[summed:bytes]), bytes
		}
	}
	return bytes, updateCRC(crc, dst[summed:bytes])
}

// columns packs the columns of records, of which the first is record first.
func (e *Encoder) columns(records []Record, first int) {
	p, l, n := &e.p, &e.whole, len(records)
	packLengths(e.column(p.values, first, n, p.valueW), e.lens[first:first+n], uint32(l.value.min), p.valueW)
	times, base := e.times[first:first+n], int64(l.time.min)
	if p.steps {
		base = cutSteps(e.starts[first>>blockShift:][:blocks(n)], times, l, p)
	}
	packColumn(e.column(p.times, first, n, p.timeW), times, base, p.timeW)
	if p.keyW+p.headerW+p.attrW == 0 {
		return
	}
	var keys, headers, attrs [blockRecords]uint32
	for ; len(records) > 0; first += n {
		n = min(blockRecords, len(records))
		for k := range records[:n] {
			r := &records[k]
			keys[k], headers[k], attrs[k] = uint32(len(r.Key)), uint32(len(r.Headers)), uint32(attributesOf(r))
		}
		packLengths(e.column(p.keys, first, n, p.keyW), keys[:n], uint32(l.key.min), p.keyW)
		packLengths(e.column(p.headers, first, n, p.headerW), headers[:n], uint32(l.header.min), p.headerW)
		packLengths(e.column(p.attrs, first, n, p.attrW), attrs[:n], uint32(l.attr.min), p.attrW)
		records = records[n:]
	}
}

// column is where n numbers go in the column at at, from number first on, which
// begins a byte.
func (e *Encoder) column(at, first, n, width int) []byte {
	at += first * width >> 3
	return e.dst[at : at+columnBytes(n, width)]
}

// finish writes what is left: block times and header.
func (e *Encoder) finish() []byte {
	p := &e.p
	out := e.dst[:p.end:p.end]
	if p.steps {
		packColumn(out[p.starts:p.values], e.starts, int64(e.whole.start.min), p.startW)
	}
	var crc uint32
	for i := range e.chunks {
		crc ^= e.chunks[i].crc
	}
	e.whole.writeHeader(out, p, updateCRC(crc, out[p.checkpoints:]))
	return out
}
