//go:build verbs && cgo

package verbs

// #cgo LDFLAGS: -ldl
// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/internal/ccall"
	"github.com/millrace/millrace/rdma"
)

// Available says whether this binary can use libibverbs.
const Available = true

// load loads the library once. libibverbs asks that forks be made safe before it
// is used in any other way; the shim does both.
var load = sync.OnceValue(func() error {
	if why := C.mv_load(); why != nil {
		return &Error{
			Op: "load libibverbs", Err: notSupported(C.GoString(why)),
			Fix: "install libibverbs1 and ibverbs-providers (Debian's names; libibverbs on Fedora)",
		}
	}
	if C.mv_fork() == 0 {
		return &Error{
			Op: "load libibverbs", Err: notSupported("children of this process could take memory away from the device (ibv_fork_init failed)"),
			Fix: "use Linux 5.12 or newer, or one with madvise(2)",
		}
	}
	return nil
})

// device is an opened port of an RDMA device.
type device struct {
	c      *C.struct_mv_device
	attr   rdma.DeviceAttr
	maxCQE int
	port   Port
	log    *slog.Logger
	epfd   int
	closed bool

	// C memory: the lists of the next post, the completions of the last poll.
	sends []C.struct_mv_send
	recvs []C.struct_mv_recv
	wcs   []C.struct_mv_wc

	pds    []*domain
	cqs    []*completionQueue
	users  []user                // by slot
	frees  []uint16              // free slots
	byNum  map[uint32]*queuePair // open queue pairs
	inline []byte                // C memory: inline data from outside registered memory

	events    []rdma.Event // not yet polled
	lookAsync bool         // for events, at the next Progress
	asyncAt   int64        // last looked
}

var _ rdma.Device = (*device)(nil)

// The data path in C.
var (
	cqPoll   = unsafe.Pointer(C.mv_cq_poll)
	cqArm    = unsafe.Pointer(C.mv_cq_arm)
	postSend = unsafe.Pointer(C.mv_post_send)
	postRecv = unsafe.Pointer(C.mv_post_recv)
	postSRQ  = unsafe.Pointer(C.mv_post_srq)
)

// call runs a function of the data path on queue, which is C memory, for n entries.
func (d *device) call(fn, queue unsafe.Pointer, n int) int {
	d.c.queue, d.c.n = queue, C.uint32_t(n)
	return int(ccall.Call(fn, unsafe.Pointer(d.c)))
}

// user is who posts the requests whose IDs name a slot: one of both, or nobody.
type user struct {
	qp  *queuePair
	srq *sharedQueue
	gen uint16 // how often the slot was used
}

// A work request's ID on the wire of the verbs: 1 bit kind, 15 bits generation and
// 16 bits slot of the user, 32 bits position in its queue.
const (
	maxUsers = 1 << 16
	recvBit  = 1 << 63
	genMask  = 1<<15 - 1
	genShift = 48
)

// takeSlot finds a place for a user. Slots are used in turn, so that a generation
// comes again only after 2^15 users of the same slot.
func (d *device) takeSlot(u user) (slot uint16, tag uint64, err error) {
	if len(d.frees) > 0 {
		slot = d.frees[0]
		d.frees = d.frees[1:]
		u.gen = (d.users[slot].gen + 1) & genMask
		d.users[slot] = u
	} else {
		if len(d.users) == maxUsers {
			return 0, 0, fmt.Errorf("rdma/verbs: %s has its %d queue pairs and shared receive queues", d.attr.Name, maxUsers)
		}
		d.users = append(d.users, u)
		slot = uint16(len(d.users) - 1)
	}
	return slot, uint64(u.gen)<<genShift | uint64(slot)<<32, nil
}

func (d *device) freeSlot(slot uint16) {
	d.users[slot] = user{gen: d.users[slot].gen}
	d.frees = append(d.frees, slot)
}

// nobody is the user of a slot that was given up.
var nobody user

// userOf finds who posted the request with that ID; neither: it is closed.
func (d *device) userOf(id uint64) *user {
	if slot := int(uint16(id >> 32)); slot < len(d.users) {
		if u := &d.users[slot]; u.gen == uint16(id>>genShift)&genMask {
			return u
		}
	}
	return &nobody
}

