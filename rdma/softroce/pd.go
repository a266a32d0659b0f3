package softroce

import (
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
)

// domain is a protection domain.
type domain struct {
	dev  *Device
	mrs  []*region
	uses int // queue pairs
}

var _ rdma.PD = (*domain)(nil)

// region is a registered arena. Work requests hold on to theirs, so that memory
// is not touched after it was deregistered.
type region struct {
	mr   *rdma.MR
	refs int // registrations; 0: deregistered
}

// RegisterMR implements rdma.PD. There is no address translation to set up: the
// device remembers which memory work requests may name. Remote addresses are
// offsets in the arena, which tell a peer nothing about this process.
func (p *domain) RegisterMR(a *hugepages.Arena, access rdma.Access) (*rdma.MR, error) {
	d := p.dev
	if d.closed {
		return nil, ErrClosed
	}
	if a == nil || len(a.Bytes()) == 0 {
		return nil, errors.New("softroce: RegisterMR needs an arena that is open")
	}
	for _, r := range p.mrs {
		if r.mr.Arena == a && r.mr.Access == access {
			r.refs++
			return r.mr, nil
		}
	}
	r := &region{refs: 1}
	r.mr = rdma.NewMR(rdma.MR{Arena: a, Access: access, LKey: d.opts.random(), RKey: d.opts.random()}, func() error {
		p.deregister(r)
		return nil
	})
	p.mrs = append(p.mrs, r)
	d.stats.Regions++
	d.stats.RegionBytes += uint64(len(a.Bytes()))
	return r.mr, nil
}

func (p *domain) deregister(r *region) {
	if r.refs == 0 {
		return
	}
	if r.refs--; r.refs > 0 {
		return
	}
	i := slices.Index(p.mrs, r)
	p.mrs = slices.Delete(p.mrs, i, i+1)
	p.dev.stats.Regions--
	p.dev.stats.RegionBytes -= uint64(len(r.mr.Arena.Bytes()))
}

// registered tells whether p lies in registered memory.
func (p *domain) registered(b []byte) bool {
	for _, r := range p.mrs {
		if r.mr.Arena.Contains(b) {
			return true
		}
	}
	return false
}

// CreateSRQ implements rdma.PD.
func (p *domain) CreateSRQ(rdma.SRQConfig) (rdma.SRQ, error) {
	return nil, &rdma.NotSupportedError{Device: p.dev.attr.Name, Feature: "shared receive queue"}
}

// CreateQP implements rdma.PD.
func (p *domain) CreateQP(cfg rdma.QPConfig) (rdma.QP, error) {
	if p.dev.closed {
		return nil, ErrClosed
	}
	q, err := p.dev.createQP(p, cfg)
	if err != nil {
		return nil, err
	}
	p.uses++
	return q, nil
}

// Close implements rdma.PD.
func (p *domain) Close() error {
	if p.uses > 0 || len(p.mrs) > 0 {
		return fmt.Errorf("softroce: the protection domain still has %d queue pairs and %d memory regions; close them first", p.uses, len(p.mrs))
	}
	if i := slices.Index(p.dev.pds, p); i >= 0 {
		p.dev.pds = slices.Delete(p.dev.pds, i, i+1)
	}
	return nil
}

// drop deregisters everything: the device closes.
func (p *domain) drop() {
	for len(p.mrs) > 0 {
		p.mrs[0].refs = 1
		p.deregister(p.mrs[0])
	}
}
