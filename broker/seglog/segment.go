package seglog

import (
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

const segmentSuffix = ".seg"

// segment is one file. All fields but the contents of file are guarded by
// Log.mu; index is only ever appended to.
type segment struct {
	base  uint64
	path  string
	file  File
	size  int64 // end of the last entry that readers may see
	index []indexEntry

	reserved int64 // blocks are there up to this byte; the appender's alone
}

// A segment that has reserveFrom bytes gets blocks for as much again at once, at
// most maxReserve: writing to them takes two thirds of the time (ext4, measured),
// and the file lies in one piece. Small topics reserve nothing.
const (
	reserveFrom = 1 << 20
	maxReserve  = 16 << 20
)

// reserve prepares for a write of n bytes. Where it cannot be done the write does
// without, or says what is wrong.
func (s *segment) reserve(n, limit int64) {
	end := s.size + n
	if s.size < reserveFrom || end <= s.reserved || end > limit {
		return
	}
	to := min(end+min(s.size, maxReserve), limit)
	s.reserved = to // once for each stretch, whatever comes of it
	if f, ok := s.file.(allocator); ok {
		_ = f.Allocate(s.size, to)
	}
}

// unreserve gives back what is reserved behind the end, when nothing more will be
// appended.
func (s *segment) unreserve() error {
	if s.reserved <= s.size {
		return nil
	}
	s.reserved = 0
	return s.file.Truncate(s.size)
}

// indexEntry says that the entry at byte pos has base offset segment.base+rel.
type indexEntry struct{ rel, pos uint32 }

func segmentPath(dir string, base uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", base, segmentSuffix))
}

// segmentBase is the first offset that a segment's name says.
func segmentBase(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	base, err := strconv.ParseUint(digits, 10, 64)
	return base, err == nil
}

// note indexes the entry that begins at pos if the last one indexed is far
// enough away.
func (s *segment) note(base uint64, pos int64) {
	if n := len(s.index); n == 0 || pos-int64(s.index[n-1].pos) >= indexEvery {
		s.index = append(s.index, indexEntry{uint32(base - s.base), uint32(pos)})
	}
}

// floor is the position of the last indexed entry at or before offset. Entries
// that begin less than indexEvery behind it are not indexed.
func (s *segment) floor(offset uint64) int64 {
	rel := uint32(offset - s.base)
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].rel > rel })
	if i == 0 {
		return SegmentHeaderBytes
	}
	return int64(s.index[i-1].pos)
}
