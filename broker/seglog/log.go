package seglog

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"sync/atomic"
)

// Batch is what Append stores as one entry.
type Batch struct {
	// Payload is the encoded batch, 1 to MaxPayloadBytes. It is only read, and not
	// kept after Append.
	Payload []byte
	// Records is how many offsets the batch takes, at least 1.
	Records uint32
}

// Log is the log of one topic's partition. Append and Close are for one
// goroutine at a time; all else may run beside them on any goroutine.
type Log struct {
	dir      string
	opts     Options
	recovery Recovery

	// Of the appender alone.
	headers []byte
	iov     [][]byte
	newName bool // names were created that no fsync of the directory covers yet
	failed  error

	mu       sync.Mutex
	segments []*segment // by base, at least one until Close
	next     uint64     // offset after the last published record
	cursors  [4]cursor  // where recent reads ended
	cursorAt int

	stats logCounters
}

// cursor says that the entry with base offset begins at pos of seg, so that a
// sequential reader need not search.
type cursor struct {
	offset uint64
	seg    *segment
	pos    int64
}

type logCounters struct{ appends, batches, records, bytes, syncs atomic.Uint64 }

// Stats count what a log did since it was opened.
type Stats struct {
	Appends, Batches, Records, Bytes, Syncs uint64
}

// Stats returns the counters.
func (l *Log) Stats() Stats {
	s := &l.stats
	return Stats{s.appends.Load(), s.batches.Load(), s.records.Load(), s.bytes.Load(), s.syncs.Load()}
}

// Durability is what Append waits for.
func (l *Log) Durability() Durability { return l.opts.Durability }

// Recovery says what opening the log found.
func (l *Log) Recovery() Recovery { return l.recovery }

// Bounds returns the first offset of the log and the one after its last record.
func (l *Log) Bounds() (earliest, latest uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) == 0 {
		return l.next, l.next
	}
	return l.segments[0].base, l.next
}

// Append stores all of batches with one vectored write and returns the offset of
// the first record; the batches follow each other without a gap. It returns when
// they are as durable as Options.Durability says, and readers see them from then
// on. After an error none is stored, with one exception: wrapped with ErrFailed
// the outcome is unknown, and every later Append is refused.
func (l *Log) Append(batches []Batch) (base uint64, err error) {
	if l.failed != nil {
		return 0, l.failed
	}
	bytes, records, err := measure(batches)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	if len(l.segments) == 0 {
		l.mu.Unlock()
		return 0, ErrClosed
	}
	seg, base := l.segments[len(l.segments)-1], l.next
	l.mu.Unlock()

	if seg.size > SegmentHeaderBytes && (seg.size+bytes > l.opts.SegmentBytes || base+records-seg.base > maxSegmentSpan) {
		if seg, err = l.roll(seg, base); err != nil {
			return 0, err
		}
	}
	if l.opts.Durability == PageCache { // an fdatasync takes longer over reserved blocks
		seg.reserve(bytes, l.opts.SegmentBytes)
	}
	l.lay(batches, base)
	_, err = seg.file.Writev(l.iov, seg.size)
	clear(l.iov)
	if err != nil {
		return 0, l.undo(seg, err)
	}
	if err := l.sync(seg.file, seg.path); err != nil {
		return 0, err
	}
	l.publish(seg, batches, base, bytes)
	l.stats.appends.Add(1)
	l.stats.batches.Add(uint64(len(batches)))
	l.stats.records.Add(records)
	l.stats.bytes.Add(uint64(bytes))
	return base, nil
}

func measure(batches []Batch) (bytes int64, records uint64, err error) {
	for i := range batches {
		n := len(batches[i].Payload)
		if n == 0 || n > MaxPayloadBytes || batches[i].Records == 0 {
			return 0, 0, fmt.Errorf("%w: %d bytes, %d records; a batch has 1 to %d bytes and at least one record",
				ErrBatch, n, batches[i].Records, MaxPayloadBytes)
		}
		bytes += int64(EntryHeaderBytes + n)
		records += uint64(batches[i].Records)
	}
	if len(batches) == 0 || bytes > maxSegmentBytes || records > maxSegmentSpan {
		return 0, 0, fmt.Errorf("%w: one append of %d batches, %d bytes and %d records; it takes 1 batch to %d bytes",
			ErrBatch, len(batches), bytes, records, int64(maxSegmentBytes))
	}
	return bytes, records, nil
}

