package seglog

import (
	"fmt"
	"log/slog"
	"math"
)

// Options configure a Store and its logs. The zero value of a field means its
// default.
type Options struct {
	// Durability is what Append waits for. Default PageCache.
	Durability Durability
	// SegmentBytes is the size at which a log goes on in a new segment; one append
	// is never split, so a segment may be larger by one. 4 KiB to 2 GiB, default
	// 256 MiB.
	SegmentBytes int64
	// MaxTopics bounds the topics of a store. Each keeps its segments open: one
	// file descriptor per segment. Default 1024.
	MaxTopics int
	// OpenFile replaces the operating system's files, to inject faults. Default
	// OpenFile.
	OpenFile func(path string, create bool) (File, error)
	// Logger takes what recovery did. Default slog.Default().
	Logger *slog.Logger
}

const (
	defaultSegmentBytes = 256 << 20
	minSegmentBytes     = 4 << 10
	maxSegmentBytes     = 2 << 30
	defaultMaxTopics    = 1024

	// indexEvery is how many bytes one index entry covers. An entry is 8 bytes of
	// memory, so the index takes 1/2048 of the log's size; finding an offset reads
	// at most this much.
	indexEvery = 16 << 10
	// maxSegmentSpan keeps positions and relative offsets in 32 bits: the largest
	// segment and one append behind it.
	maxSegmentSpan = math.MaxUint32
)

func (o Options) withDefaults() (Options, error) {
	if o.Durability == 0 {
		o.Durability = PageCache
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.MaxTopics == 0 {
		o.MaxTopics = defaultMaxTopics
	}
	if o.OpenFile == nil {
		o.OpenFile = OpenFile
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case o.Durability != PageCache && o.Durability != Fsync:
		return o, fmt.Errorf("seglog: %v: use PageCache or Fsync", o.Durability)
	case o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxSegmentBytes:
		return o, fmt.Errorf("seglog: segments of %d bytes: use %d to %d", o.SegmentBytes, int64(minSegmentBytes), int64(maxSegmentBytes))
	case o.MaxTopics < 0:
		return o, fmt.Errorf("seglog: MaxTopics is %d", o.MaxTopics)
	}
	return o, nil
}
