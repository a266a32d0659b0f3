//go:build dpdk && cgo

package eal

// #cgo noescape mr_burst
// #cgo nocallback mr_burst
// #cgo noescape mr_count
// #cgo nocallback mr_count
// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"unsafe"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/internal/ccall"
)

// port is one queue of a device of libdpdk. c is C memory; everything else is set
// once.
type port struct {
	c      *C.struct_mr_port
	dev    *device
	info   dpdk.PortInfo
	rxNext C.uint32_t // first frame of c.rx that RxBurst has not handed out
	closed bool
	stats  Stats // as last read; eal.mu guards it
}

var burst = unsafe.Pointer(C.mr_burst)

// device is what the queues of one device share; eal.mu guards it.
type device struct {
	name    string
	copies  bool // its driver does
	waits   bool // likewise
	ports   []*port
	open    int  // ports that are not closed
	removes bool // it goes with its ports
	frames
}

// NewVdev attaches a virtual device, for instance NewVdev("net_af_packet0",
// "iface=eth0", …), and makes a port of each of its first queues, as many as asked
// for. It goes when all of them are closed.
func NewVdev(name, args string, queues int, opts Options) ([]Port, error) {
	return open(name, &args, queues, opts, nil, 0)
}

// Open makes a port of each of the first queues of a device that Init found, by its
// name: a PCI address or the name given with --vdev.
func Open(name string, queues int, opts Options) ([]Port, error) {
	return open(name, nil, queues, opts, nil, 0)
}

func open(name string, args *string, queues int, opts Options, memif *Memif, role Role) ([]Port, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if queues < 1 || queues > maxQueues {
		return nil, fmt.Errorf("dpdk/eal: %d queues of %s: want 1…%d", queues, name, maxQueues)
	}
	eal.mu.Lock()
	defer eal.mu.Unlock()
	if err := initLocked(nil); err != nil {
		return nil, err
	}
	var free []unsafe.Pointer
	cstring := func(s string) *C.char {
		c := C.CString(s)
		free = append(free, unsafe.Pointer(c))
		return c
	}
	defer func() {
		for _, p := range free {
			C.free(p)
		}
	}()
	cfg := (*C.struct_mr_config)(C.calloc(1, C.sizeof_struct_mr_config))
	free = append(free, unsafe.Pointer(cfg))
	cfg.name = cstring(name)
	if args != nil {
		cfg.args = cstring(*args)
	}
	cfg.frame_bytes = C.uint32_t(opts.FrameBytes)
	cfg.frames = C.uint32_t(opts.Frames)
	cfg.ring = C.uint32_t(opts.Ring)
	cfg.mtu = C.uint32_t(opts.MTU)
	if memif != nil {
		cfg.memif_socket, cfg.memif_secret = cstring(memif.Socket), cstring(memif.Secret)
		cfg.memif_id, cfg.memif_role = C.uint32_t(memif.ID), C.uint32_t(role)
	}
	d := &device{name: name, removes: args != nil, open: queues, copies: copies(name), waits: waits(name)}
	for range queues {
		d.ports = append(d.ports, &port{dev: d, c: (*C.struct_mr_port)(C.calloc(1, C.sizeof_struct_mr_port))})
	}
	if err := d.start(cfg); err != nil {
		for _, p := range d.ports {
			C.free(unsafe.Pointer(p.c))
		}
		return nil, err
	}
	how := "zero copy"
	if d.copies {
		how = "copies"
	}
	out := make([]Port, queues)
	for i, p := range d.ports {
		p.info = dpdk.PortInfo{
			Name:   name,
			Driver: fmt.Sprintf("%s (libdpdk %s, %s, %s)", C.GoString(&p.c.driver[0]), Version(), how, d.memory),
			MAC:    net.HardwareAddr(C.GoBytes(unsafe.Pointer(&p.c.mac[0]), 6)),
			MTU:    opts.FrameBytes - etherHeaderBytes,
			Ring:   opts.Ring,
			FD:     -1,
		}
		if m := int(p.c.mtu); m != 0 {
			p.info.MTU = min(p.info.MTU, m)
		}
		out[i] = p
	}
	eal.open = append(eal.open, d.ports...)
	return out, nil
}

// Ports are the ports that this process has open, what they did, and the sum over those
// that it has closed. Any goroutine.
func Ports() (open []OpenPort, closed Stats) {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	for _, p := range eal.open {
		p.readStats()
		open = append(open, OpenPort{p.info, int(p.c.queue), p.stats})
	}
	return open, eal.closed
}

// call hands the ports to C, as an array in C memory.
func (d *device) call(fn func(**C.struct_mr_port) C.int) C.int {
	a := (*[maxQueues]*C.struct_mr_port)(C.calloc(maxQueues, C.size_t(unsafe.Sizeof(d.ports[0].c))))
	defer C.free(unsafe.Pointer(a))
	for i, p := range d.ports {
		a[i] = p.c
	}
	return fn(&a[0])
}

