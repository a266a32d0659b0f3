package memif

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// maxRegionBytes bounds what a peer can make this process map.
const maxRegionBytes = 1 << 30

// region is a mapped shared memory region.
type region struct {
	mem []byte
	fd  int
}

// newRegion makes a region of at least n bytes: a memfd of 2 MiB huge pages where
// there are free ones, else of ordinary pages. It is sealed against resizing.
func newRegion(n int) (*region, error) {
	const huge = 2 << 20
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if r, err := mapNew((n+huge-1)&^(huge-1), flags|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB); err == nil {
		return r, nil
	}
	page := unix.Getpagesize()
	r, err := mapNew((n+page-1)&^(page-1), flags)
	if err != nil {
		return nil, fmt.Errorf("memif: %d bytes of shared memory: %w (free memory, or use a smaller ring)", n, err)
	}
	return r, nil
}

func mapNew(n, flags int) (*region, error) {
	fd, err := unix.MemfdCreate("millrace-memif", flags)
	if err != nil {
		return nil, err
	}
	r := &region{fd: fd}
	if err = unix.Ftruncate(fd, int64(n)); err == nil {
		// Populate: without enough huge pages this fails here and not by a signal later.
		r.mem, err = unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// mapPeer maps a region that the peer made and takes over fd.
func mapPeer(fd int, size uint64) (*region, error) {
	r := &region{fd: fd}
	fail := func(err error) (*region, error) {
		r.close()
		return nil, err
	}
	if size == 0 || size > maxRegionBytes {
		return fail(fmt.Errorf("%w: region of %d bytes, allowed are 1 to %d", ErrProtocol, size, maxRegionBytes))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(fmt.Errorf("memif: fstat of the peer's region: %w", err))
	}
	if st.Size < int64(size) {
		return fail(fmt.Errorf("%w: region announced with %d bytes, its file has %d", ErrProtocol, size, st.Size))
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return fail(fmt.Errorf("%w: the peer's region is not sealed against shrinking (F_SEAL_SHRINK)", ErrProtocol))
	}
	if r.mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fail(fmt.Errorf("memif: mapping %d bytes of the peer's region: %w", size, err))
	}
	return r, nil
}

func (r *region) close() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
		r.mem = nil
	}
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
		r.fd = -1
	}
}
