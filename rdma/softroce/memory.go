package softroce

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/millrace/millrace/rdma/roce"
)

// Faults are what a MemoryNet does to packets. Probabilities are 0 to 1 per packet
// and independent of each other.
type Faults struct {
	Loss      float64
	Duplicate float64
	Corrupt   float64 // one bit of the packet flips
	Reorder   float64 // the packet is held back for up to ReorderBy more
	ReorderBy time.Duration
	Delay     time.Duration // every packet's way
	Queue     int           // packets that a receiver holds, the rest is lost; default 512
	Frames    int           // packets in the whole net; default 2048. Without a free one a link refuses to send
	MTU       int           // bytes after the UDP header; default: enough for the largest path MTU
}

// MemoryNet is a network in memory for tests: seeded faults on a virtual clock, so
// that a run can be repeated. Without faults it passes frames on without a copy.
// The net and all its links belong to one goroutine.
type MemoryNet struct {
	faults  Faults
	exact   bool // no faults and no delay: Tx delivers at once, in order
	rng     *rand.Rand
	now     int64
	seq     uint64
	links   map[netip.AddrPort]*memoryLink
	mem     []byte
	free    []uint32
	transit transitHeap
	lost    uint64
	cuts    map[way]struct{} // ways that are cut
}

// way is one direction between two endpoints.
type way struct{ from, to netip.AddrPort }

// NewMemoryNet makes an empty net.
func NewMemoryNet(seed uint64, f Faults) *MemoryNet {
	if f.Queue <= 0 {
		f.Queue = 512
	}
	if f.Frames <= 0 {
		f.Frames = 2048
	}
	if f.MTU <= 0 {
		f.MTU = frameBytes
	}
	n := &MemoryNet{
		faults: f, rng: rand.New(rand.NewPCG(seed, 0)), links: make(map[netip.AddrPort]*memoryLink),
		mem: make([]byte, f.Frames*f.MTU), free: make([]uint32, f.Frames), cuts: make(map[way]struct{}),
		exact: f.Loss == 0 && f.Duplicate == 0 && f.Corrupt == 0 && f.Reorder == 0 && f.Delay == 0,
	}
	for i := range n.free {
		n.free[i] = uint32(i)
	}
	return n
}

// Link adds an endpoint at addr.
func (n *MemoryNet) Link(addr netip.AddrPort) (Link, error) {
	if !addr.IsValid() || addr.Port() == 0 {
		return nil, fmt.Errorf("softroce: memory link at %v; give an address and a port", addr)
	}
	if n.links[addr] != nil {
		return nil, fmt.Errorf("softroce: the memory net has a link at %v already", addr)
	}
	l := &memoryLink{net: n, addr: addr, rx: make([]memoryPacket, ringSize(n.faults.Queue))}
	n.links[addr] = l
	return l, nil
}

// Pair adds two endpoints with documentation addresses of their own.
func (n *MemoryNet) Pair() (a, b Link) {
	for i := len(n.links); ; i++ {
		var err error
		if a, err = n.Link(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i%250)}), uint16(4791+i/250))); err == nil {
			break
		}
	}
	for i := len(n.links); ; i++ {
		var err error
		if b, err = n.Link(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i%250)}), uint16(4791+i/250))); err == nil {
			return a, b
		}
	}
}

// Partition loses every packet between a and b, both ways, from now on and until
// Heal. What is under way arrives.
func (n *MemoryNet) Partition(a, b Link) {
	n.Cut(a, b)
	n.Cut(b, a)
}

// Cut is half of a Partition: packets of from do not reach to.
func (n *MemoryNet) Cut(from, to Link) {
	n.cuts[way{from.Attr().Local, to.Attr().Local}] = struct{}{}
}

// Heal ends all partitions and cuts.
func (n *MemoryNet) Heal() { clear(n.cuts) }

// Now is the virtual time in nanoseconds.
func (n *MemoryNet) Now() int64 { return n.now }

// Next is when the next packet in transit arrives, 0 if there is none.
func (n *MemoryNet) Next() int64 {
	if len(n.transit) == 0 {
		return 0
	}
	return n.transit[0].at
}

// Advance sets the clock, which never goes back, and delivers what has arrived.
func (n *MemoryNet) Advance(now int64) {
	n.now = max(n.now, now)
	for len(n.transit) > 0 && n.transit[0].at <= n.now {
		t := heap.Pop(&n.transit).(*transit)
		n.deliver(t.to, t.packet)
	}
}

// Lost counts the packets lost to faults, cuts, full queues and unknown addresses.
func (n *MemoryNet) Lost() uint64 { return n.lost }

// FreeFrames counts the frames that nobody holds.
func (n *MemoryNet) FreeFrames() int { return len(n.free) }

func (n *MemoryNet) frame(i uint32) []byte {
	return n.mem[int(i)*n.faults.MTU:][:n.faults.MTU:n.faults.MTU]
}

func (n *MemoryNet) lose(i uint32) {
	n.lost++
	n.free = append(n.free, i)
}