// Info describes the port.
func (p *port) Info() dpdk.PortInfo { return p.info }

// Guarded says whether the port survives a net_memif peer that dies in a burst.
func (p *port) Guarded() bool { return p.c != nil && p.c.guard != nil }

// Stats counts what the port did.
func (p *port) Stats() Stats {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	if !p.closed {
		p.readStats()
	}
	return p.stats
}

func (p *port) readStats() {
	c := p.c
	s := Stats{
		RxFrames: uint64(C.mr_count(&c.rx_frames)), TxFrames: uint64(C.mr_count(&c.tx_frames)),
		Dropped: uint64(C.mr_count(&c.chained)), Starved: uint64(C.mr_count(&c.no_mbuf)), Memory: p.dev.memory,
	}
	if p.dev.copies {
		s.RxCopied, s.TxCopied = s.RxFrames, s.TxFrames
	}
	p.stats = s
}

func (s *Stats) add(o Stats) {
	s.RxFrames += o.RxFrames
	s.TxFrames += o.TxFrames
	s.RxCopied += o.RxCopied
	s.TxCopied += o.TxCopied
	s.Dropped += o.Dropped
	s.Starved += o.Starved
}

// Up says whether the link is up. A net_memif link that went down stays down.
func (p *port) Up() bool { return !p.closed && C.mr_port_up(p.c) == 1 }

// AllocBurst takes empty frames from the stash.
func (p *port) AllocBurst(frames []dpdk.Frame) int {
	c := p.c
	for i := range frames {
		if c.n_alloc == 0 {
			p.cross(0)
			if c.n_alloc == 0 {
				return i
			}
		}
		c.n_alloc--
		s := &c.alloc[c.n_alloc]
		frames[i].Set(room(s), 0, uint64(s.mbuf))
	}
	return len(frames)
}

// TxBurst transmits at once, one crossing per 64 frames.
func (p *port) TxBurst(frames []dpdk.Frame) int {
	c := p.c
	for sent := 0; ; {
		n := min(len(frames)-sent, C.MR_BURST)
		if n == 0 {
			return sent
		}
		for i := range n {
			f := &frames[sent+i]
			s := &c.tx[i]
			s.mbuf, s.len = C.uint64_t(f.Handle), C.uint32_t(f.Len)
		}
		p.cross(n)
		sent += int(c.n_tx)
		if int(c.n_tx) < n {
			return sent
		}
	}
}

// RxBurst hands out what an earlier crossing received, or crosses.
func (p *port) RxBurst(frames []dpdk.Frame) int {
	c := p.c
	if p.rxNext == c.n_rx {
		p.cross(0)
	}
	n := min(len(frames), int(c.n_rx-p.rxNext))
	for i := range n {
		s := &c.rx[p.rxNext]
		p.rxNext++
		frames[i].Set(room(s), int(s.len), uint64(s.mbuf))
	}
	return n
}

// FreeBurst stashes frames for the next crossing.
func (p *port) FreeBurst(frames []dpdk.Frame) {
	c := p.c
	for i := range frames {
		if c.n_free == C.MR_BURST {
			p.cross(0)
		}
		c.free[c.n_free] = C.uint64_t(frames[i].Handle)
		c.n_free++
	}
}

// cross makes the one call into C: it sends tx frames of c.tx, receives if all
// received frames were handed out, and settles both stashes. Go's scheduler is told
// only of one that may wait.
func (p *port) cross(tx int) {
	c := p.c
	if p.rxNext == c.n_rx {
		p.rxNext, c.n_rx = 0, 0
	}
	c.n_tx = C.uint32_t(tx)
	if p.dev.waits {
		C.mr_burst(c)
	} else {
		ccall.Call(burst, unsafe.Pointer(c))
	}
}

// Close ends the use of the queue, and with the last queue of a device stops it,
// removes it and frees its memory. The owner must have stopped using the port. A
// second Close returns os.ErrClosed.
func (p *port) Close() error {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	p.closed = true
	p.readStats()
	eal.closed.add(p.stats)
	eal.open = slices.DeleteFunc(eal.open, func(o *port) bool { return o == p })
	d := p.dev
	if d.open--; d.open > 0 {
		return nil
	}
	remove := C.int(0)
	if d.removes {
		remove = 1
	}
	Log()
	rc := d.call(func(a **C.struct_mr_port) C.int {
		return C.mr_port_close(a, C.uint32_t(len(d.ports)), d.c, remove)
	})
	for _, p := range d.ports {
		C.free(unsafe.Pointer(p.c))
	}
	var err error
	if rc != 0 {
		err = &Error{Op: "rte_eth_dev_close", Dev: p.info.Name, Err: cerror(rc), Log: Log()}
	}
	return errors.Join(err, d.freeMemory())
}
