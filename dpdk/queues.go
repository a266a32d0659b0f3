package dpdk

import (
	"fmt"
	"math"
	"net/netip"
	"sync/atomic"

	"github.com/millrace/millrace/rdma/softroce"
)

// A device with several queues is several Ports, one for each loop. Each loop's Link
// has a UDP port of its own; the device, which knows nothing of that, spreads what it
// receives by some hash. So a link hands frames for another link of the device over
// to it: one copy into a ring that only these two use. No link waits for another.

// handRing is how many frames may wait between two links.
const handRing = 64

// NewLinks makes a Link of each port of one device, its queues. Link i has the UDP
// port of cfg.Local plus i. Each link has an owner of its own. The ports belong to
// the links from then on, unless it fails.
func NewLinks(ports []Port, cfg LinkConfig) ([]*Link, error) {
	if len(ports) == 0 || int(cfg.Local.Port())+len(ports)-1 > math.MaxUint16 || cfg.PointToPoint {
		return nil, fmt.Errorf("dpdk: %d queues from UDP port %d on: want at least one, and ports up to %d; a point-to-point port has one queue", len(ports), cfg.Local.Port(), math.MaxUint16)
	}
	hood, err := newNeighbours(cfg.Neighbours)
	if err != nil {
		return nil, err
	}
	links := make([]*Link, len(ports))
	for i, p := range ports {
		own := cfg
		own.Local = netip.AddrPortFrom(cfg.Local.Addr(), cfg.Local.Port()+uint16(i))
		if links[i], err = newLink(p, own, hood); err != nil {
			for _, l := range links[:i] {
				if l.kernel != nil {
					_ = l.kernel.close()
				}
			}
			return nil, err
		}
	}
	if len(ports) > 1 {
		set := newQueueSet(links)
		for i, l := range links {
			l.set, l.index = set, i
		}
	}
	return links, nil
}

type queueSet struct {
	base  uint16
	rings [][]handover // by receiver, by giver
	stats []queueStats // by giver
}

type queueStats struct {
	passed, overrun uint64
	_               [48]byte // each has an owner of its own
}

func newQueueSet(links []*Link) *queueSet {
	s := &queueSet{base: links[0].cfg.Local.Port(), rings: make([][]handover, len(links)), stats: make([]queueStats, len(links))}
	for to, l := range links {
		s.rings[to] = make([]handover, len(links))
		for from := range s.rings[to] {
			if from != to {
				s.rings[to][from].init(l.port.Info().MTU + 14)
			}
		}
	}
	return s
}

// pass copies a frame to the link that has its UDP port. l has parsed it and found
// that all but the port is right.
func (s *queueSet) pass(l *Link, frame []byte) bool {
	var p parsed
	l.parse.parse(frame, &p)
	to := int(p.port) - int(s.base)
	if to < 0 || to >= len(s.rings) {
		return false
	}
	if s.rings[to][l.index].put(frame) {
		s.stats[l.index].passed++
	} else {
		s.stats[l.index].overrun++
	}
	return true
}

// take receives what other links handed over. The frames stay until release.
func (s *queueSet) take(l *Link, frames []softroce.Frame) (k int) {
	for from := range s.rings[l.index] {
		r := &s.rings[l.index][from]
		if r.slots == nil {
			continue
		}
		for k < len(frames) {
			frame := r.next()
			if frame == nil {
				break
			}
			// Every link of a device accepts the same but for the port.
			if why := l.accept(frame, &frames[k]); why == accepted {
				k++
			} else {
				l.counts.dropped[why]++
			}
		}
	}
	return k
}

func (s *queueSet) release(l *Link) {
	for from := range s.rings[l.index] {
		s.rings[l.index][from].release()
	}
}

// handover is a ring of frames with one giver and one taker. The giver stores head
// after it wrote a slot, the taker tail after it read one: sync/atomic orders both.
type handover struct {
	slots [][]byte // each as long as its frame; room by capacity
	head  atomic.Uint32
	_     [60]byte
	tail  atomic.Uint32
	taken uint32 // the taker's: slots before it were looked at
	_     [56]byte
}

func (r *handover) init(frameBytes int) {
	mem := make([]byte, handRing*frameBytes)
	r.slots = make([][]byte, handRing)
	for i := range r.slots {
		r.slots[i] = mem[i*frameBytes : i*frameBytes : (i+1)*frameBytes]
	}
}

func (r *handover) put(frame []byte) bool {
	h := r.head.Load()
	if h-r.tail.Load() == handRing {
		return false
	}
	slot := &r.slots[h%handRing]
	if len(frame) > cap(*slot) {
		return false
	}
	*slot = append((*slot)[:0], frame...)
	r.head.Store(h + 1)
	return true
}

func (r *handover) next() []byte {
	if r.taken == r.head.Load() {
		return nil
	}
	frame := r.slots[r.taken%handRing]
	r.taken++
	return frame
}

func (r *handover) release() {
	if r.tail.Load() != r.taken {
		r.tail.Store(r.taken)
	}
}
