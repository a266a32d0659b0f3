// Package porttest is poll-mode ports in memory with seeded faults, and the
// conformance suite that every dpdk.Port passes.
package porttest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"

	"github.com/millrace/millrace/dpdk"
)

// Config shapes a pair of ports. Probabilities are in 0…1 and zero means never;
// what happens depends on the seed and the order of calls alone.
type Config struct {
	Seed       uint64
	FrameBytes int     // room of one frame; default 4352
	Frames     int     // frames of each port; default 1024
	Ring       int     // frames in flight per direction; default 256
	Loss       float64 // a transmitted frame vanishes
	Duplicate  float64 // a transmitted frame arrives twice
	Reorder    float64 // a transmitted frame is overtaken by the next one
	RefuseTx   float64 // TxBurst takes only a part of what it is given
	FailAlloc  float64 // AllocBurst gives fewer frames than it could
}

// Port is one of a pair, or a queue of a device. Misuse of a frame (freed twice, used
// after it was given away, foreign) panics with the reason. Connected ports may be
// owned by different goroutines.
type Port struct {
	mu     *sync.Mutex // guards all ports that are connected
	cfg    Config
	rng    *rand.Rand
	info   dpdk.PortInfo
	peers  []*Port // what it sends goes to one of them
	frames [][]byte
	busy   []bool // by frame: the caller has it
	spare  []int
	in     []packet // arrived and not yet received
	late   *packet  // held back, to be overtaken
	closed bool
	stats  Stats
}

type packet struct {
	data []byte
	to   *Port
}

// Stats counts what a port did with frames given to TxBurst.
type Stats struct {
	Sent, Lost, Duplicated, Reordered, Overrun uint64
}

// NewPair makes two connected ports, named name0 and name1.
func NewPair(name string, cfg Config) (a, b *Port) {
	queues, peer := NewDevice(name, 1, cfg)
	queues[0].info.Name, peer.info.Name = name+"0", name+"1"
	return queues[0], peer
}

// NewDevice makes a device of several queues, which has one MAC address, and the
// port at the other end of its wire. What that port sends arrives at queues by
// chance, as if a card spread it by a hash that nobody knows.
func NewDevice(name string, queues int, cfg Config) (device []*Port, peer *Port) {
	if cfg.FrameBytes == 0 {
		cfg.FrameBytes = 4352
	}
	if cfg.Frames == 0 {
		cfg.Frames = 1024
	}
	if cfg.Ring == 0 {
		cfg.Ring = 256
	}
	mu := new(sync.Mutex)
	rng := rand.New(rand.NewPCG(cfg.Seed, 0x6d696c6c72616365))
	one := func(name string, mac byte) *Port {
		p := &Port{mu: mu, cfg: cfg, rng: rng, busy: make([]bool, cfg.Frames)}
		p.info = dpdk.PortInfo{
			Name: name, Driver: "porttest", MAC: net.HardwareAddr{2, 0, 0, 0, 0, mac},
			MTU: cfg.FrameBytes - 14, Ring: cfg.Ring, FD: -1,
		}
		for i := range cfg.Frames {
			p.frames = append(p.frames, make([]byte, cfg.FrameBytes))
			p.spare = append(p.spare, i)
		}
		return p
	}
	peer = one(name+"-peer", 2)
	for range queues {
		q := one(name, 1)
		q.peers = []*Port{peer}
		device = append(device, q)
	}
	peer.peers = device
	return device, peer
}

// Info describes the port.
func (p *Port) Info() dpdk.PortInfo { return p.info }

// Up says whether both ends of the wire are open.
func (p *Port) Up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up()
}

func (p *Port) up() bool {
	for _, q := range p.peers {
		if !q.closed {
			return !p.closed
		}
	}
	return false
}

func (p *Port) chance(probability float64) bool {
	return probability > 0 && p.rng.Float64() < probability
}

// AllocBurst gives empty frames.
func (p *Port) AllocBurst(frames []dpdk.Frame) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(frames)
	if p.chance(p.cfg.FailAlloc) {
		n = p.rng.IntN(n + 1)
	}
	return p.alloc(frames[:n])
}

