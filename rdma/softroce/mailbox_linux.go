package softroce

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// A mailbox in memory, offsets in bytes: the words that the filter writes, those that the
// link writes in a cache line of their own, and the slots.
const (
	boxHead   = 0  // tickets given, each for a slot
	boxPassed = 4  // packets left to the socket
	boxTail   = 64 // tickets whose slots are free again
	boxOpen   = 68 // 0: all packets are left to the socket
	boxFirst  = 128
	boxBytes  = boxFirst + boxSlots*slotBytes

	boxSlots = 64
	// boxMost is how many slots may be in use. The others are for filters that run at the
	// same time on other CPUs and saw the same room; one peer's packets come on one or two.
	boxMost = boxSlots / 2

	slotState  = 0 // its ticket plus 1, once it is full
	slotPassed = 4 // boxPassed at that time: so many packets of the socket come before it
	slotLen    = 8 // bytes of packet; 0: none
	slotData   = 16
	slotBytes  = 1 << 10
	slotMost   = slotBytes - slotData

	// boxVain is after how many looks in vain a packet that was left to the socket counts
	// as dropped there, for want of room.
	boxVain = 64
	// boxEvery is in how many calls of Rx an open mailbox's socket is looked at all the same.
	boxEvery = 4 * coldEvery

	// skLen is the offset of len in struct __sk_buff (linux/bpf.h). A UDP socket's filter
	// sees the UDP header, too (net/ipv4/udp.c, udp_queue_rcv_one_skb).
	skLen = 0
)

// mailbox is where the kernel puts packets that come one by one to a connected socket, in
// memory that the link reads: there is no system call to look, and none to receive, which
// take a quarter of a bare socket's round trip. A filter on the socket, behind the machine's
// packet filter, copies the packet and drops it, unless it is long, the mailbox is full or
// closed.
//
// Filters may run on several CPUs at once: each takes a ticket, fills the slot and marks it.
// One that finds the mailbox closed when it has filled a slot leaves the packet to the
// socket as well, so that it wakes a loop that has begun to sleep; it comes twice then,
// which the protocol is used to.
type mailbox struct {
	mem    []byte // boxBytes of the link's boxes; nil: there is none
	next   uint32 // the ticket to hand out next
	kept   uint32 // boxTail as written: slots from there to next are handed out
	taken  uint32 // open: of boxPassed, those received
	vain   int    // open: looks in vain for those that are missing
	opened bool
}

func (b *mailbox) word(at int) *uint32 { return (*uint32)(unsafe.Pointer(&b.mem[at])) }

func (b *mailbox) slot(ticket uint32) []byte {
	return b.mem[boxFirst+int(ticket%boxSlots)*slotBytes:][:slotBytes:slotBytes]
}

// state is the word that becomes next+1 when the next packet has come.
func (b *mailbox) state() *uint32 { return b.word(boxFirst + int(b.next%boxSlots)*slotBytes) }

func (b *mailbox) arrived() bool { return atomic.LoadUint32(b.state()) == b.next+1 }

// owed tells whether an open mailbox's filter has left a packet to the socket that was not
// received yet.
func (b *mailbox) owed() bool { return int32(atomic.LoadUint32(b.word(boxPassed))-b.taken) > 0 }

// passed is how many packets the filter has left to the socket; for open.
func (b *mailbox) passed() uint32 {
	if b.mem == nil {
		return 0
	}
	return atomic.LoadUint32(b.word(boxPassed))
}

// open lets packets in. The socket was empty in a look after passed was read, so what came
// to it since then is owed.
func (b *mailbox) open(passed uint32) {
	b.opened, b.vain = true, 0
	b.taken = passed
	atomic.StoreUint32(b.word(boxOpen), 1)
}

// close leaves packets to the socket from now on. Those in the mailbox come before them.
func (b *mailbox) close() {
	if b.opened {
		b.opened = false
		atomic.StoreUint32(b.word(boxOpen), 0)
	}
}

// empty forgets what a closed mailbox has.
func (b *mailbox) empty() {
	if b.mem != nil {
		b.next = atomic.LoadUint32(b.word(boxHead))
		b.free()
	}
}

// free gives the slots back that were handed out.
func (b *mailbox) free() {
	if b.kept != b.next {
		b.kept = b.next
		atomic.StoreUint32(b.word(boxTail), b.next)
	}
}

// hand hands out packets, from peer, up to one that came behind others that the socket has.
func (b *mailbox) hand(frames []Frame, peer *udpPeer) (n int) {
	for n < len(frames) && b.arrived() {
		s := b.slot(b.next)
		if b.opened && int32(*(*uint32)(unsafe.Pointer(&s[slotPassed]))-b.taken) > 0 {
			break
		}
		b.next++
		if size := int(*(*uint32)(unsafe.Pointer(&s[slotLen]))); size > 0 && size <= slotMost {
			f := &frames[n]
			n++
			f.Data, f.Len, f.Src, f.Pseudo, f.Idents = s[slotData:slotData+size:slotData+size], size, peer.addr, nil, peer.idents
		}
	}
	return n
}

// looked counts a look at the socket of an open mailbox.
func (b *mailbox) looked(packets int) {
	if packets > 0 {
		b.taken += uint32(packets)
		b.vain = 0
		if passed := b.passed(); int32(b.taken-passed) > 0 { // one was on its way when the mailbox opened
			b.taken = passed
		}
	} else if b.vain++; b.vain >= boxVain {
		b.vain = 0
		b.taken = atomic.LoadUint32(b.word(boxPassed))
	}
}

