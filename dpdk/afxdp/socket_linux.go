package afxdp

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rings are a socket's.
type rings struct{ fill, completion, rx, tx ring }

// registerMemory makes mem, frames of frameBytes each, the socket's.
func registerMemory(fd int, mem []byte, frameBytes int) error {
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))), Len: uint64(len(mem)), Size: uint32(frameBytes)}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG, uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
	switch errno {
	case 0:
		return nil
	case unix.ENOBUFS, unix.EPERM, unix.ENOMEM:
		return fmt.Errorf("%d bytes cannot be locked in memory: %w (ulimit -l, or CAP_IPC_LOCK)", len(mem), errno)
	}
	return fmt.Errorf("registering %d bytes: %w", len(mem), errno)
}

// mapRings makes and maps the four rings.
func mapRings(fd, size int) (r rings, err error) {
	for _, option := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING, unix.XDP_TX_RING} {
		if err = unix.SetsockoptInt(fd, unix.SOL_XDP, option, size); err != nil {
			return r, fmt.Errorf("a ring of %d entries: %w", size, err)
		}
	}
	var o unix.XDPMmapOffsets
	n := uint32(unsafe.Sizeof(o))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS, uintptr(unsafe.Pointer(&o)), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return r, fmt.Errorf("ring offsets: %w", errno)
	}
	if uintptr(n) != unsafe.Sizeof(o) {
		return r, errors.New("this kernel's rings have no flags: Linux 5.4 or later is needed")
	}
	for _, m := range []struct {
		r     *ring
		o     unix.XDPRingOffset
		entry uint64
		at    int64
	}{
		{&r.fill, o.Fr, 8, unix.XDP_UMEM_PGOFF_FILL_RING},
		{&r.completion, o.Cr, 8, unix.XDP_UMEM_PGOFF_COMPLETION_RING},
		{&r.rx, o.Rx, uint64(unsafe.Sizeof(unix.XDPDesc{})), unix.XDP_PGOFF_RX_RING},
		{&r.tx, o.Tx, uint64(unsafe.Sizeof(unix.XDPDesc{})), unix.XDP_PGOFF_TX_RING},
	} {
		mem, err := unix.Mmap(fd, m.at, int(m.o.Desc+m.entry*uint64(size)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			r.unmap()
			return rings{}, fmt.Errorf("mapping a ring: %w", err)
		}
		*m.r = ringOn(mem, m.o, size)
	}
	return r, nil
}

func (r *rings) unmap() {
	for _, m := range []*ring{&r.fill, &r.completion, &r.rx, &r.tx} {
		if m.mem != nil {
			_ = unix.Munmap(m.mem)
			*m = ring{}
		}
	}
}

// kickTx makes the kernel send what is in the transmit ring.
func kickTx(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return errno
}

// kickRx makes the kernel look at the fill ring.
func kickRx(fd int) {
	_, _, _ = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
}

func kernelStats(fd int) (s unix.XDPStatistics, err error) {
	n := uint32(unsafe.Sizeof(s))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_STATISTICS, uintptr(unsafe.Pointer(&s)), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return s, errno
	}
	return s, nil
}
