//go:build verbs && cgo

package verbs

// #include "shim.h"
import "C"

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

const (
	// asyncEvery is how often a device that is busy looks for asynchronous events: a
	// system call. One that sleeps is woken by them.
	asyncEvery = 10_000_000 // ns
	// maxEvents bounds the events that nobody has polled, besides one for each queue
	// pair in error; the kernel keeps the rest.
	maxEvents = 256
)

// Progress implements rdma.Device: hardware and kernel need no driving. It reads
// the asynchronous events; those that nobody has polled are its work, for what has been
// read wakes nobody any more.
func (d *device) Progress(now int64) (int, int64) {
	if d.lookAsync || now-d.asyncAt >= asyncEvery {
		d.lookAsync, d.asyncAt = false, now
		d.readEvents()
	}
	return len(d.events), 0
}

// PollEvents implements rdma.Device.
func (d *device) PollEvents(events []rdma.Event) int {
	n := copy(events, d.events)
	d.events = slices.Delete(d.events, 0, n)
	return n
}

func (d *device) readEvents() {
	if d.closed {
		return
	}
	for range 64 { // a storm of events shall not hold the loop
		if len(d.events) >= maxEvents {
			return
		}
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

// event queues what rdma.Event can say, and logs what concerns the whole device.
func (d *device) event(e *C.struct_mv_event) {
	text := C.GoString(e.text)
	out := rdma.Event{QPN: uint32(e.num)}
	q := d.byNum[uint32(e.num)]
	switch e.kind {
	case C.MV_EVENT_QP_FATAL, C.MV_EVENT_COMM_EST, C.MV_EVENT_LAST_WQE:
		if q == nil { // closed meanwhile
			return
		}
		out.Kind = rdma.EventCommEstablished
		switch e.kind {
		case C.MV_EVENT_LAST_WQE:
			q.lastTaken()
			return
		case C.MV_EVENT_QP_FATAL:
			d.log.Error("RDMA queue pair failed", "device", d.attr.Name, "qpn", q.num, "event", text)
			out.Kind = rdma.EventQPFatal
			q.fail()
		}
	case C.MV_EVENT_SRQ_LIMIT:
		u := d.userOf(uint64(e.srq))
		if u.srq == nil {
			return
		}
		out = rdma.Event{Kind: rdma.EventSRQLimit, SRQ: u.srq}
	case C.MV_EVENT_DEVICE_FATAL:
		d.log.Error("RDMA device failed; its connections end", "device", d.attr.Name, "event", text)
		out = rdma.Event{Kind: rdma.EventDeviceFatal}
		for _, q := range d.byNum {
			q.fail()
		}
	case C.MV_EVENT_PORT_DOWN:
		d.log.Error("RDMA port went down", "device", d.attr.Name, "port", uint32(e.num), "event", text)
		out = rdma.Event{Kind: rdma.EventPortDown}
	case C.MV_EVENT_PORT_UP:
		d.log.Info("RDMA port is up", "device", d.attr.Name, "port", uint32(e.num), "event", text)
		out = rdma.Event{Kind: rdma.EventPortUp}
	default:
		d.log.Info("RDMA device event", "device", d.attr.Name, "event", text)
		return
	}
	d.events = append(d.events, out)
}

// dropEvents takes back what was not polled and concerns a closed object.
func (d *device) dropEvents(closed func(rdma.Event) bool) {
	d.events = slices.DeleteFunc(d.events, closed)
}
