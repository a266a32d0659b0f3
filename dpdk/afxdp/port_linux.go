package afxdp

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/hugepages"
)

// Config sizes a Port.
type Config struct {
	// Queue is the device's receive and transmit queue. Default 0.
	Queue int
	// Ring is the number of frames of each ring, a power of two. Default 1024.
	Ring int
}

const (
	defaultRing = 1024
	maxRing     = 1 << 15
	// xdpHeadroom is what the kernel keeps free in front of a received frame.
	xdpHeadroom = unix.XDP_PACKET_HEADROOM
	etherBytes  = 14
	// A driver's frames lie within a page.
	maxFrameBytes = 4096
)

// Port is one queue of a device; a dpdk.Port. What it receives lies in its own
// memory; whether the kernel copied it there is in Info().Driver.
type Port struct {
	info dpdk.PortInfo
	fd   int
	rings
	arena      *hugepages.Arena
	mem        []byte
	frameBytes int
	free       []uint32 // frames that neither the kernel nor the caller has
	sending    int      // frames that the caller has to send, or the kernel has
	netdev     *Netdev
	queue      uint32
	stats      Stats
}

var _ dpdk.Port = (*Port)(nil)

// A frame's Handle is its address in the port's memory, and whether it was received.
const rxHandle = 1 << 63

// Stats counts what a port did. Owner's goroutine only.
type Stats struct {
	RxFrames, TxFrames uint64
	Kicks              uint64 // system calls to move the kernel on
	// Of the kernel (struct xdp_statistics), frames:
	RxDropped      uint64 // for reasons of their own
	RxRingFull     uint64 // the port was not polled often enough
	RxNoFrames     uint64 // the fill ring was empty
	TxInvalidDescs uint64
}

// Open makes a port of one queue. The port belongs to one goroutine from then on.
func (n *Netdev) Open(cfg Config) (*Port, error) {
	if cfg.Ring == 0 {
		cfg.Ring = defaultRing
	}
	if cfg.Ring < 2 || cfg.Ring > maxRing || cfg.Ring&(cfg.Ring-1) != 0 {
		return nil, fmt.Errorf("afxdp: %s: a ring of %d frames: use a power of two from 2 to %d", n.dev.Name, cfg.Ring, maxRing)
	}
	if cfg.Queue < 0 || cfg.Queue >= maxQueues {
		return nil, fmt.Errorf("afxdp: %s: queue %d: use 0 to %d", n.dev.Name, cfg.Queue, maxQueues-1)
	}
	p := &Port{fd: -1, netdev: n, queue: uint32(cfg.Queue)}
	if err := p.open(cfg); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("afxdp: %s: %w", n.dev.Name, err)
	}
	return p, nil
}

func (p *Port) open(cfg Config) (err error) {
	dev := p.netdev.dev
	p.frameBytes = 2048
	if dev.MTU+etherBytes > p.frameBytes-xdpHeadroom {
		p.frameBytes = maxFrameBytes
	}
	// One frame for each place where one can be: received and not read, read and
	// not given back, to be sent.
	frames := 3 * cfg.Ring
	if p.arena, err = hugepages.NewArena(hugepages.ArenaOptions{Bytes: frames * p.frameBytes}); err != nil {
		return err
	}
	p.mem = p.arena.Bytes()[:frames*p.frameBytes]
	if p.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("AF_XDP socket: %w%s", err, attachFix(err))
	}
	if err = registerMemory(p.fd, p.mem, p.frameBytes); err != nil {
		return err
	}
	if p.rings, err = mapRings(p.fd, cfg.Ring); err != nil {
		return err
	}
	p.free = make([]uint32, 0, frames)
	for i := range frames {
		p.free = append(p.free, uint32(frames-1-i))
	}
	p.refill()
	mode, err := p.netdev.bind(p.fd, cfg.Queue)
	if err != nil {
		return err
	}
	if err = p.netdev.sockets.Put(p.queue, uint32(p.fd)); err != nil {
		return fmt.Errorf("queue %d: %w", cfg.Queue, err)
	}
	p.info = dpdk.PortInfo{
		Name:   "afxdp:" + dev.Name,
		Driver: fmt.Sprintf("AF_XDP (queue %d, %s XDP, %s)", cfg.Queue, p.netdev.mode, mode),
		MAC:    slices.Clone(dev.HardwareAddr),
		MTU:    min(dev.MTU, p.frameBytes-xdpHeadroom-etherBytes),
		Ring:   cfg.Ring,
		FD:     p.fd,
	}
	return nil
}

// Info implements dpdk.Port.
func (p *Port) Info() dpdk.PortInfo { return p.info }

// Arena is the port's memory.
func (p *Port) Arena() *hugepages.Arena { return p.arena }

