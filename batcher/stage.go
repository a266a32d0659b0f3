package batcher

import (
	"sync/atomic"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// stage is a batch that producers fill together: each claims the place of its
// record with one compare-and-swap, and copies the record to where it will be sent
// from. Nobody holds a lock meanwhile, and the loop goes over lengths and
// timestamps only.
type stage struct {
	// claimed is sealedBit, records << 32, payload bytes. A producer that was held
	// up while the stage was sent and opened again may claim all the same: what it
	// has read is claimed itself, and what it writes to it looks up afterwards.
	claimed atomic.Uint64
	_       [56]byte
	seq     atomic.Uint64 // counts the stages that were opened
	hungry  atomic.Int32  // producers that were woken for this stage and have no record in it yet

	buf     *hugepages.Buf
	payload []byte // of buf, behind the batch's header
	rows    []row
	written int // rows that the loop has seen written
}

// row is one record of a stage. Its bytes are at payload[at:]: key, value, headers.
// Rows take a cache line each, so that producers do not disturb each other.
type row struct {
	written             atomic.Uint32 // the loop may read, and clears it
	flags               uint32
	at                  uint32
	key, value, headers uint32
	timestamp           int64
	token               uint64
	to                  Completer
	_                   [8]byte
}

const (
	sealedBit = 1 << 63

	flagKey       = 1 // the key is not nil
	flagNullValue = 2
)

// claims splits what claimed holds.
func claims(c uint64) (records, bytes int, sealed bool) {
	return int(c >> 32 & (1<<31 - 1)), int(uint32(c)), c&sealedBit != 0
}

func (s *stage) sealed() bool { return s.claimed.Load()&sealedBit != 0 }

// write fills the row and the bytes that were claimed.
func (s *stage) write(record, at int, r *serialize.Record, to Completer, token uint64) {
	w := &s.rows[record]
	w.flags = 0
	if r.Key != nil {
		w.flags |= flagKey
	}
	if r.Value == nil {
		w.flags |= flagNullValue
	}
	w.at, w.key, w.value, w.headers = uint32(at), uint32(len(r.Key)), uint32(len(r.Value)), uint32(len(r.Headers))
	w.timestamp, w.token, w.to = r.Timestamp, token, to
	at += copy(s.payload[at:], r.Key)
	at += copy(s.payload[at:], r.Value)
	copy(s.payload[at:], r.Headers)
	w.written.Store(1)
}

// record is a view of a written row's record.
func (w *row) record(payload []byte) (r serialize.Record) {
	at := w.at
	if w.flags&flagKey != 0 {
		r.Key = payload[at : at+w.key]
	}
	at += w.key
	if w.flags&flagNullValue == 0 {
		r.Value = payload[at : at+w.value]
	}
	at += w.value
	if w.headers > 0 {
		r.Headers = payload[at : at+w.headers]
	}
	r.Timestamp = w.timestamp
	return r
}

// whole reports whether all records that were claimed are written; the stage is
// sealed. Who writes the last one wakes the loop.
func (s *stage) whole() bool {
	n, _, _ := claims(s.claimed.Load())
	for s.written < n && s.rows[s.written].written.Load() != 0 {
		s.written++
	}
	return s.written == n
}