// lay fills iov with header and payload of each batch.
func (l *Log) lay(batches []Batch, base uint64) {
	l.headers, l.iov = l.headers[:0], l.iov[:0]
	for _, b := range batches {
		l.headers = appendEntryHeader(l.headers, base, b)
		base += uint64(b.Records)
	}
	// The headers are cut only now: appending may have moved them.
	for i, b := range batches {
		l.iov = append(l.iov, l.headers[i*EntryHeaderBytes:(i+1)*EntryHeaderBytes], b.Payload)
	}
}

// undo takes back what a failed write left behind the last entry.
func (l *Log) undo(seg *segment, cause error) error {
	if err := seg.file.Truncate(seg.size); err != nil {
		return l.fail(ioError("truncate after a failed write", seg.path, errors.Join(err, cause)))
	}
	return ioError("append to", seg.path, cause)
}

func (l *Log) fail(err error) error {
	l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
	return l.failed
}

// sync makes the segment and its name durable, in that mode. After a failed
// fsync the kernel may have dropped the pages and called them clean, so that a
// second one would lie (fsync(2), "errors"): the log fails for good.
func (l *Log) sync(f File, path string) error {
	if l.opts.Durability != Fsync {
		return nil
	}
	if err := f.Sync(); err != nil {
		return l.fail(ioError("fdatasync", path, err))
	}
	l.stats.syncs.Add(1)
	if l.newName {
		if err := syncDir(l.dir); err != nil {
			return l.fail(ioError("fsync", l.dir, err))
		}
		l.newName = false
	}
	return nil
}

// roll starts a new segment at base behind seg.
func (l *Log) roll(seg *segment, base uint64) (*segment, error) {
	// In fsync mode every append of seg was synced when it was made.
	next, err := l.create(base)
	if err != nil {
		return nil, err
	}
	if err := seg.unreserve(); err != nil {
		l.opts.Logger.Warn("disk space stays reserved behind the end of a segment until it is copied or removed", "segment", seg.path, "err", err)
	}
	l.mu.Lock()
	l.segments = append(l.segments, next)
	l.mu.Unlock()
	return next, nil
}

// create makes an empty segment file.
func (l *Log) create(base uint64) (*segment, error) {
	path := segmentPath(l.dir, base)
	f, err := l.opts.OpenFile(path, true)
	if err != nil {
		return nil, ioError("create", path, err)
	}
	if _, err := f.Writev([][]byte{segmentHeader(base)}, 0); err != nil {
		return nil, ioError("create", path, errors.Join(err, f.Close(), os.Remove(path)))
	}
	l.newName = true
	return &segment{base: base, path: path, file: f, size: SegmentHeaderBytes}, nil
}

// publish lets readers see what was appended.
func (l *Log) publish(seg *segment, batches []Batch, base uint64, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pos := seg.size
	for i := range batches {
		seg.note(base, pos)
		base += uint64(batches[i].Records)
		pos += int64(EntryHeaderBytes + len(batches[i].Payload))
	}
	seg.size += bytes
	l.next = base
}

// Span is a stretch of whole entries in one segment, found by Find.
type Span struct {
	seg    *segment
	pos    int64
	offset uint64
	bytes  int
}

// Bytes is how large a buffer Read needs; 0 where there is nothing to read yet.
func (s *Span) Bytes() int { return s.bytes }

