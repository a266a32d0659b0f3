package seglog

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// blocks is what the files of dir's only topic take on the disk.
func blocks(t *testing.T, dir string) (bytes, size int64) {
	t.Helper()
	for _, name := range segmentFiles(t, dir) {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		bytes += st.Blocks * 512
		size += st.Size
	}
	return bytes, size
}

// Blocks are reserved ahead of what is written, never change a segment's size, and
// are given back with the segment's end.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{SegmentBytes: 24 << 20})
	l := create(t, s, "t")
	append := func(n int) {
		t.Helper()
		for range n {
			if _, err := l.Append([]Batch{{Payload: make([]byte, 256<<10), Records: 1}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	append(3)
	if got, size := blocks(t, dir); got > size+64<<10 {
		t.Errorf("a small segment of %d bytes takes %d", size, got)
	}
	append(3)
	if got, size := blocks(t, dir); size > 2<<20 {
		t.Errorf("the file has %d bytes", size)
	} else if got < size+512<<10 {
		t.Logf("nothing was reserved here: %d bytes for %d", got, size) // not all file systems can
	}
	append(180) // into the second segment
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got, size := blocks(t, dir); got > size+256<<10 {
		t.Errorf("%d bytes are taken for %d", got, size)
	}
	if s, err := tryOpen(dir, Options{SegmentBytes: 24 << 20}); err != nil {
		t.Error(err)
	} else {
		if _, latest := s.Topic("t").Bounds(); latest != 186 {
			t.Errorf("%d batches are there", latest)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// stingy is a file that reserves nothing.
type stingy struct{ File }

func (stingy) Allocate(from, to int64) error { return syscall.ENOSPC }

func TestReserveFails(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{OpenFile: func(path string, create bool) (File, error) {
		f, err := OpenFile(path, create)
		return stingy{f}, err
	}})
	l := create(t, s, "t")
	for i := range 20 {
		if base, err := l.Append([]Batch{{Payload: make([]byte, 200<<10), Records: 1}}); err != nil || base != uint64(i) {
			t.Fatalf("%d, %v", base, err)
		}
	}
}
