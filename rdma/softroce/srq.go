package softroce

import (
	"fmt"
	"slices"

	"github.com/millrace/millrace/rdma"
)

// sharedQueue is a shared receive queue: the ring holds the receives head … tail-1.
type sharedQueue struct {
	pd         *domain
	ring       []recvWQE
	depth      uint32
	head, tail uint32 // free running
	held       uint32 // taken by queue pairs whose message is under way; they count as posted
	limit      uint32 // 0: nobody waits for it
	qps        int
	closed     bool
}

var _ rdma.SRQ = (*sharedQueue)(nil)

// CreateSRQ implements rdma.PD.
func (p *domain) CreateSRQ(cfg rdma.SRQConfig) (rdma.SRQ, error) {
	if p.closed {
		return nil, ErrClosed
	}
	if cfg.WRs < 1 || cfg.WRs > MaxSRQWR {
		return nil, fmt.Errorf("softroce: shared receive queue of %d requests; give 1 to %d", cfg.WRs, MaxSRQWR)
	}
	p.uses++
	return &sharedQueue{pd: p, ring: make([]recvWQE, ringSize(cfg.WRs)), depth: uint32(cfg.WRs)}, nil
}

// PostRecv implements rdma.SRQ. Besides the errors of the interface it refuses
// buffers outside registered memory.
func (s *sharedQueue) PostRecv(wrs []rdma.RecvWR) (n int, err error) {
	if s.closed || s.pd.closed {
		return 0, ErrClosed
	}
	for n = range wrs {
		if s.tail-s.head+s.held == s.depth {
			return n, rdma.ErrQueueFull
		}
		if err := s.pd.receive(&wrs[n], &s.ring[int(s.tail)&(len(s.ring)-1)]); err != nil {
			return n, err
		}
		s.tail++
	}
	return len(wrs), nil
}

// SetLimit implements rdma.SRQ.
func (s *sharedQueue) SetLimit(limit int) error {
	if s.closed || s.pd.closed {
		return ErrClosed
	}
	if limit < 0 || limit > int(s.depth) {
		return fmt.Errorf("softroce: limit %d of a shared receive queue of %d requests", limit, s.depth)
	}
	s.limit = uint32(limit)
	return nil
}

// first is the receive that take would move; nil if there is none.
func (s *sharedQueue) first() *recvWQE {
	if s.head == s.tail {
		return nil
	}
	return &s.ring[int(s.head)&(len(s.ring)-1)]
}

// take moves the first receive to e, if there is one.
func (s *sharedQueue) take(e *recvWQE) bool {
	if s.head == s.tail {
		return false
	}
	from := &s.ring[int(s.head)&(len(s.ring)-1)]
	*e, *from = *from, recvWQE{}
	s.head++
	s.held++
	if s.tail-s.head < s.limit {
		s.limit = 0
		s.pd.dev.event(rdma.Event{Kind: rdma.EventSRQLimit, SRQ: s})
	}
	return true
}

// giveBack makes e, which was taken and not filled, the first receive again.
func (s *sharedQueue) giveBack(e *recvWQE) {
	s.head--
	s.held--
	s.ring[int(s.head)&(len(s.ring)-1)] = *e
}

// Close implements rdma.SRQ.
func (s *sharedQueue) Close() error {
	if s.closed {
		return nil
	}
	if s.qps > 0 {
		return fmt.Errorf("softroce: the shared receive queue still serves %d queue pairs; close them first", s.qps)
	}
	s.closed, s.ring = true, nil
	s.pd.uses--
	d := s.pd.dev
	d.events = slices.DeleteFunc(d.events, func(e rdma.Event) bool { return e.SRQ == rdma.SRQ(s) })
	return nil
}

// event queues e for PollEvents. The queue is bounded: a queue pair causes three at
// most, a shared receive queue and each state of the port have one waiting, and
// closing takes them out.
func (d *Device) event(e rdma.Event) {
	if e.QPN != 0 || !slices.Contains(d.events, e) {
		d.events = append(d.events, e)
	}
}

// PollEvents implements rdma.Device. Events come from Progress, so whoever polls
// after it misses none.
func (d *Device) PollEvents(events []rdma.Event) int {
	if len(d.events) == 0 {
		return 0
	}
	n := copy(events, d.events)
	d.events = slices.Delete(d.events, 0, n)
	return n
}
