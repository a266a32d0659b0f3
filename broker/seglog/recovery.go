package seglog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
)

// Recovery says what opening a log found and did.
type Recovery struct {
	Segments int
	Entries  int
	Bytes    int64 // of whole entries, headers included
	// TornBytes were cut off the last segment, because Torn: an unfinished write.
	TornBytes int64
	Torn      string
}

// scanBytes is the read-ahead of a scan.
const scanBytes = 1 << 20

// openLog opens the log in dir, which exists; an empty directory gets its first
// segment.
func openLog(dir string, o Options) (_ *Log, err error) {
	l := &Log{dir: dir, opts: o}
	bases, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			for _, s := range l.segments {
				_ = s.file.Close()
			}
		}
	}()
	for i, base := range bases {
		if i > 0 && base != l.next {
			prev := l.segments[i-1]
			return nil, &CorruptError{Path: prev.path, Pos: prev.size, Offset: l.next,
				Reason: fmt.Sprintf("the segment ends there, but the next one begins with offset %d", base)}
		}
		if i == 0 {
			l.next = base
		}
		if err := l.openSegment(base, i == len(bases)-1); err != nil {
			return nil, err
		}
	}
	if len(bases) == 0 {
		first, err := l.create(0)
		if err != nil {
			return nil, err
		}
		l.segments = []*segment{first}
	}
	l.recovery.Segments = len(l.segments)
	// A crash may have come between creating a name and syncing it.
	l.newName = true
	return l, nil
}

func listSegments(dir string) ([]uint64, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var bases []uint64
	for _, n := range names {
		base, ok := segmentBase(n.Name())
		if !ok || !n.Type().IsRegular() {
			return nil, fmt.Errorf("seglog: %s does not belong into a log: move it away", filepath.Join(dir, n.Name()))
		}
		bases = append(bases, base)
	}
	sort.Slice(bases, func(i, j int) bool { return bases[i] < bases[j] })
	return bases, nil
}

// openSegment scans one segment and adds it to the log.
func (l *Log) openSegment(base uint64, last bool) error {
	path := segmentPath(l.dir, base)
	f, err := l.opts.OpenFile(path, false)
	if err != nil {
		return ioError("open", path, err)
	}
	s := &segment{base: base, path: path, file: f, size: SegmentHeaderBytes}
	l.segments = append(l.segments, s)
	size, err := f.Size()
	if err != nil {
		return ioError("stat", path, err)
	}
	if size < SegmentHeaderBytes {
		if !last {
			return &CorruptError{Path: path, Offset: base, Reason: fmt.Sprintf("it has only %d bytes", size)}
		}
		return l.restart(s, size)
	}
	header := make([]byte, SegmentHeaderBytes)
	if _, err := f.ReadAt(header, 0); err != nil {
		return ioError("read", path, err)
	}
	if reason := checkSegmentHeader(header, base); reason != "" {
		if last && size == SegmentHeaderBytes && bytes.Count(header, []byte{0}) == len(header) {
			return l.restart(s, size) // the name reached the disk, the header did not
		}
		return fmt.Errorf("seglog: segment %s cannot be read: %s. Restore it from a copy, or move it away with all segments of higher names to give up offset %d and everything after it",
			path, reason, base)
	}
	damage, err := l.scan(s, size)
	if err != nil {
		return err
	}
	l.recovery.Bytes += s.size - SegmentHeaderBytes
	if damage == nil {
		return nil
	}
	if !last || damage.middle {
		return &CorruptError{Path: path, Pos: s.size, Offset: l.next, Reason: damage.reason}
	}
	l.recovery.TornBytes, l.recovery.Torn = size-s.size, damage.reason
	l.opts.Logger.Warn("log: cut an unfinished write off the end of the last segment",
		"segment", path, "at", s.size, "bytes", size-s.size, "reason", damage.reason, "nextOffset", l.next)
	if err := f.Truncate(s.size); err != nil {
		return ioError("truncate", path, err)
	}
	return nil
}

// restart writes the header of a last segment that was being created.
func (l *Log) restart(s *segment, size int64) error {
	l.recovery.TornBytes, l.recovery.Torn = size, "the segment header is not whole"
	if err := s.file.Truncate(0); err != nil {
		return ioError("truncate", s.path, err)
	}
	if _, err := s.file.Writev([][]byte{segmentHeader(s.base)}, 0); err != nil {
		return ioError("write", s.path, err)
	}
	return nil
}

