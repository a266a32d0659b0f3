package hugepages

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// system is what an arena asks of the kernel; tests replace it to force each
// fall-back.
type system struct {
	mmap     func(length int, flags int) (unsafe.Pointer, error)
	munmap   func(p unsafe.Pointer, length int) error
	madvise  func(b []byte, advice int) error
	mbind    func(p unsafe.Pointer, length int, nodes []int) error
	readFile func(name string) ([]byte, error)
	pageSize int
}

func hostSystem() system {
	return system{
		mmap: func(length, flags int) (unsafe.Pointer, error) {
			return unix.MmapPtr(-1, 0, nil, uintptr(length), unix.PROT_READ|unix.PROT_WRITE,
				unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|flags)
		},
		munmap:   func(p unsafe.Pointer, length int) error { return unix.MunmapPtr(p, uintptr(length)) },
		madvise:  unix.Madvise,
		mbind:    mbind,
		readFile: os.ReadFile,
		pageSize: os.Getpagesize(),
	}
}

// populate makes the kernel back all of mem now, so that a shortage is an error
// here and not a SIGBUS at the first touch. mmap's reservation of huge pages is
// not enough: a cgroup's hugetlb limit and a cpuset's memory nodes are applied at
// the fault (Documentation/admin-guide/mm/hugetlbpage.rst).
func (s system) populate(mem []byte, pageBytes int) error {
	err := s.madvise(mem, unix.MADV_POPULATE_WRITE)
	if errors.Is(err, unix.EINVAL) { // before Linux 5.14
		return touch(mem, pageBytes)
	}
	return err
}

// touch writes to each page and turns the fault of one that the kernel cannot
// provide into an error.
func touch(mem []byte, pageBytes int) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("touching the pages: %v", r)
		}
	}()
	for i := 0; i < len(mem); i += pageBytes {
		mem[i] = 0
	}
	return nil
}
