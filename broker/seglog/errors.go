package seglog

import (
	"errors"
	"fmt"
	"syscall"
)

var (
	// ErrFull: the disk, quota or file size limit has no room. Nothing was stored
	// and the log is as before; appending works again once there is room.
	ErrFull = errors.New("seglog: no space for the log: free disk space on the data directory's file system")
	// ErrFailed: the log cannot know what the disk holds after an I/O error, and
	// refuses appends until the store is opened anew.
	ErrFailed = errors.New("seglog: log failed after an I/O error: check the disk (dmesg) and restart the broker")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("seglog: log closed")
	// ErrBatch refuses a batch that no log takes; the text says why.
	ErrBatch = errors.New("seglog: batch refused")
	// ErrLocked: another process has the data directory open.
	ErrLocked = errors.New("seglog: data directory in use")
	// ErrTopicName refuses a topic name; the text says the rule.
	ErrTopicName = errors.New("seglog: topic name refused")
	// ErrTooManyTopics: Options.MaxTopics is reached.
	ErrTooManyTopics = errors.New("seglog: too many topics")
)

// RangeError answers a read outside of what the log holds.
type RangeError struct {
	Offset           uint64 // asked for
	Earliest, Latest uint64 // valid are Earliest ≤ offset ≤ Latest; at Latest there is nothing yet
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("offset %d is out of range: this log holds offsets %d to %d", e.Offset, e.Earliest, e.Latest)
}

// CorruptError is damage that recovery must not mend by itself.
type CorruptError struct {
	Path   string // segment file
	Pos    int64  // byte at which the first bad entry begins
	Offset uint64 // the offset expected there
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("segment %s is damaged at byte %d, where offset %d begins: %s; this is not an unfinished write. "+
		"Restore the file from a copy. To give up offset %d and everything after it instead: truncate -s %d %s, "+
		"and delete the segments of that directory with higher names",
		e.Path, e.Pos, e.Offset, e.Reason, e.Offset, e.Pos, e.Path)
}

// ioError names the operation; out-of-space conditions become ErrFull.
func ioError(op, path string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("%w (%s %s: %w)", ErrFull, op, path, err)
	}
	return fmt.Errorf("seglog: %s %s: %w", op, path, err)
}
