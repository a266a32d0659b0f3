package seglog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dirLock is a flock(2) on a file, which the kernel gives up with the process,
// SIGKILL included.
type dirLock struct{ f *os.File }

func lockDir(dir string) (*dirLock, error) {
	path := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("seglog: lock file of the data directory: %w (choose a directory that this user may write)", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(f, 32))
		err = fmt.Errorf("flock %s: %w", path, err)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %s is held by process %s: stop that broker or choose another data directory",
				ErrLocked, path, strings.TrimSpace(string(owner)))
		}
		return nil, errors.Join(err, f.Close())
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if err := errors.Join(f.Truncate(0), write(f, pid)); err != nil {
		return nil, errors.Join(fmt.Errorf("seglog: %s: %w", path, err), f.Close())
	}
	return &dirLock{f}, nil
}

func write(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (l *dirLock) close() error { return l.f.Close() }
