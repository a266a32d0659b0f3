//go:build verbs && cgo

package verbs

// #include "shim.h"
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

// sharedQueue is a shared receive queue. Its receives complete in any order, on the
// completion queues of several queue pairs, so each has a place of its own until then.
type sharedQueue struct {
	pd     *domain
	c      *C.struct_ibv_srq
	slot   uint16
	tag    uint64
	ids    []uint64 // by place
	vacant []uint32 // places
	qps    int
}

var _ rdma.SRQ = (*sharedQueue)(nil)

// CreateSRQ implements rdma.PD.
func (p *domain) CreateSRQ(cfg rdma.SRQConfig) (rdma.SRQ, error) {
	d := p.dev
	switch {
	case p.c == nil:
		return nil, ErrClosed
	case !d.attr.Caps.Has(rdma.CapSRQ):
		return nil, &rdma.NotSupportedError{Device: d.attr.Name, Feature: "shared receive queue"}
	case cfg.WRs < 1 || cfg.WRs > d.attr.MaxSRQWR:
		return nil, fmt.Errorf("rdma/verbs: shared receive queue of %d requests; %s has 1 to %d", cfg.WRs, d.attr.Name, d.attr.MaxSRQWR)
	}
	s := &sharedQueue{pd: p, ids: make([]uint64, cfg.WRs), vacant: make([]uint32, cfg.WRs)}
	for i := range s.vacant {
		s.vacant[i] = uint32(cfg.WRs - 1 - i)
	}
	var err error
	if s.slot, s.tag, err = d.takeSlot(user{srq: s}); err != nil {
		return nil, err
	}
	if rc := C.mv_srq_create(p.c, C.uint32_t(cfg.WRs), C.uint64_t(s.tag), &s.c); rc != 0 {
		d.freeSlot(s.slot)
		return nil, ownMemlock().explain("create a shared receive queue on", d.attr.Name, 0, fmt.Errorf("ibv_create_srq of %d requests: %w", cfg.WRs, unix.Errno(rc)))
	}
	p.uses++
	return s, nil
}

// PostRecv implements rdma.SRQ. Besides the errors of the interface it refuses
// buffers outside registered memory.
func (s *sharedQueue) PostRecv(wrs []rdma.RecvWR) (int, error) {
	if s.c == nil {
		return 0, ErrClosed
	}
	d := s.pd.dev
	for posted := 0; posted < len(wrs); {
		part := wrs[posted:min(len(wrs), posted+listLen)]
		n, refused := len(part), error(nil)
		if room := len(s.vacant); n > room {
			n, refused = room, rdma.ErrQueueFull
		}
		for i := range n {
			place := s.vacant[len(s.vacant)-1-i]
			if err := s.pd.fillRecv(i, &part[i], recvBit|s.tag|uint64(place)); err != nil {
				n, refused = i, err
				break
			}
			s.ids[place] = part[i].ID
		}
		if n == 0 {
			return posted, refused
		}
		rc := d.call(postSRQ, unsafe.Pointer(s.c), n)
		runtime.KeepAlive(wrs)
		taken := int(d.c.taken)
		s.vacant = s.vacant[:len(s.vacant)-taken]
		posted += taken
		if rc != 0 {
			refused = d.postError("ibv_post_srq_recv", unix.Errno(rc))
		}
		if refused != nil {
			return posted, refused
		}
	}
	return len(wrs), nil
}

// done gives the ID of the receive at place, which was taken.
func (s *sharedQueue) done(place uint32) uint64 {
	s.vacant = append(s.vacant, place)
	return s.ids[place]
}

// SetLimit implements rdma.SRQ.
func (s *sharedQueue) SetLimit(limit int) error {
	if s.c == nil {
		return ErrClosed
	}
	if limit < 0 || limit > len(s.ids) {
		return fmt.Errorf("rdma/verbs: limit %d of a shared receive queue of %d requests", limit, len(s.ids))
	}
	if rc := C.mv_srq_limit(s.c, C.uint32_t(limit)); rc != 0 {
		return &Error{Op: "set the limit of a shared receive queue of", Device: s.pd.dev.attr.Name, Err: fmt.Errorf("ibv_modify_srq: %w", unix.Errno(rc))}
	}
	return nil
}

// Close implements rdma.SRQ.
func (s *sharedQueue) Close() error {
	if s.c == nil {
		return nil
	}
	if s.qps > 0 {
		return fmt.Errorf("rdma/verbs: the shared receive queue still serves %d queue pairs; close them first", s.qps)
	}
	d := s.pd.dev
	if rc := C.mv_srq_destroy(s.c); rc != 0 {
		return &Error{Op: "close a shared receive queue of", Device: d.attr.Name, Err: fmt.Errorf("ibv_destroy_srq: %w", unix.Errno(rc))}
	}
	s.c = nil
	s.pd.uses--
	d.freeSlot(s.slot)
	d.dropEvents(func(e rdma.Event) bool { return e.SRQ == rdma.SRQ(s) })
	return nil
}
