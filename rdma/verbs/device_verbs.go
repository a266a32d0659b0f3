//go:build verbs && cgo

package verbs

// #cgo LDFLAGS: -ldl
// #include <stdlib.h>
// #include "shim.h"
// #cgo nocallback mv_post_send
// #cgo noescape mv_post_send
// #cgo nocallback mv_post_recv
// #cgo noescape mv_post_recv
// #cgo nocallback mv_cq_poll
// #cgo noescape mv_cq_poll
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

	"github.com/millrace/millrace/hugepages"
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

// asyncEvery is how often a device that is busy looks for asynchronous events;
// one that sleeps is woken by them.
const asyncEvery = 10_000_000 // ns

// device is an opened port of an RDMA device.
type device struct {
	c      *C.struct_mv_device
	attr   rdma.DeviceAttr
	maxCQE int
	port   Port
	log    *slog.Logger
	epfd   int
	closed bool

	// C memory, as long as the longest work queue.
	sends []C.struct_mv_send
	recvs []C.struct_mv_recv
	wcs   []C.struct_mv_wc

	pd     domain
	mrs    []*region
	cqs    []*completionQueue
	qps    []*queuePair // by slot; nil: free
	frees  []uint16     // free slots
	gens   []uint16     // how often a slot was used
	inline []byte       // C memory: inline data from outside registered memory

	armed   bool // events must be looked for at the next Progress
	asyncAt int64
}

var _ rdma.Device = (*device)(nil)

// region is a registered arena.
type region struct {
	mr *rdma.MR
	c  *C.struct_ibv_mr
}

// A work request's ID on the wire of the verbs: 1 bit kind, 15 bits generation and
// 16 bits slot of the queue pair, 32 bits position in its queue.
const (
	maxQPs   = 1 << 16
	recvBit  = 1 << 63
	genMask  = 1<<15 - 1
	genShift = 48
)

func open(port *Port, gid GID, o Options) (rdma.Device, error) {
	if gid.Index > 255 {
		return nil, &Error{Op: "open", Device: port.Name(), Err: fmt.Errorf("GID %v is entry %d; the verbs take 0 to 255", gid.Addr, gid.Index)}
	}
	name := C.CString(port.Device)
	defer C.free(unsafe.Pointer(name))
	d := &device{port: *port, log: o.Logger, epfd: -1}
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
	}
	d.maxCQE = int(a.max_cqe)
	d.wcs = d.c.wc[:]
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

// domain is the device's one protection domain.
type domain struct{ dev *device }

// AllocPD implements rdma.Device.
func (d *device) AllocPD() (rdma.PD, error) {
	if d.closed {
		return nil, ErrClosed
	}
	d.pd.dev = d
	return &d.pd, nil
}

// PollEvents implements rdma.Device: what the kernel reports goes to the log.
func (d *device) PollEvents([]rdma.Event) int { return 0 }

// CreateSRQ implements rdma.PD.
func (p *domain) CreateSRQ(rdma.SRQConfig) (rdma.SRQ, error) {
	return nil, &rdma.NotSupportedError{Device: p.dev.attr.Name, Feature: "a shared receive queue"}
}

// Close implements rdma.PD. The domain lives as long as the device.
func (p *domain) Close() error { return nil }

// RegisterMR implements rdma.PD. An arena that is registered already keeps its
// region.
func (p *domain) RegisterMR(a *hugepages.Arena, access rdma.Access) (*rdma.MR, error) {
	d := p.dev
	if d.closed {
		return nil, ErrClosed
	}
	if access != 0 {
		return nil, &rdma.NotSupportedError{Device: d.attr.Name, Feature: "remote access to memory"}
	}
	if a == nil || len(a.Bytes()) == 0 {
		return nil, errors.New("rdma/verbs: RegisterMR needs an arena that is open")
	}
	for _, r := range d.mrs {
		if r.mr.Arena == a {
			return r.mr, nil
		}
	}
	mem := a.Bytes()
	r := &region{}
	var lkey, rkey C.uint32_t
	if rc := C.mv_reg(d.c, address(mem), C.uint64_t(len(mem)), &r.c, &lkey, &rkey); rc != 0 {
		return nil, ownMemlock().explain("register memory with", d.attr.Name, uint64(len(mem)), fmt.Errorf("ibv_reg_mr: %w", unix.Errno(rc)))
	}
	r.mr = rdma.NewMR(rdma.MR{Arena: a, LKey: uint32(lkey), RKey: uint32(rkey), Base: uint64(address(mem))}, func() error { return d.deregister(r) })
	d.mrs = append(d.mrs, r)
	return r.mr, nil
}

