package seglog

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// File is one segment file. OpenFile of Options can replace it, to inject faults.
type File interface {
	io.ReaderAt
	// Writev writes all of iov, none of which is empty, at byte at and returns how many
	// bytes were written, all of them unless err is set. One goroutine at a time.
	Writev(iov [][]byte, at int64) (int64, error)
	Truncate(size int64) error
	// Sync is fdatasync(2).
	Sync() error
	Size() (int64, error)
	Close() error
}

// OpenFile opens path for reading and writing; with create it must not exist.
func OpenFile(path string, create bool) (File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o640)
	if err != nil {
		return nil, err
	}
	return &osFile{f, int(f.Fd())}, nil
}

// allocator is what a File implements besides if blocks can be reserved for it.
type allocator interface {
	// Allocate reserves blocks for [from, to), beyond the file's end, without
	// changing its size. Truncate gives those behind the end back.
	Allocate(from, to int64) error
}

type osFile struct {
	*os.File
	fd int
}

// Allocate implements allocator.
func (f *osFile) Allocate(from, to int64) error {
	return unix.Fallocate(f.fd, unix.FALLOC_FL_KEEP_SIZE, from, to-from)
}

// maxIovecs is UIO_MAXIOV (include/uapi/linux/uio.h).
const maxIovecs = 1024

func (f *osFile) Writev(iov [][]byte, at int64) (int64, error) {
	var done int64
	skip := 0 // bytes of iov[0] already written
	for len(iov) > 0 {
		n, err := f.writeSome(iov, skip, at+done)
		if err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return done, os.NewSyscallError("pwritev", err)
		}
		if n == 0 {
			return done, fmt.Errorf("pwritev: %w", io.ErrShortWrite)
		}
		done += int64(n)
		for n += skip; len(iov) > 0 && n >= len(iov[0]); iov = iov[1:] {
			n -= len(iov[0])
		}
		skip = n
	}
	return done, nil
}

func (f *osFile) writeSome(iov [][]byte, skip int, at int64) (int, error) {
	if skip > 0 { // a short write ended inside iov[0]; finish that alone
		return unix.Pwrite(f.fd, iov[0][skip:], at)
	}
	g := gathers.Get().(*gather)
	defer gathers.Put(g)
	return g.pwritev(f.fd, iov[:min(len(iov), maxIovecs)], at)
}

func (f *osFile) Sync() error {
	for {
		if err := unix.Fdatasync(f.fd); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// syncDir makes created and removed names of dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
