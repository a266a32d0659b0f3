//go:build dpdk && cgo

package eal

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/millrace/millrace/hugepages"
)

// frames is the memory that the frames of a device lie in.
type frames struct {
	arena  *hugepages.Arena // nil: libdpdk's
	c      *C.struct_mr_memory
	memory string // Stats.Memory
}

// start attaches the device, makes memory for its frames and starts it. After a failure
// nothing is left but the ports' own C memory.
func (d *device) start(cfg *C.struct_mr_config) error {
	var step *C.char
	fail := func(rc C.int) error {
		dev := d.name
		if cfg.args != nil && cfg.memif_secret == nil {
			if args := C.GoString(cfg.args); args != "" {
				dev += "," + args
			}
		}
		return &Error{Op: C.GoString(step), Dev: dev, Err: cerror(rc), Log: Log()}
	}
	Log()
	var physical C.int
	n := C.uint32_t(len(d.ports))
	if rc := d.call(func(a **C.struct_mr_port) C.int { return C.mr_port_attach(a, n, cfg, &physical, &step) }); rc != 0 {
		return fail(rc)
	}
	d.c = (*C.struct_mr_memory)(C.calloc(1, C.sizeof_struct_mr_memory))
	switch {
	case d.copies:
		// An arena would gain nothing, and some of these drivers cannot use one:
		// net_af_packet drops frames with a VLAN tag, since rte_vlan_insert wants mbufs
		// with buffers of their own; net_memif's zero copy and net_af_xdp compute where a
		// frame lies from where the pool does.
		d.memory = "libdpdk's memory"
	case physical != 0:
		d.memory = "libdpdk's memory, because the device is given physical addresses (no IOMMU)"
	default:
		d.makeArena(cfg)
	}
	rc := d.call(func(a **C.struct_mr_port) C.int { return C.mr_port_start(a, n, cfg, d.c, &step) })
	if rc != 0 {
		err := fail(rc)
		_ = d.freeMemory()
		return err
	}
	if d.arena != nil && d.c.refused != 0 {
		d.memory = fmt.Sprintf("libdpdk's memory, because it does not take an arena: %v", cerror(d.c.refused))
		_ = d.arena.Close()
		d.arena, d.c.base = nil, nil
	}
	return nil
}

// makeArena makes memory for all queues, beside the card if it is one.
func (d *device) makeArena(cfg *C.struct_mr_config) {
	perQueue := 0
	for _, p := range d.ports {
		perQueue = max(perQueue, int(p.c.mbufs))
	}
	perQueue *= int(C.mr_frame_stride(cfg))
	o := hugepages.ArenaOptions{Bytes: perQueue * len(d.ports)}
	if node := numaNode(d.name); node >= 0 {
		o.Nodes = []int{node}
	}
	arena, err := hugepages.NewArena(o)
	if err != nil {
		d.memory = fmt.Sprintf("libdpdk's memory, because there is none for an arena: %v", err)
		return
	}
	d.arena = arena
	r := arena.Report()
	d.memory = fmt.Sprintf("arena of %v", r.Backing)
	page := os.Getpagesize()
	if r.Backing == hugepages.HugeTLB1G || r.Backing == hugepages.HugeTLB2M {
		page = r.PageBytes
	}
	mem := arena.Bytes()
	// It lies outside of the Go heap, and stays until freeMemory.
	d.c.base, d.c.bytes = (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(mem))), C.uint64_t(len(mem))
	d.c.page, d.c.queue_bytes = C.uint64_t(page), C.uint64_t(perQueue)
}

// freeMemory is for when libdpdk has given it up.
func (d *device) freeMemory() error {
	C.free(unsafe.Pointer(d.c))
	d.c = nil
	if d.arena == nil {
		return nil
	}
	err := d.arena.Close()
	d.arena = nil
	return err
}

// numaNode of a card; -1: none, or not known.
func numaNode(device string) int {
	if !isPCI(device) {
		return -1
	}
	text, err := os.ReadFile("/sys/bus/pci/devices/" + device + "/numa_node")
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}