func (p *Port) alloc(frames []dpdk.Frame) int {
	for i := range frames {
		if len(p.spare) == 0 || p.closed {
			return i
		}
		h := p.spare[len(p.spare)-1]
		p.spare = p.spare[:len(p.spare)-1]
		p.busy[h] = true
		frames[i] = dpdk.Frame{Data: p.frames[h], Handle: uint64(h)}
	}
	return len(frames)
}

func (p *Port) release(f dpdk.Frame, what string) {
	if f.Handle >= uint64(len(p.frames)) || len(f.Data) == 0 || &f.Data[0] != &p.frames[f.Handle][0] {
		panic(fmt.Sprintf("porttest: %s: %s of a frame that is not this port's (handle %d)", p.info.Name, what, f.Handle))
	}
	if !p.busy[f.Handle] {
		panic(fmt.Sprintf("porttest: %s: %s of frame %d, which is not the caller's any more", p.info.Name, what, f.Handle))
	}
	p.busy[f.Handle] = false
	p.spare = append(p.spare, int(f.Handle))
}

// TxBurst moves frames to the peer, or to their fate.
func (p *Port) TxBurst(frames []dpdk.Frame) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(frames)
	if !p.up() {
		return 0
	}
	if p.chance(p.cfg.RefuseTx) {
		n = p.rng.IntN(n + 1)
	}
	for _, q := range p.peers {
		n = min(n, p.cfg.Ring-min(len(q.in), p.cfg.Ring))
	}
	for _, f := range frames[:n] {
		if f.Len > len(f.Data) || f.Len <= 0 {
			panic(fmt.Sprintf("porttest: %s: transmit of %d bytes from a frame of %d", p.info.Name, f.Len, len(f.Data)))
		}
		data := append([]byte(nil), f.Data[:f.Len]...)
		p.release(f, "transmit")
		p.stats.Sent++
		p.deliver(data)
	}
	return n
}

func (p *Port) deliver(data []byte) {
	if p.chance(p.cfg.Loss) {
		p.stats.Lost++
		return
	}
	pkt := packet{data, p.peers[0]}
	if len(p.peers) > 1 {
		pkt.to = p.peers[p.rng.IntN(len(p.peers))]
	}
	if p.late == nil && p.chance(p.cfg.Reorder) {
		p.stats.Reordered++
		p.late = &pkt
		return
	}
	p.arrive(pkt)
	if p.chance(p.cfg.Duplicate) {
		p.stats.Duplicated++
		p.arrive(pkt)
	}
	if p.late != nil {
		late := *p.late
		p.late = nil
		p.arrive(late)
	}
}

func (p *Port) arrive(pkt packet) {
	if len(pkt.to.in) >= 2*p.cfg.Ring { // duplicates and late frames may pass the ring's size
		p.stats.Overrun++
		return
	}
	pkt.to.in = append(pkt.to.in, pkt)
}

// RxBurst receives. A frame that was held back arrives at the latest when nothing
// else is there.
func (p *Port) RxBurst(frames []dpdk.Frame) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.peers {
		if len(p.in) == 0 && q.late != nil && q.late.to == p {
			p.in = append(p.in, *q.late)
			q.late = nil
		}
	}
	n := p.alloc(frames[:min(len(frames), len(p.in))])
	for i := range n {
		frames[i].Len = copy(frames[i].Data, p.in[i].data)
	}
	p.in = append(p.in[:0], p.in[n:]...)
	return n
}

// FreeBurst takes frames back.
func (p *Port) FreeBurst(frames []dpdk.Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range frames {
		p.release(f, "free")
	}
}

// Outstanding is how many frames the caller holds.
func (p *Port) Outstanding() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.frames) - len(p.spare)
}

// Stats counts what happened to frames sent from this port.
func (p *Port) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Inject makes the port receive data as if the peer had sent it.
func (p *Port) Inject(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.in = append(p.in, packet{append([]byte(nil), data...), p})
}

// Close closes the port. A second Close returns os.ErrClosed.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	p.closed = true
	return nil
}
