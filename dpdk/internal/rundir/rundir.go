// Package rundir makes the private directories in which poll-mode ports keep their
// sockets. A directory goes with its process: what a killed process left behind is
// removed by the next one that makes a directory of the kind.
package rundir

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is a directory that only this user can enter.
type Dir struct {
	Path string
	// lock holds a flock(2) on the directory. The kernel drops it with the process,
	// whatever ends that, and unlike a process id it means the same in every
	// container that shares the file system.
	lock *os.File
}

// unlockedFor is how long a directory that is being made may be without its lock.
const unlockedFor = time.Minute

const (
	maxSocketPath = 107 // sun_path of unix(7), without its NUL
	maxRandom     = 10  // os.MkdirTemp's 32-bit number
	maxName       = 20  // of a socket, with its slash
)

// Make makes a directory in os.TempDir and removes those of its kind whose process
// is gone.
func Make(kind string) (*Dir, error) {
	prefix := "millrace-" + kind + "-"
	if tmp := os.TempDir(); len(tmp)+len("/."+prefix)+maxRandom+maxName > maxSocketPath {
		return nil, fmt.Errorf("a directory for sockets: %s is too long, the path of a socket has at most %d bytes (TMPDIR chooses another)", tmp, maxSocketPath)
	}
	sweep(prefix, 0)
	sweep("."+prefix, unlockedFor)
	hidden, err := os.MkdirTemp("", "."+prefix)
	if err != nil {
		return nil, fmt.Errorf("a directory for sockets: %w (TMPDIR chooses where)", err)
	}
	fail := func(err error) (*Dir, error) {
		_ = os.RemoveAll(hidden)
		return nil, fmt.Errorf("a directory for sockets: %w (TMPDIR chooses where)", err)
	}
	lock, err := os.Open(hidden)
	if err != nil {
		return fail(err)
	}
	if err := flock(lock); err != nil {
		_ = lock.Close()
		return fail(fmt.Errorf("locking %s: %w", hidden, err))
	}
	// Only now does it get the name by which others look for abandoned ones.
	path := filepath.Join(filepath.Dir(hidden), filepath.Base(hidden)[1:])
	if err := os.Rename(hidden, path); err != nil {
		_ = lock.Close()
		return fail(err)
	}
	return &Dir{Path: path, lock: lock}, nil
}

// Remove removes the directory and what is in it. Removing again does nothing.
func (d *Dir) Remove() error {
	if d.lock == nil {
		return nil
	}
	err := os.RemoveAll(d.Path)
	_ = d.lock.Close() // only read
	d.lock = nil
	return err
}

func flock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// sweep removes this user's directories of a prefix that nobody has locked and
// that are at least so old.
func sweep(prefix string, age time.Duration) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, path := range dirs {
		// No links: the folder above may be writable for everybody.
		f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && int(st.Uid) == os.Getuid() && st.Mode&0o777 == 0o700 &&
			time.Since(time.Unix(st.Mtim.Unix())) >= age && flock(f) == nil {
			_ = os.RemoveAll(path)
		}
		_ = f.Close()
	}
}
