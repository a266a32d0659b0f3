package seglog

import (
	"math/bits"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// gathers serves all files: most are segments that nobody appends to any more.
var gathers = sync.Pool{New: func() any { return new(gather) }}

// gather is the argument of pwritev(2), kept from one call to the next: unix.Pwritev
// allocates it anew each time. One goroutine at a time.
type gather struct{ iov []unix.Iovec }

// pwritev writes the buffers of p at byte at of fd, as far as the kernel takes them in one
// call. None may be empty; there may be maxIovecs at most.
func (g *gather) pwritev(fd int, p [][]byte, at int64) (int, error) {
	iov := g.iov[:0]
	for _, b := range p {
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		iov = append(iov, v)
	}
	g.iov = iov
	n, _, e := unix.Syscall6(unix.SYS_PWRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)),
		uintptr(at), uintptr(uint64(at)>>(bits.UintSize-1)>>1), 0)
	clear(iov)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