// deregister is the region's MR.Close.
func (d *device) deregister(r *region) error {
	i := slices.Index(d.mrs, r)
	if i < 0 {
		return nil
	}
	if rc := C.mv_dereg(r.c); rc != 0 {
		return &Error{Op: "deregister memory of", Device: d.attr.Name, Err: fmt.Errorf("ibv_dereg_mr: %w", unix.Errno(rc))}
	}
	d.mrs = slices.Delete(d.mrs, i, i+1)
	return nil
}

// region is the registered memory that p lies in; nil if none.
func (d *device) region(p []byte) *region {
	for _, r := range d.mrs {
		if r.mr.Arena.Contains(p) {
			return r
		}
	}
	return nil
}

// address of memory outside the Go heap.
func address(p []byte) C.uint64_t { return C.uint64_t(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

// makeRoom makes the lists long enough for a queue of n requests.
func (d *device) makeRoom(n int) error {
	if n <= len(d.sends) {
		return nil
	}
	if rc := C.mv_depth(d.c, C.uint32_t(n)); rc != 0 {
		return unix.Errno(rc)
	}
	d.sends = unsafe.Slice(d.c.send, n)
	d.recvs = unsafe.Slice(d.c.recv, n)
	if d.inline != nil {
		C.free(unsafe.Pointer(unsafe.SliceData(d.inline)))
		d.inline = nil
	}
	return nil
}

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

// Progress implements rdma.Device: hardware and kernel need no driving. It reads
// the asynchronous events.
func (d *device) Progress(now int64) (int, int64) {
	if d.armed || now-d.asyncAt >= asyncEvery {
		d.armed, d.asyncAt = false, now
		d.readEvents()
	}
	return 0, 0
}

func (d *device) readEvents() {
	if d.closed {
		return
	}
	for range 64 { // a storm of events shall not hold the loop
		var e C.struct_mv_event
		rc := C.mv_event(d.c, &e)
		if rc == 0 {
			return
		}
		if rc < 0 {
			d.log.Error("reading events of an RDMA device failed", "device", d.attr.Name, "err", unix.Errno(-rc))
			return
		}
		d.event(&e)
	}
}

func (d *device) event(e *C.struct_mv_event) {
	text := C.GoString(e.text)
	switch e.kind {
	case C.MV_EVENT_QP_FATAL:
		d.log.Error("RDMA queue pair failed", "device", d.attr.Name, "qpn", uint32(e.num), "event", text)
		for _, q := range d.qps {
			if q != nil && q.num == uint32(e.num) {
				q.fail()
			}
		}
	case C.MV_EVENT_DEVICE_FATAL, C.MV_EVENT_CQ:
		// The completions of some or all queue pairs are lost.
		d.log.Error("RDMA device failed; its connections end", "device", d.attr.Name, "event", text)
		for _, q := range d.qps {
			if q != nil {
				q.fail()
			}
		}
	case C.MV_EVENT_PORT_DOWN:
		d.log.Error("RDMA port went down", "device", d.attr.Name, "port", uint32(e.num), "event", text)
	case C.MV_EVENT_PORT_UP:
		d.log.Info("RDMA port is up", "device", d.attr.Name, "port", uint32(e.num), "event", text)
	default:
		d.log.Info("RDMA device event", "device", d.attr.Name, "event", text)
	}
}

// Close implements rdma.Device.
func (d *device) Close() error {
	if d.closed {
		return nil
	}
	var errs []error
	for _, q := range d.qps {
		if q != nil {
			errs = append(errs, q.Close())
		}
	}
	for _, c := range slices.Clone(d.cqs) {
		errs = append(errs, c.Close())
	}
	for _, r := range slices.Clone(d.mrs) {
		errs = append(errs, d.deregister(r))
	}
	d.closed = true
	d.mrs, d.sends, d.recvs, d.wcs = nil, nil, nil, nil
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