func (n *MemoryNet) cut(from, to *memoryLink) bool {
	_, ok := n.cuts[way{from.addr, to.addr}]
	return ok
}

func (n *MemoryNet) deliver(to *memoryLink, p memoryPacket) {
	if to.closed || int(to.tail-to.head) >= n.faults.Queue {
		n.lose(p.index)
		return
	}
	to.rx[int(to.tail)&(len(to.rx)-1)] = p
	to.tail++
}

// send decides about one packet, which the net owns from now on.
func (n *MemoryNet) send(to *memoryLink, p memoryPacket) {
	f := &n.faults
	if f.Loss > 0 && n.rng.Float64() < f.Loss {
		n.lose(p.index)
		return
	}
	if f.Corrupt > 0 && n.rng.Float64() < f.Corrupt {
		bit := n.rng.IntN(p.n * 8)
		n.frame(p.index)[bit/8] ^= 1 << (bit % 8)
	}
	if f.Duplicate > 0 && n.rng.Float64() < f.Duplicate && len(n.free) > 0 {
		last := len(n.free) - 1
		dup := p
		dup.index = n.free[last]
		n.free = n.free[:last]
		copy(n.frame(dup.index), n.frame(p.index)[:p.n])
		n.launch(to, dup)
	}
	n.launch(to, p)
}

func (n *MemoryNet) launch(to *memoryLink, p memoryPacket) {
	f := &n.faults
	at := n.now + int64(f.Delay)
	if f.Reorder > 0 && f.ReorderBy > 0 && n.rng.Float64() < f.Reorder {
		at += 1 + n.rng.Int64N(int64(f.ReorderBy))
	}
	n.seq++
	heap.Push(&n.transit, &transit{at: at, seq: n.seq, to: to, packet: p})
}

type memoryPacket struct {
	index uint32
	n     int
	src   netip.AddrPort
}

// transit is a packet under way; seq keeps those of one time in order.
type transit struct {
	at     int64
	seq    uint64
	to     *memoryLink
	packet memoryPacket
}

type transitHeap []*transit

func (h transitHeap) Len() int { return len(h) }
func (h transitHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h transitHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *transitHeap) Push(x any)   { *h = append(*h, x.(*transit)) }
func (h *transitHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return t
}

// memoryLink is one endpoint of a MemoryNet.
type memoryLink struct {
	net        *MemoryNet
	addr       netip.AddrPort
	rx         []memoryPacket
	head, tail uint32
	closed     bool
}

var errMemoryFamily = errors.New("softroce: source and destination are of different address families")

func (l *memoryLink) Attr() LinkAttr {
	return LinkAttr{Name: "softroce+memory", Local: l.addr, MTU: l.net.faults.MTU, Queue: l.net.faults.Queue}
}

func (l *memoryLink) Path(dst netip.AddrPort) (Path, error) {
	if dst.Addr().Is4() != l.addr.Addr().Is4() {
		return Path{}, errMemoryFamily
	}
	to := l.net.links[dst] // nil: packets to nowhere are lost
	return Path{Dst: dst, Pseudo: roce.AppendPseudo(nil, l.addr, dst), Link: to}, nil
}

func (l *memoryLink) TxAlloc(frames []Frame) int {
	n := l.net
	k := min(len(frames), len(n.free))
	for i := range frames[:k] {
		index := n.free[len(n.free)-1-i]
		frames[i].Data, frames[i].Len, frames[i].Handle = n.frame(index), 0, uint64(index)
	}
	n.free = n.free[:len(n.free)-k]
	return k
}

func (l *memoryLink) TxFree(frames []Frame) {
	for i := range frames {
		l.net.free = append(l.net.free, uint32(frames[i].Handle))
	}
}

func (l *memoryLink) Tx(frames []Frame) int {
	n := l.net
	for i := range frames {
		f := &frames[i]
		p := memoryPacket{index: uint32(f.Handle), n: f.Len, src: l.addr}
		switch to := f.Path.Link.(*memoryLink); {
		case to == nil || len(n.cuts) > 0 && n.cut(l, to):
			n.lose(p.index)
		case n.exact:
			n.deliver(to, p)
		default:
			n.send(to, p)
		}
	}
	return len(frames)
}

func (l *memoryLink) Rx(frames []Frame) int {
	k := min(len(frames), int(l.tail-l.head))
	for i := range frames[:k] {
		p := &l.rx[int(l.head)&(len(l.rx)-1)]
		l.head++
		f := &frames[i]
		f.Data, f.Len, f.Src, f.Handle = l.net.frame(p.index), p.n, p.src, uint64(p.index)
	}
	return k
}

func (l *memoryLink) RxFree(frames []Frame) { l.TxFree(frames) }

func (l *memoryLink) FD() int { return -1 }

func (l *memoryLink) Close() error {
	if l.closed {
		return nil
	}
	l.closed = true
	for ; l.head != l.tail; l.head++ {
		l.net.free = append(l.net.free, l.rx[int(l.head)&(len(l.rx)-1)].index)
	}
	delete(l.net.links, l.addr)
	return nil
}