// openBoxes gives each of the sockets a mailbox. The kernel lets those with CAP_BPF, or
// anybody where kernel.unprivileged_bpf_disabled is 0. Linux 5.12 is the first to have all
// that the filter uses, 5.18 on arm64.
func (l *UDPLink) openBoxes(sockets []*udpSocket) error {
	size := (len(sockets)*boxBytes + os.Getpagesize() - 1) &^ (os.Getpagesize() - 1)
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "millrace_box", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(size), MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return err
	}
	defer m.Close() // filters and mapping hold it
	if l.boxes, err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		l.boxes = nil
		return os.NewSyscallError("mmap", err)
	}
	for i, s := range sockets {
		if err := attachBox(s.fd, m, i*boxBytes); err != nil {
			for _, s := range sockets[:i] {
				s.box = mailbox{}
				err = errors.Join(err, os.NewSyscallError("setsockopt SO_DETACH_FILTER", unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)))
			}
			return errors.Join(err, l.closeBoxes())
		}
		s.box.mem = l.boxes[i*boxBytes:][:boxBytes:boxBytes]
	}
	return nil
}

func (l *UDPLink) closeBoxes() error {
	if l.boxes == nil {
		return nil
	}
	b := l.boxes
	l.boxes = nil
	return os.NewSyscallError("munmap", unix.Munmap(b))
}

// attachBox makes the filter of a socket whose mailbox is at the given offset in m's value.
func attachBox(fd int, m *ebpf.Map, at int) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "millrace_box", Type: ebpf.SocketFilter, License: "Apache-2.0", Instructions: boxFilter(m.FD(), at),
	})
	if err != nil {
		return fmt.Errorf("socket filter: %w", err)
	}
	defer p.Close() // the socket holds it
	return os.NewSyscallError("setsockopt SO_ATTACH_BPF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, p.FD()))
}

// boxFilter is the filter; see mailbox. Atomic operations that fetch are ordered before and
// after all others (Documentation/bpf/standardization/instruction-set.rst, and the kernel's
// memory model of them): the slot's contents before its mark, its mark before the second
// look whether the mailbox is open.
func boxFilter(mapFD, at int) asm.Instructions {
	const skb, box, ticket, size, slot = asm.R6, asm.R7, asm.R8, asm.R9, asm.R3
	slotKept := int16(-8) // on the stack
	return asm.Instructions{
		asm.Mov.Reg(skb, asm.R1),
		asm.LoadMapValue(box, mapFD, uint32(at)),
		asm.LoadMem(asm.R1, box, boxOpen, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "pass"),
		asm.LoadMem(size, skb, skLen, asm.Word),
		asm.Sub.Imm(size, udpLen),
		asm.JEq.Imm(size, 0, "pass"),
		asm.JGT.Imm(size, slotMost, "pass"),
		asm.LoadMem(ticket, box, boxHead, asm.Word),
		asm.LoadMem(asm.R1, box, boxTail, asm.Word),
		asm.Sub.Reg32(ticket, asm.R1),
		asm.JGE.Imm(ticket, boxMost, "pass"),

		asm.Mov.Imm(ticket, 1),
		atomicWord(asm.FetchAdd, box, ticket, boxHead),
		asm.Mov.Reg(slot, ticket),
		asm.And.Imm(slot, boxSlots-1),
		asm.Mul.Imm(slot, slotBytes),
		asm.Add.Imm(slot, boxFirst),
		asm.Add.Reg(slot, box),
		asm.StoreMem(asm.RFP, slotKept, slot, asm.DWord),
		asm.LoadMem(asm.R1, box, boxPassed, asm.Word),
		asm.StoreMem(slot, slotPassed, asm.R1, asm.Word),
		asm.StoreMem(slot, slotLen, size, asm.Word),
		asm.Mov.Reg(asm.R1, skb),
		asm.Mov.Imm(asm.R2, udpLen),
		asm.Add.Imm(slot, slotData), // the third argument
		asm.Mov.Reg(asm.R4, size),
		asm.FnSkbLoadBytes.Call(),
		asm.LoadMem(slot, asm.RFP, slotKept, asm.DWord),
		asm.JEq.Imm(asm.R0, 0, "copied"),
		asm.StoreImm(slot, slotLen, 0, asm.Word),
		asm.Add.Imm(ticket, 1).WithSymbol("copied"),
		atomicWord(asm.Xchg, slot, ticket, slotState),

		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R1, box, boxOpen, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "pass"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),

		asm.Mov.Imm(asm.R1, 1).WithSymbol("pass"),
		atomicWord(asm.AddAtomic, box, asm.R1, boxPassed),
		asm.Mov.Imm(asm.R0, -1),
		asm.Return(),
	}
}

// atomicWord is an atomic instruction. cilium/ebpf 0.22.0 forgets to write which when it
// encodes it (asm.Instruction.Marshal), unless that is its constant already.
func atomicWord(op asm.AtomicOp, dst, src asm.Register, at int16) asm.Instruction {
	i := op.Mem(dst, src, asm.Word, at)
	i.Constant = int64(op >> 8)
	return i
}
