package memif

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"github.com/millrace/millrace/dpdk"
)

// loose is a port without sockets on a region of its own making, for a peer that does
// anything with the memory between two bursts.
func loose(role Role, cfg Config) *Port {
	if err := cfg.check(); err != nil {
		panic(err)
	}
	slots := 1 << cfg.RingLog2
	at := buffersOffset(slots)
	p := &Port{role: role, cfg: cfg, signal: -1, rxEvent: -1, txEvent: -1, fd: -1, gone: make(chan struct{})}
	r := &region{mem: make([]byte, at+2*slots*cfg.BufferBytes), fd: -1}
	p.regions = []*region{r}
	p.tx, p.rx = ringAt(r.mem, 0, cfg.RingLog2), ringAt(r.mem, ringBytes(slots), cfg.RingLog2)
	p.txBuffers, p.rxBuffers = r.mem[at:at+slots*cfg.BufferBytes], r.mem[at+slots*cfg.BufferBytes:]
	p.txVoid, p.rxDone = make([]bool, slots), make([]bool, slots)
	if role == Client {
		p.rx.advanceHead(uint16(slots))
		p.rxHead = uint16(slots)
	}
	p.up.Store(true)
	return p
}

// FuzzDescriptors lets a peer write anything anywhere into the rings, between any
// bursts. No burst may give a frame outside of the region, hand out more frames than
// there are slots, or fail to come back.
func FuzzDescriptors(f *testing.F) {
	write := func(at uint16, v uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16([]byte{0}, at), v)
	}
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	const rx = ringHeaderBytes + 8*descBytes // the second ring of 2^3 slots
	f.Add(false, join(write(rx+ringHeaderBytes+4, 60), write(rx+flagsHeadAt, 1<<16), []byte{1, 2, 3, 4}))
	f.Add(false, join(write(rx+ringHeaderBytes, 0xffff0001), write(rx+flagsHeadAt, 9<<16), []byte{1}))
	f.Add(false, join(write(ringHeaderBytes+8, 0xfffffff0), write(flagsHeadAt, 8<<16), []byte{2, 3}))
	f.Add(true, join(write(rx+tailAt, 3), []byte{1, 4}, write(rx+ringHeaderBytes+4, 1<<31), []byte{1}))
	f.Add(true, join([]byte{2, 3, 2, 3}, write(tailAt, 40_000), []byte{2, 3, 4}))
	f.Fuzz(func(t *testing.T, client bool, script []byte) {
		role := Server
		if client {
			role = Client
		}
		p := loose(role, Config{RingLog2: 3, BufferBytes: 128})
		mem := p.regions[0].mem
		rings := buffersOffset(p.tx.slots)
		first, last := addr(mem), addr(mem)+uintptr(len(mem))
		var tx, rxHeld []dpdk.Frame
		check := func(frames []dpdk.Frame) {
			for i := range frames {
				d := frames[i].Data
				if a := addr(d); len(d) == 0 || a < first || a+uintptr(cap(d)) > last || frames[i].Len > len(d) {
					t.Fatalf("frame %+v lies outside of the region", frames[i].Handle)
				}
				d[0]++
				d[len(d)-1]++
			}
		}
		for len(script) > 0 {
			op := script[0] % 6
			script = script[1:]
			var buf [5]dpdk.Frame
			switch op {
			case 0: // the peer writes a word into the rings
				if len(script) < 6 {
					return
				}
				at := int(binary.LittleEndian.Uint16(script)) % (rings - 4)
				copy(mem[at:at+4], script[2:6])
				script = script[6:]
			case 1:
				n := p.RxBurst(buf[:])
				check(buf[:n])
				rxHeld = append(rxHeld, buf[:n]...)
			case 2:
				n := p.AllocBurst(buf[:])
				check(buf[:n])
				tx = append(tx, buf[:n]...)
			case 3:
				for i := range tx {
					tx[i].Len = len(tx[i].Data)
				}
				if n := p.TxBurst(tx); n != len(tx) {
					t.Fatalf("sent %d of %d frames", n, len(tx))
				}
				tx = nil
			case 4:
				p.FreeBurst(rxHeld)
				p.FreeBurst(tx)
				rxHeld, tx = nil, nil
			case 5:
				if b := p.Lone(); b != nil {
					check([]dpdk.Frame{{Data: b, Len: len(b)}})
					p.Taken()
				}
			}
			if len(tx) > p.tx.slots || len(rxHeld) > p.rx.slots {
				t.Fatalf("%d and %d frames of rings of %d", len(tx), len(rxHeld), p.tx.slots)
			}
		}
	})
}

func addr(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