func open(port *Port, gid GID, o Options) (rdma.Device, error) {
	if gid.Index > 255 {
		return nil, &Error{Op: "open", Device: port.Name(), Err: fmt.Errorf("GID %v is entry %d; the verbs take 0 to 255", gid.Addr, gid.Index)}
	}
	name := C.CString(port.Device)
	defer C.free(unsafe.Pointer(name))
	d := &device{port: *port, log: o.Logger, epfd: -1, byNum: map[uint32]*queuePair{}}
	var step *C.char
	if rc := C.mv_open(name, C.uint8_t(port.Num), C.uint8_t(gid.Index), &d.c, &step); rc != 0 {
		err := unix.Errno(rc)
		fix := ""
		if err == unix.ENODEV {
			fix = "install ibverbs-providers: libibverbs has no driver for this device"
		}
		return nil, &Error{Op: "open", Device: port.Name(), Err: fmt.Errorf("%s: %w", C.GoString(step), err), Fix: fix}
	}
	if err := d.init(gid, o); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *device) init(gid GID, o Options) error {
	a := &d.c.attr
	refuse := func(err error, fix string) error {
		return &Error{Op: "open", Device: d.port.Name(), Err: err, Fix: fix}
	}
	// sysfs was read before; the device has the last word.
	raw := *(*[16]byte)(unsafe.Pointer(&a.gid))
	switch addr := netip.AddrFrom16(raw).Unmap(); {
	case a.active == 0:
		return refuse(ErrPortState, "ip link set "+d.port.netdev()+" up")
	case a.gid_type != 2 && a.gid_type != 3:
		return refuse(fmt.Errorf("%w: GID %d has type %d", ErrGIDType, gid.Index, a.gid_type), "try again: the table changed meanwhile")
	case addr != gid.Addr:
		return refuse(fmt.Errorf("GID %d turned from %v into %v", gid.Index, gid.Addr, addr), "try again: the table changed meanwhile")
	case a.mtu == 0:
		return refuse(errors.New("the port has no path MTU"), "set the MTU of "+d.port.netdev()+" to 1500 or more")
	}
	label, name := "rnic", o.Device
	if d.port.Soft {
		label = "soft-roce"
	}
	if name == "" {
		name = d.port.Name()
	}
	d.attr = rdma.DeviceAttr{
		Name: name, Label: label, GID: gid.Addr, UDPPort: rocePort, PathMTU: int(a.mtu),
		MaxMsg: int(a.max_msg), MaxInline: int(a.max_inline), MaxQPWR: int(a.max_qp_wr),
		Caps: rdma.CapWrite,
	}
	if a.max_rd_atomic > 0 && a.max_dest_rd_atomic > 0 {
		d.attr.Caps |= rdma.CapRead
		// A queue pair's attributes hold them in 8 bits.
		d.attr.MaxRdAtomic, d.attr.MaxDestRdAtomic = min(255, int(a.max_rd_atomic)), min(255, int(a.max_dest_rd_atomic))
		if a.atomics != 0 {
			d.attr.Caps |= rdma.CapAtomic
		}
	}
	if a.max_srq_wr > 0 {
		d.attr.Caps |= rdma.CapSRQ
		d.attr.MaxSRQWR = int(a.max_srq_wr)
	}
	d.maxCQE = int(a.max_cqe)
	d.sends, d.recvs, d.wcs = d.c.send[:], d.c.recv[:], d.c.wc[:]
	var err error
	if d.epfd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return refuse(fmt.Errorf("epoll_create1: %w", err), "")
	}
	return d.watch(int(d.c.async_fd))
}

// watch makes FD readable when fd is.
func (d *device) watch(fd int) error {
	err := unix.EpollCtl(d.epfd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	if err != nil {
		return &Error{Op: "open", Device: d.attr.Name, Err: fmt.Errorf("epoll_ctl: %w", err)}
	}
	return nil
}

// Attr implements rdma.Device.
func (d *device) Attr() rdma.DeviceAttr { return d.attr }

// FD implements rdma.Device. It is an epoll descriptor.
func (d *device) FD() int { return d.epfd }

// address of memory outside the Go heap.
func address(p []byte) C.uint64_t { return C.uint64_t(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

// stage copies data, which is at most MaxInline long, to the place of list entry i
// in C memory: the Go heap is not for C to read. Messages lie in the arena as a
// rule, so the room is made with the first that does not.
func (d *device) stage(i int, data []byte) []byte {
	if d.inline == nil {
		n := len(d.sends) * d.attr.MaxInline
		d.inline = unsafe.Slice((*byte)(C.malloc(C.size_t(n))), n) // C.malloc never returns nil (cmd/cgo)
	}
	at := d.inline[i*d.attr.MaxInline:]
	return at[:copy(at, data)]
}

// Close implements rdma.Device.
func (d *device) Close() error {
	if d.closed {
		return nil
	}
	var errs []error
	for _, u := range d.users {
		if u.qp != nil {
			errs = append(errs, u.qp.Close())
		}
	}
	for _, u := range d.users {
		if u.srq != nil {
			errs = append(errs, u.srq.Close())
		}
	}
	for _, c := range slices.Clone(d.cqs) {
		errs = append(errs, c.Close())
	}
	for _, p := range slices.Clone(d.pds) {
		errs = append(errs, p.drop())
	}
	d.closed = true
	d.sends, d.recvs, d.wcs, d.events = nil, nil, nil, nil
	if d.inline != nil {
		C.free(unsafe.Pointer(unsafe.SliceData(d.inline)))
		d.inline = nil
	}
	if rc := C.mv_close(d.c); rc != 0 {
		errs = append(errs, &Error{Op: "close", Device: d.attr.Name, Err: fmt.Errorf("ibv_close_device: %w", unix.Errno(rc))})
	}
	d.c = nil
	if d.epfd >= 0 {
		errs = append(errs, unix.Close(d.epfd))
		d.epfd = -1
	}
	return errors.Join(errs...)
}
