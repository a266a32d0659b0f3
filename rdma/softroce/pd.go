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
	uses int // queue pairs and shared receive queues

	closed bool
}

var _ rdma.PD = (*domain)(nil)

// region is a registered arena. Work requests hold on to theirs, so that memory
// is not touched after it was deregistered.
type region struct {
	mr   *rdma.MR
	pd   *domain
	refs int // registrations; 0: deregistered
}

// RegisterMR implements rdma.PD. There is no address translation to set up: the
// device remembers which memory work requests may name. Remote addresses are
// offsets in the arena, which tell a peer nothing about this process.
func (p *domain) RegisterMR(a *hugepages.Arena, access rdma.Access) (*rdma.MR, error) {
	d := p.dev
	if p.closed {
		return nil, ErrClosed
	}
	if a == nil || a.Len() == 0 {
		return nil, errors.New("softroce: RegisterMR needs an arena that is open")
	}
	for _, r := range p.mrs {
		if r.mr.Arena == a && r.mr.Access == access {
			r.refs++
			return r.mr, nil
		}
	}
	r := &region{pd: p, refs: 1}
	r.mr = rdma.NewMR(rdma.MR{Arena: a, Access: access, LKey: d.opts.random(), RKey: d.newRKey()}, func() error {
		p.deregister(r)
		return nil
	})
	p.mrs = append(p.mrs, r)
	d.rkeys[r.mr.RKey] = r
	d.stats.Regions++
	d.stats.RegionBytes += uint64(a.Len())
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
	delete(p.dev.rkeys, r.mr.RKey)
	p.dev.stats.Regions--
	p.dev.stats.RegionBytes -= uint64(r.mr.Arena.Len())
}

// newRKey is a key that nobody can guess: 32 bits of crypto/rand.
func (d *Device) newRKey() uint32 {
	for {
		if k := d.opts.random(); k != 0 && d.rkeys[k] == nil {
			return k
		}
	}
}

// region is the registered memory in which b lies; nil if none.
func (p *domain) region(b []byte) *region {
	for _, r := range p.mrs {
		if r.mr.Arena.Contains(b) {
			return r
		}
	}
	return nil
}

// receive checks a receive request and writes it to e.
func (p *domain) receive(w *rdma.RecvWR, e *recvWQE) error {
	var r *region
	if len(w.Data) > 0 {
		if r = p.region(w.Data); r == nil {
			return fmt.Errorf("softroce: the receive buffer of %d bytes is not in memory registered in this domain; register its arena", len(w.Data))
		}
	}
	e.id, e.data, e.mr = w.ID, w.Data, r
	return nil
}

// gone tells that the memory was deregistered.
func (r *region) gone() bool { return r != nil && r.refs == 0 }

// remote is the memory that a peer names, if the key is one of the pair's domain
// and both allow what is wanted; ok is false otherwise. Nothing is checked for an
// access of no bytes (IBTA vol. 1, §9.7.4.1.5, C9-88).
func (q *queuePair) remote(rkey uint32, va uint64, n uint32, want rdma.Access) (mem []byte, r *region, ok bool) {
	if n == 0 {
		return nil, nil, true
	}
	r = q.lastMR
	if r == nil || r.refs == 0 || r.mr.RKey != rkey {
		if r = q.dev.rkeys[rkey]; r == nil || r.pd != q.pd {
			return nil, nil, false
		}
		q.lastMR = r
	}
	mem = r.mr.Arena.Bytes()
	if r.mr.Access&q.access&want == 0 || va > uint64(len(mem)) || uint64(n) > uint64(len(mem))-va {
		return nil, nil, false
	}
	return mem[va:][:n:n], r, true
}

// CreateQP implements rdma.PD.
func (p *domain) CreateQP(cfg rdma.QPConfig) (rdma.QP, error) {
	if p.closed {
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
	if p.closed {
		return nil
	}
	if p.uses > 0 || len(p.mrs) > 0 {
		return fmt.Errorf("softroce: the protection domain still has %d queues and %d memory regions; close them first", p.uses, len(p.mrs))
	}
	p.closed = true
	i := slices.Index(p.dev.pds, p)
	p.dev.pds = slices.Delete(p.dev.pds, i, i+1)
	return nil
}

// drop deregisters everything: the device closes.
func (p *domain) drop() {
	for len(p.mrs) > 0 {
		p.mrs[0].refs = 1
		p.deregister(p.mrs[0])
	}
	p.closed = true
}
