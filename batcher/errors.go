package batcher

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/hugepages"
)

var (
	// ErrFull refuses a record because a bound on what is queued is reached; the
	// record was not taken. Wait for room (Options.OnWritable, Producer.Wait).
	ErrFull = errors.New("batcher: queue full: wait for room, or raise the limits of Options")
	// ErrClosed refuses a record after Close.
	ErrClosed = errors.New("batcher: closed")
	// ErrCloseTimeout is what records complete with that were not answered by the
	// deadline of Close. Whether they arrived is unknown.
	ErrCloseTimeout = errors.New("batcher: close deadline passed before the records were answered")
	// ErrBackpressure is what a Sink's SendBatch returns, possibly wrapped, if it
	// cannot take the batch now: the batch is kept and offered again after Writable.
	ErrBackpressure = errors.New("batcher: sink cannot take the batch now")
	// ErrUnknownBatch answers a Done for a batch that is not in flight: never sent,
	// already answered, or given up by Fail or the deadline of Close.
	ErrUnknownBatch = errors.New("batcher: batch is not in flight")
)

// errStarved is what an Inbox answers while the pool has no buffer for a batch: an
// ErrFull, for whoever waits, that says which bound it is.
var errStarved = fmt.Errorf("%w: no memory for a batch: %w", ErrFull, hugepages.ErrExhausted)
