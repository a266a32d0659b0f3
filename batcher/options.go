package batcher

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// Options configure a Batcher. The zero value of a field but Pool means its
// default.
type Options struct {
	// Pool supplies the batches' buffers, MaxBatchBytes each, taken for
	// hugepages.Batch. A batcher holds one while records are gathered and one for
	// each batch that waits for the sink: at most MaxBatches+1, and with an Inbox its
	// Stages besides. Required.
	Pool *hugepages.Pool
	// MaxBatchBytes closes a batch when the next record would make it larger, its
	// header and columns included. It bounds a record too: one of MaxBatchBytes-64
	// bytes just fits. Default 128 KiB, a size class of hugepages.
	MaxBatchBytes int
	// MaxBatchRecords closes a batch at this many records. Default 2048.
	MaxBatchRecords int
	// PartialInFlight is when a link counts as busy: a batch that is not full
	// leaves at the end of a duty cycle while fewer than this many are in flight.
	// More means less waiting and smaller batches. Full batches do not wait for it.
	// Default 3, or MaxBatches if that is less: one on its way, one that the peer works
	// on, and one whose answer is on its way.
	PartialInFlight int
	// Linger is how long a batch that is not full waits for more records even
	// though the link is idle, counted from the end of the duty cycle in which its
	// first record came. Default 0: it leaves with that duty cycle.
	Linger time.Duration
	// MaxDelay is how long a batch that is not full waits at most while the link is
	// busy, counted like Linger; then it leaves all the same. It is for links whose
	// answers take long, and at least Linger. Default 0: no limit.
	MaxDelay time.Duration
	// MinInterval is the least time between two batches that are not full: a limit of
	// their frequency, for links and peers to which each request is dear. The first
	// after a pause leaves at once. It holds over Linger and MaxDelay; full batches,
	// Flush and Close do not wait for it. Default 0: no limit.
	MinInterval time.Duration
	// MaxQueuedBytes and MaxQueuedRecords bound what is appended and not completed
	// yet; beyond, Append answers ErrFull. Bytes are those of keys, values and
	// headers. MaxQueuedBytes is at least MaxBatchBytes, MaxQueuedRecords at least
	// MaxBatchRecords; each record costs 24 bytes of memory from the start. Defaults
	// 4 MiB and 16,384.
	MaxQueuedBytes   int
	MaxQueuedRecords int
	// MaxBatches bounds the batches that are closed and not answered: waiting for
	// the sink or in flight. At least PartialInFlight. Default 32.
	MaxBatches int
	// Compressor, if set, compresses each batch when it closes, on the batcher's
	// goroutine and not on the producers'; see compress.go for which it leaves
	// alone. Batchers of one goroutine may share it. Limits of bytes are those of
	// batches before. nil: none.
	Compressor *serialize.Compressor
	// Counters, if set, count the batches; batchers may share them. May be nil.
	Counters *Counters
	// OnWritable runs on the batcher's goroutine, once after a record was refused
	// for want of room, when half of each bound is free again (or, if it was for
	// want of a buffer, when there is one). May be nil.
	OnWritable func()
}

const (
	defaultMaxBatchBytes    = 128 << 10
	defaultMaxBatchRecords  = 2048
	defaultPartialInFlight  = 3
	defaultMaxQueuedBytes   = 4 << 20
	defaultMaxQueuedRecords = 16384
	defaultMaxBatches       = 32

	// minBatchBytes leaves room for a record worth sending.
	minBatchBytes = 256
)

func (o *Options) complete() error {
	partial := defaultPartialInFlight
	if o.MaxBatches > 0 {
		partial = min(partial, o.MaxBatches)
	}
	for _, f := range []struct {
		v *int
		d int
	}{
		{&o.MaxBatchBytes, defaultMaxBatchBytes}, {&o.MaxBatchRecords, defaultMaxBatchRecords},
		{&o.PartialInFlight, partial}, {&o.MaxBatches, max(defaultMaxBatches, o.PartialInFlight)},
	} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	if o.MaxQueuedBytes == 0 {
		o.MaxQueuedBytes = max(defaultMaxQueuedBytes, o.MaxBatchBytes)
	}
	if o.MaxQueuedRecords == 0 {
		o.MaxQueuedRecords = max(defaultMaxQueuedRecords, o.MaxBatchRecords)
	}
	switch {
	case o.Pool == nil:
		return fmt.Errorf("batcher: Options.Pool is missing")
	case o.MaxBatchBytes < minBatchBytes || o.MaxBatchBytes > serialize.MaxBatchBytes:
		return fmt.Errorf("batcher: MaxBatchBytes %d, want %d to %d", o.MaxBatchBytes, minBatchBytes, serialize.MaxBatchBytes)
	case o.MaxBatchBytes > o.Pool.MaxBytes():
		return fmt.Errorf("batcher: MaxBatchBytes %d, the pool's largest buffer has %d: lower it or enlarge the arena", o.MaxBatchBytes, o.Pool.MaxBytes())
	case o.MaxBatchRecords < 1 || o.MaxBatchRecords > serialize.MaxRecords:
		return fmt.Errorf("batcher: MaxBatchRecords %d, want 1 to %d", o.MaxBatchRecords, serialize.MaxRecords)
	case o.PartialInFlight < 1:
		return fmt.Errorf("batcher: PartialInFlight %d, want at least 1", o.PartialInFlight)
	case o.MaxBatches < o.PartialInFlight:
		return fmt.Errorf("batcher: MaxBatches %d, want at least PartialInFlight (%d)", o.MaxBatches, o.PartialInFlight)
	case o.MaxQueuedBytes < o.MaxBatchBytes:
		return fmt.Errorf("batcher: MaxQueuedBytes %d, want at least MaxBatchBytes (%d)", o.MaxQueuedBytes, o.MaxBatchBytes)
	case o.MaxQueuedRecords < o.MaxBatchRecords:
		return fmt.Errorf("batcher: MaxQueuedRecords %d, want at least MaxBatchRecords (%d)", o.MaxQueuedRecords, o.MaxBatchRecords)
	case o.Linger < 0 || o.MaxDelay < 0 || o.MinInterval < 0:
		return fmt.Errorf("batcher: Linger %v, MaxDelay %v and MinInterval %v must not be negative", o.Linger, o.MaxDelay, o.MinInterval)
	case o.MaxDelay != 0 && o.MaxDelay < o.Linger:
		return fmt.Errorf("batcher: MaxDelay %v is less than Linger %v", o.MaxDelay, o.Linger)
	}
	return nil
}