// damage is why a scan ended before the end of the file.
type damage struct {
	reason string
	middle bool // not an unfinished write: intact entries follow, or it contradicts them
}

// scan reads all entries of s, indexes them, and leaves s.size and l.next behind
// the last good one.
func (l *Log) scan(s *segment, size int64) (*damage, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(s.file, SegmentHeaderBytes, size-SegmentHeaderBytes), scanBytes)
	for s.size < size {
		left := size - s.size
		h, err := r.Peek(int(min(left, EntryHeaderBytes)))
		if err != nil {
			return nil, ioError("read", s.path, err)
		}
		e, payload, reason := parseEntryHeader(h)
		switch {
		case left < EntryHeaderBytes:
			return &damage{reason: reason}, nil
		case reason != "":
			return l.judge(s, size, s.size+1, reason)
		case e.Base != l.next:
			return &damage{reason: fmt.Sprintf("an entry with offset %d stands there", e.Base), middle: true}, nil
		case e.End()-s.base > maxSegmentSpan:
			return &damage{reason: "its offsets leave the segment's range", middle: true}, nil
		case int64(EntryHeaderBytes+payload) > left:
			return &damage{reason: fmt.Sprintf("the entry has %d bytes, the file %d more", EntryHeaderBytes+payload, left)}, nil
		}
		if _, err := r.Discard(EntryHeaderBytes); err != nil {
			return nil, ioError("read", s.path, err)
		}
		crc, err := readCRC(r, payload)
		if err != nil {
			return nil, ioError("read", s.path, err)
		}
		if crc != e.payloadCRC {
			return l.judge(s, size, s.size+int64(EntryHeaderBytes+payload), "the batch does not match its checksum")
		}
		s.note(e.Base, s.size)
		s.size += int64(EntryHeaderBytes + payload)
		l.next = e.End()
		l.recovery.Entries++
	}
	return nil, nil
}

// readCRC computes the CRC32C of the next n bytes of r.
func readCRC(r *bufio.Reader, n int) (crc uint32, err error) {
	for n > 0 {
		p, err := r.Peek(min(n, scanBytes))
		if err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, castagnoli, p)
		n -= len(p)
		if _, err := r.Discard(len(p)); err != nil {
			return 0, err
		}
	}
	return crc, nil
}

// judge tells an unfinished write from damage to finished ones: it is the latter
// if any intact entry with a later offset follows at or behind from.
func (l *Log) judge(s *segment, size, from int64, reason string) (*damage, error) {
	at, found, err := s.search(from, size, l.next)
	if err != nil {
		return nil, err
	}
	if found {
		return &damage{reason: fmt.Sprintf("%s, and intact entries follow at byte %d", reason, at), middle: true}, nil
	}
	return &damage{reason: reason}, nil
}

// search looks for an intact entry with a base offset above after.
func (s *segment) search(from, size int64, after uint64) (at int64, found bool, err error) {
	window := make([]byte, scanBytes)
	for from < size {
		n := int(min(int64(len(window)), size-from))
		if _, err := s.file.ReadAt(window[:n], from); err != nil {
			return 0, false, ioError("read", s.path, err)
		}
		p := window[:n]
		for at := 0; ; at++ {
			i := bytes.Index(p[at:], []byte(entryMagic))
			if i < 0 {
				break
			}
			at += i
			if ok, err := s.intact(from+int64(at), size, after); err != nil || ok {
				return from + int64(at), ok, err
			}
		}
		// The magic may straddle two windows.
		from += int64(max(1, n-len(entryMagic)+1))
	}
	return 0, false, nil
}

func (s *segment) intact(pos, size int64, after uint64) (bool, error) {
	var h [EntryHeaderBytes]byte
	n := min(size-pos, EntryHeaderBytes)
	if _, err := s.file.ReadAt(h[:n], pos); err != nil {
		return false, ioError("read", s.path, err)
	}
	e, payload, reason := parseEntryHeader(h[:n])
	if reason != "" || e.Base <= after || int64(EntryHeaderBytes+payload) > size-pos {
		return false, nil
	}
	crc, err := readCRC(bufio.NewReaderSize(io.NewSectionReader(s.file, pos+EntryHeaderBytes, int64(payload)), min(payload, scanBytes)+16), payload)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, ioError("read", s.path, err)
	}
	return err == nil && crc == e.payloadCRC, nil
}
