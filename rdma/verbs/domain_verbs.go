//go:build verbs && cgo

package verbs

// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
)

// domain is a protection domain.
type domain struct {
	dev  *device
	c    *C.struct_ibv_pd
	mrs  []*region
	uses int // queue pairs and shared receive queues
}

var _ rdma.PD = (*domain)(nil)

// region is a registered arena.
type region struct {
	mr   *rdma.MR
	c    *C.struct_ibv_mr
	refs int // registrations; 0: deregistered
}

// AllocPD implements rdma.Device.
func (d *device) AllocPD() (rdma.PD, error) {
	if d.closed {
		return nil, ErrClosed
	}
	p := &domain{dev: d}
	if rc := C.mv_pd_alloc(d.c, &p.c); rc != 0 {
		return nil, &Error{Op: "make a protection domain of", Device: d.attr.Name, Err: fmt.Errorf("ibv_alloc_pd: %w", unix.Errno(rc))}
	}
	d.pds = append(d.pds, p)
	return p, nil
}

// RegisterMR implements rdma.PD. Remote addresses are addresses of this process.
func (p *domain) RegisterMR(a *hugepages.Arena, access rdma.Access) (*rdma.MR, error) {
	d := p.dev
	if p.c == nil {
		return nil, ErrClosed
	}
	if a == nil || len(a.Bytes()) == 0 {
		return nil, errors.New("rdma/verbs: RegisterMR needs an arena that is open")
	}
	if access&rdma.RemoteAtomic != 0 && !d.attr.Caps.Has(rdma.CapAtomic) {
		return nil, &rdma.NotSupportedError{Device: d.attr.Name, Feature: "memory for atomics"}
	}
	for _, r := range p.mrs {
		if r.mr.Arena == a && r.mr.Access == access {
			r.refs++
			return r.mr, nil
		}
	}
	mem := a.Bytes()
	r := &region{refs: 1}
	var lkey, rkey C.uint32_t
	if rc := C.mv_reg(p.c, address(mem), C.uint64_t(len(mem)), accessFlags(access), &r.c, &lkey, &rkey); rc != 0 {
		return nil, ownMemlock().explain("register memory with", d.attr.Name, uint64(len(mem)), fmt.Errorf("ibv_reg_mr: %w", unix.Errno(rc)))
	}
	r.mr = rdma.NewMR(rdma.MR{
		Arena: a, Access: access, LKey: uint32(lkey), RKey: uint32(rkey), Base: uint64(address(mem)),
	}, func() error { return p.deregister(r) })
	p.mrs = append(p.mrs, r)
	return r.mr, nil
}

func accessFlags(a rdma.Access) (f C.uint32_t) {
	for _, x := range [...]struct {
		access rdma.Access
		flag   C.uint32_t
	}{{rdma.RemoteRead, C.MV_REMOTE_READ}, {rdma.RemoteWrite, C.MV_REMOTE_WRITE}, {rdma.RemoteAtomic, C.MV_REMOTE_ATOMIC}} {
		if a&x.access != 0 {
			f |= x.flag
		}
	}
	return f
}

// deregister is the region's MR.Close.
func (p *domain) deregister(r *region) error {
	if r.refs == 0 {
		return nil
	}
	if r.refs > 1 {
		r.refs--
		return nil
	}
	if rc := C.mv_dereg(r.c); rc != 0 {
		return &Error{Op: "deregister memory of", Device: p.dev.attr.Name, Err: fmt.Errorf("ibv_dereg_mr: %w", unix.Errno(rc))}
	}
	r.refs = 0
	p.mrs = slices.DeleteFunc(p.mrs, func(o *region) bool { return o == r })
	return nil
}

// region is the registered memory that b lies in; nil if none.
func (p *domain) region(b []byte) *region {
	for _, r := range p.mrs {
		if r.mr.Arena.Contains(b) {
			return r
		}
	}
	return nil
}

// Close implements rdma.PD.
func (p *domain) Close() error {
	if p.c == nil {
		return nil
	}
	if p.uses > 0 || len(p.mrs) > 0 {
		return fmt.Errorf("rdma/verbs: the protection domain still has %d queue pairs and shared receive queues, and %d memory regions; close them first", p.uses, len(p.mrs))
	}
	if rc := C.mv_pd_dealloc(p.c); rc != 0 {
		return &Error{Op: "close a protection domain of", Device: p.dev.attr.Name, Err: fmt.Errorf("ibv_dealloc_pd: %w", unix.Errno(rc))}
	}
	p.c = nil
	p.dev.pds = slices.DeleteFunc(p.dev.pds, func(o *domain) bool { return o == p })
	return nil
}

// drop closes the domain with its regions: the device closes.
func (p *domain) drop() (err error) {
	for _, r := range slices.Clone(p.mrs) {
		r.refs = 1
		err = errors.Join(err, p.deregister(r))
	}
	return errors.Join(err, p.Close())
}
