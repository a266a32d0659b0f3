package softroce

import (
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

const (
	ringSlots = 1024    // at least; whole blocks
	ringBlock = 1 << 16 // bytes; more than one slot of the largest frame

	// ringHead is what precedes the IP header in a slot: struct tpacket2_hdr and
	// struct sockaddr_ll, 52 bytes, the Ethernet header's 16 and the virtio_net_hdr,
	// all aligned to 16 (net/packet/af_packet.c, tpacket_rcv).
	ringHead = 96
)

// packetRing is the memory that the kernel writes received frames to (packet(7),
// PACKET_RX_RING, TPACKET_V2). A poll that finds nothing costs no system call.
//
// The kernel fills slots in turn and hands each over by a store to its status; it
// gets it back the same way. Both sides order their stores: the kernel with smp_wmb
// before the status, this side with sync/atomic.
type packetRing struct {
	mem      []byte
	slotLen  int
	perBlock int
	slots    int

	next int // the slot that the kernel fills next
	held int // slots before it that are not given back
}

// newPacketRing sets up the ring of a socket that is not bound yet. mtu is the
// longest IP packet that a slot holds.
func newPacketRing(fd, mtu int) (r packetRing, err error) {
	r.slotLen = (ringHead + mtu + 63) &^ 63
	r.perBlock = ringBlock / r.slotLen
	blocks := (ringSlots + r.perBlock - 1) / r.perBlock
	r.slots = blocks * r.perBlock
	req := unix.TpacketReq{Block_size: ringBlock, Block_nr: uint32(blocks), Frame_size: uint32(r.slotLen), Frame_nr: uint32(r.slots)}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return r, fmt.Errorf("receive ring of %d KiB: %w", blocks*ringBlock>>10, err)
	}
	r.mem, err = unix.Mmap(fd, 0, blocks*ringBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return r, os.NewSyscallError("mmap", err)
}

func (r *packetRing) close() error {
	if r.mem == nil {
		return nil
	}
	mem := r.mem
	r.mem = nil
	return os.NewSyscallError("munmap", unix.Munmap(mem))
}

func (r *packetRing) slot(i int) []byte {
	return r.mem[i/r.perBlock*ringBlock+i%r.perBlock*r.slotLen:][:r.slotLen:r.slotLen]
}

func slotStatus(slot []byte) *uint32 { return (*uint32)(unsafe.Pointer(unsafe.SliceData(slot))) }

// take is the next frame that the kernel has filled; ok is false if there is none.
// The frame is valid until give.
func (r *packetRing) take() (slot []byte, status uint32, ok bool) {
	if r.held == r.slots {
		return nil, 0, false
	}
	slot = r.slot(r.next)
	status = atomic.LoadUint32(slotStatus(slot))
	if status&unix.TP_STATUS_USER == 0 {
		return nil, 0, false
	}
	if r.next++; r.next == r.slots {
		r.next = 0
	}
	r.held++
	return slot, status, true
}

// watch appends the word that changes when the kernel fills a slot; ok is false if
// there is none that it could fill.
func (r *packetRing) watch(ws []rdma.Watched) (_ []rdma.Watched, ok bool) {
	if r.held == r.slots {
		return ws, false
	}
	w := rdma.Watched{Word: slotStatus(r.slot(r.next))}
	if w.Value = atomic.LoadUint32(w.Word); w.Value&unix.TP_STATUS_USER != 0 { // since the last take
		w.Value = ^w.Value
	}
	return append(ws, w), true
}

// give hands all slots back but the last keep that were taken.
func (r *packetRing) give(keep int) {
	for ; r.held > keep; r.held-- {
		i := r.next - r.held
		if i < 0 {
			i += r.slots
		}
		atomic.StoreUint32(slotStatus(r.slot(i)), unix.TP_STATUS_KERNEL)
	}
}

// slotFrame is the frame in a slot, from its Ethernet header on, and the
// virtio_net_hdr in front of it where the socket has one.
func slotFrame(slot []byte) (vnet, frame []byte) {
	h := (*unix.Tpacket2Hdr)(unsafe.Pointer(unsafe.SliceData(slot)))
	mac, n := int(h.Mac), int(h.Snaplen)
	if mac < vnetLen || mac > len(slot) || n > len(slot)-mac { // the kernel never does
		return nil, nil
	}
	return slot[mac-vnetLen : mac], slot[mac : mac+n]
}

// packetFilter is the socket filter (bpf(4)) of frames for local: whole UDP packets,
// untagged, addressed to this machine, from the network device with index dev or lo,
// for one of the qpns numbers from firstQPN on. qpns is a power of two of at least
// 2^8, and firstQPN a multiple of it.
func packetFilter(local netip.AddrPort, dev, lo int, firstQPN, qpns uint32) []unix.SockFilter {
	const (
		ancillary = 0xfffff000 // SKF_AD_OFF
		pktType   = ancillary + 4
		ifindex   = ancillary + 8
		vlan      = ancillary + 48 // SKF_AD_VLAN_TAG_PRESENT
	)
	var f []unix.SockFilter
	// want goes on where the value of size bytes at off, after and, is k.
	want := func(size uint16, off, and, k uint32) {
		f = append(f, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | size, K: off})
		if and != 0 {
			f = append(f, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: and})
		}
		f = append(f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k})
	}
	f = append(f, // where it is dev, the next instruction is left out
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | unix.BPF_W, K: ifindex},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(dev), Jt: 1})
	f = append(f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(lo)})
	udp := uint32(etherLen + ip6Len)
	want(unix.BPF_W, pktType, 0, unix.PACKET_HOST)
	want(unix.BPF_W, vlan, 0, 0)
	address := local.Addr().AsSlice()
	at := uint32(etherLen + 24)
	if local.Addr().Is4() {
		udp, at = etherLen+ip4Len, etherLen+16
		want(unix.BPF_B, etherLen, 0, 0x45)
		want(unix.BPF_B, etherLen+9, 0, protocolUDP)
		want(unix.BPF_H, etherLen+6, fragmentMask, 0)
	} else {
		want(unix.BPF_B, etherLen+6, 0, protocolUDP)
	}
	for ; len(address) > 0; address, at = address[4:], at+4 {
		want(unix.BPF_W, at, 0, uint32(address[0])<<24|uint32(address[1])<<16|uint32(address[2])<<8|uint32(address[3]))
	}
	want(unix.BPF_H, udp+2, 0, uint32(local.Port()))
	if qpns < 1<<24 { // the two upper bytes of the BTH's queue pair number
		want(unix.BPF_H, udp+udpLen+5, 0xffff&^(qpns>>8-1), firstQPN>>8)
	}
	f = append(f, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18}, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
	for i := range f {
		if f[i].Code == unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K && f[i].Jt == 0 {
			f[i].Jf = uint8(len(f) - 2 - i) // to the last instruction
		}
	}
	return f
}

func attachFilter(fd int, f []unix.SockFilter) error {
	return os.NewSyscallError("setsockopt SO_ATTACH_FILTER",
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}))
}
