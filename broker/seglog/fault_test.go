package seglog

import (
	"errors"
	"os"
	"syscall"
	"testing"
)

// faultyFile fails as the disk would.
type faultyFile struct {
	File
	f *faults
}

type faults struct {
	room     int64 // bytes that still fit; -1: no bound
	write    error // what writes fail with when room is used up
	truncate error
	sync     error
}

func (f *faults) open(path string, create bool) (File, error) {
	inner, err := OpenFile(path, create)
	if err != nil {
		return nil, err
	}
	return &faultyFile{inner, f}, nil
}

func (f *faultyFile) Writev(iov [][]byte, at int64) (int64, error) {
	var done int64
	for _, p := range iov {
		n := int64(len(p))
		if f.f.room >= 0 {
			n = min(n, f.f.room)
			f.f.room -= n
		}
		if n > 0 {
			if _, err := f.File.Writev([][]byte{p[:n]}, at+done); err != nil {
				return done, err
			}
		}
		if done += n; n < int64(len(p)) {
			return done, os.NewSyscallError("pwritev", f.f.write)
		}
	}
	return done, nil
}

func (f *faultyFile) Truncate(size int64) error {
	if f.f.truncate != nil {
		return f.f.truncate
	}
	return f.File.Truncate(size)
}

func (f *faultyFile) Sync() error {
	if f.f.sync != nil {
		return f.f.sync
	}
	return f.File.Sync()
}

// A full disk refuses appends by name, keeps what it has, and works again once
// there is room, wherever in the write the room ends.
func TestDiskFull(t *testing.T) {
	for room := int64(0); room < 400; room++ {
		dir := t.TempDir()
		f := &faults{room: -1, write: syscall.ENOSPC}
		s, err := tryOpen(dir, Options{OpenFile: f.open})
		if err != nil {
			t.Fatal(err)
		}
		l := create(t, s, "t")
		all := fill(t, l, 1, 3, 50)
		f.room = room
		big := []Batch{{Payload: make([]byte, 100), Records: 2}, {Payload: make([]byte, 300), Records: 1}}
		if _, err := l.Append(big); !errors.Is(err, ErrFull) || errors.Is(err, ErrFailed) {
			t.Fatalf("room %d: %v", room, err)
		}
		same(t, drain(t, l, 0, 1<<20), all)
		f.room = -1
		all = append(all, fill(t, l, 2, 3, 50)...)
		same(t, drain(t, l, 0, 1<<20), all)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = tryOpen(dir, Options{}); err != nil {
			t.Fatal(err)
		}
		same(t, drain(t, s.Topic("t"), 0, 1<<20), all)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDiskFullWhileRolling(t *testing.T) {
	f := &faults{room: -1, write: syscall.ENOSPC}
	dir := t.TempDir()
	s := open(t, dir, Options{OpenFile: f.open, SegmentBytes: 4 << 10})
	l := create(t, s, "t")
	one := []Batch{{Payload: make([]byte, 3000), Records: 1}}
	if _, err := l.Append(one); err != nil {
		t.Fatal(err)
	}
	f.room = 10
	for range 2 {
		if _, err := l.Append(one); !errors.Is(err, ErrFull) {
			t.Fatalf("got %v", err)
		}
	}
	f.room = -1
	if base, err := l.Append(one); err != nil || base != 1 {
		t.Fatalf("with room again: %d, %v", base, err)
	}
	if n := len(segmentFiles(t, dir)); n != 2 {
		t.Errorf("%d segments", n)
	}
}

// After an error that leaves the disk's contents unknown nothing is
// acknowledged any more.
func TestLogFailsForGood(t *testing.T) {
	for _, tc := range []struct {
		name string
		f    faults
	}{
		{"cannot take a write back", faults{room: 5, write: syscall.EIO, truncate: syscall.EIO}},
		{"fdatasync", faults{room: -1, sync: syscall.EIO}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := faults{room: -1}
			dir := t.TempDir()
			s := open(t, dir, Options{OpenFile: f.open, Durability: Fsync})
			l := create(t, s, "t")
			all := fill(t, l, 1, 3, 50)
			f = tc.f
			for range 2 {
				if _, err := l.Append([]Batch{{Payload: []byte("lost"), Records: 1}}); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
					t.Fatalf("got %v", err)
				}
				f = faults{room: -1}
			}
			same(t, drain(t, l, 0, 1<<20), all)
		})
	}
}