// Find locates the entry that holds offset and what follows it in the same
// segment, at most maxBytes, but always the first entry whole. At the end of the
// log it returns an empty Span; outside of the log a *RangeError.
func (l *Log) Find(offset uint64, maxBytes int) (Span, error) {
	l.mu.Lock()
	if len(l.segments) == 0 {
		l.mu.Unlock()
		return Span{}, ErrClosed
	}
	earliest, next := l.segments[0].base, l.next
	if offset < earliest || offset >= next {
		l.mu.Unlock()
		if offset == next {
			return Span{}, nil
		}
		return Span{}, &RangeError{Offset: offset, Earliest: earliest, Latest: next}
	}
	seg := l.segments[sort.Search(len(l.segments), func(i int) bool { return l.segments[i].base > offset })-1]
	size := seg.size
	pos, exact := l.resume(seg, offset)
	if !exact {
		pos = seg.floor(offset)
	}
	l.mu.Unlock()

	pos, first, err := seg.walk(pos, size, offset)
	if err != nil {
		return Span{}, err
	}
	n := max(int64(first), min(int64(maxBytes), size-pos))
	return Span{seg: seg, pos: pos, offset: offset, bytes: int(n)}, nil
}

// resume looks for a recent read that ended at offset.
func (l *Log) resume(seg *segment, offset uint64) (pos int64, ok bool) {
	for i := range l.cursors {
		if c := &l.cursors[i]; c.seg == seg && c.offset == offset && c.pos < seg.size {
			return c.pos, true
		}
	}
	return 0, false
}

// walk goes from the entry at pos to the one that holds offset, and returns its
// position and size, header included.
func (s *segment) walk(pos, size int64, offset uint64) (at int64, bytes int, err error) {
	var window [1 << 10]byte // of small entries, many headers at once
	var got []byte
	from := pos
	for pos+EntryHeaderBytes <= size {
		if pos < from || pos+EntryHeaderBytes > from+int64(len(got)) {
			n := int(min(int64(len(window)), size-pos))
			if _, err := s.file.ReadAt(window[:n], pos); err != nil {
				return 0, 0, ioError("read", s.path, err)
			}
			from, got = pos, window[:n]
		}
		e, payload, reason := parseEntryHeader(got[pos-from:])
		if reason != "" {
			return 0, 0, &CorruptError{Path: s.path, Pos: pos, Offset: offset, Reason: reason}
		}
		bytes = EntryHeaderBytes + payload
		if offset < e.End() {
			return pos, bytes, nil
		}
		pos += int64(bytes)
	}
	return 0, 0, &CorruptError{Path: s.path, Pos: pos, Offset: offset, Reason: "the entry that holds this offset is not there"}
}

// Read fills dst, at least Span.Bytes long, from the file and returns the whole
// entries in it (a prefix of dst; see NextEntry) and the offset after them. It
// blocks for as long as the disk does where the pages are not cached.
func (l *Log) Read(s *Span, dst []byte) (entries []byte, next uint64, err error) {
	dst = dst[:s.bytes]
	if s.bytes == 0 {
		return nil, s.offset, nil
	}
	if _, err := s.seg.file.ReadAt(dst, s.pos); err != nil {
		return nil, 0, ioError("read", s.seg.path, err)
	}
	end, next := 0, s.offset
	for len(dst)-end >= EntryHeaderBytes {
		e, payload, reason := parseEntryHeader(dst[end:])
		if reason != "" {
			return nil, 0, &CorruptError{Path: s.seg.path, Pos: s.pos + int64(end), Offset: next, Reason: reason}
		}
		if EntryHeaderBytes+payload > len(dst)-end {
			break
		}
		end += EntryHeaderBytes + payload
		next = e.End()
	}
	l.mu.Lock()
	l.cursors[l.cursorAt] = cursor{next, s.seg, s.pos + int64(end)}
	l.cursorAt = (l.cursorAt + 1) % len(l.cursors)
	l.mu.Unlock()
	return dst[:end], next, nil
}

// Close syncs what is not synced yet and closes the files. Reads under way must
// have ended.
func (l *Log) Close() error {
	l.mu.Lock()
	segments := l.segments
	l.segments = nil
	l.mu.Unlock()
	var err error
	for _, s := range segments {
		if l.failed == nil {
			err = errors.Join(err, s.unreserve(), s.file.Sync())
		}
		err = errors.Join(err, s.file.Close())
	}
	l.failed = ErrClosed
	return err
}