// refill offers free frames to the kernel, but leaves enough to send with.
func (p *Port) refill() {
	spare := len(p.free) - (int(p.tx.size) - p.sending)
	n := min(p.fill.room(p.fill.size), uint32(max(spare, 0)))
	for i := range n {
		*p.fill.addr(p.fill.own + i) = uint64(p.pop()) * uint64(p.frameBytes)
	}
	if n > 0 {
		p.fill.produce(n)
	}
	p.wakeRx()
}

func (p *Port) wakeRx() {
	if p.fill.wantsKick() {
		p.stats.Kicks++
		kickRx(p.fd)
	}
}

func (p *Port) pop() uint32 {
	f := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return f
}

// reap takes back what was sent.
func (p *Port) reap() {
	n := p.completion.ready(p.completion.size)
	for i := range n {
		p.free = append(p.free, uint32(*p.completion.addr(p.completion.own + i)/uint64(p.frameBytes)))
	}
	if n > 0 {
		p.completion.consume(n)
		p.sending -= int(n)
	}
}

// AllocBurst implements dpdk.Port.
func (p *Port) AllocBurst(frames []dpdk.Frame) int {
	if p.sending+len(frames) > int(p.tx.size)/2 {
		p.reap()
	}
	n := min(len(frames), int(p.tx.size)-p.sending, len(p.free))
	for i := range n {
		f := p.pop()
		at := int(f) * p.frameBytes
		frames[i].Set(p.mem[at:at+p.frameBytes:at+p.frameBytes], 0, uint64(at))
	}
	p.sending += n
	return n
}

// TxBurst implements dpdk.Port. A frame longer than the device's MTU is dropped by
// the kernel.
func (p *Port) TxBurst(frames []dpdk.Frame) int {
	n := min(p.tx.room(uint32(len(frames))), uint32(len(frames)))
	if n == 0 {
		p.kick() // or it would stay full
		return 0
	}
	for i := range n {
		f := &frames[i]
		if f.Handle&rxHandle != 0 {
			p.sending++
		}
		*p.tx.desc(p.tx.own + i) = unix.XDPDesc{Addr: f.Handle &^ rxHandle, Len: uint32(f.Len)}
	}
	p.tx.produce(n)
	p.stats.TxFrames += uint64(n)
	p.kick()
	if p.sending > int(p.tx.size)/2 {
		// An owner that only sends on what it received asks for no empty frames, which
		// is where these come back otherwise.
		p.reap()
		p.refill()
	}
	return int(n)
}

// kick makes the kernel send. One call sends a batch of the kernel's; the rest is
// sent with the next, which RxBurst makes if no TxBurst does.
func (p *Port) kick() {
	for p.tx.room(p.tx.size) < p.tx.size && p.tx.wantsKick() {
		before := p.tx.other
		p.stats.Kicks++
		errno := kickTx(p.fd)
		if p.tx.room(p.tx.size); p.tx.other == before || errno != unix.EAGAIN {
			return // it took nothing (no memory, a full queue of the device), or all
		}
	}
}

// RxBurst implements dpdk.Port.
func (p *Port) RxBurst(frames []dpdk.Frame) int {
	if p.tx.own != p.tx.other {
		p.kick()
	}
	n := min(p.rx.ready(uint32(len(frames))), uint32(len(frames)))
	for i := range n {
		d := p.rx.desc(p.rx.own + i)
		end := (d.Addr/uint64(p.frameBytes) + 1) * uint64(p.frameBytes)
		frames[i].Set(p.mem[d.Addr:end:end], int(d.Len), d.Addr|rxHandle)
	}
	if n > 0 {
		p.rx.consume(n)
		p.stats.RxFrames += uint64(n)
	} else {
		// A driver that found no frame to receive into says so, maybe just after refill
		// looked, and then waits to be told of new ones.
		p.wakeRx()
	}
	return int(n)
}

// FreeBurst implements dpdk.Port.
func (p *Port) FreeBurst(frames []dpdk.Frame) {
	for i := range frames {
		h := frames[i].Handle
		if h&rxHandle == 0 {
			p.sending--
		}
		p.free = append(p.free, uint32((h&^rxHandle)/uint64(p.frameBytes)))
	}
	p.refill()
}

// Stats is for the port's owner.
func (p *Port) Stats() Stats {
	s := p.stats
	if k, err := kernelStats(p.fd); err == nil {
		s.RxDropped, s.RxRingFull, s.RxNoFrames, s.TxInvalidDescs = k.Rx_dropped, k.Rx_ring_full, k.Rx_fill_ring_empty_descs, k.Tx_invalid_descs
	}
	return s
}

// Close implements dpdk.Port.
func (p *Port) Close() error {
	var err error
	if p.info.Name != "" {
		err = p.netdev.sockets.Delete(p.queue)
		p.info.Name = ""
	}
	if p.fd >= 0 {
		err = errors.Join(err, unix.Close(p.fd))
		p.fd = -1
	}
	p.unmap()
	if p.arena != nil {
		err = errors.Join(err, p.arena.Close())
		p.arena = nil
	}
	return err
}
