package softroce

import (
	"os"
	"unsafe"

	"errors"
	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma/roce"
)

const (
	// trainBuffers is how many trains longer than a slot one Rx hands out.
	trainBuffers = 4
	// trainBytes holds the longest one with all its headers.
	trainBytes = 1<<16 + headroom
	// scanSlots bounds the slots that one Rx looks at, whatever is in them.
	scanSlots = 4 * burst
)

// packetSocket makes the system calls of a PacketLink, and reads its ring. Trains
// that do not fit a slot come through the socket's queue (PACKET_COPY_THRESH); their
// slot in the ring tells when.
type packetSocket struct {
	link   *PacketLink
	fd     int
	vnet   bool // frames carry a virtio_net_hdr
	trains bool // the kernel sends trains
	ring   packetRing

	// The train of which some packets are still to be handed out.
	rest     []byte
	restIn   bool // rest is in the ring's latest slot
	restSize int
	restID   uint16
	restStep uint16
	head     received

	long    [trainBuffers][]byte
	longN   int // of them, in use
	pseudos [burst][8 + ip6Len + udpLen]byte

	tx      [burst]mmsghdr
	txVec   [burst]unix.Iovec
	txTrain [burst]int // frames in each message
}

// open makes the socket, which receives for its link from then on. mtu is the
// longest IP packet that is no train.
func (s *packetSocket) open(mtu int) (err error) {
	if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	set := func(option, value int) {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.fd, unix.SOL_PACKET, option, value))
		}
	}
	set(unix.PACKET_VERSION, unix.TPACKET_V2)
	if vnetTrains {
		set(unix.PACKET_VNET_HDR, 1)
		set(unix.PACKET_COPY_THRESH, 1)
		s.vnet, s.trains = true, true
		for i := range s.long {
			s.long[i] = make([]byte, trainBytes)
		}
	}
	if err != nil {
		return err
	}
	l := s.link
	if err := attachFilter(s.fd, packetFilter(l.attr.Local, l.dev.Index, l.lo, 0, 1<<24)); err != nil {
		return err
	}
	if s.ring, err = newPacketRing(s.fd, mtu); err != nil {
		return err
	}
	// Without CAP_NET_ADMIN net.core.rmem_max and wmem_max bound what is granted.
	for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o[0], socketBytes) != nil {
			if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o[1], socketBytes); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
	}
	// Bound to no device, for the filter chooses two: its own and loopback.
	return os.NewSyscallError("bind", unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: s.protocol()}))
}

func (s *packetSocket) v4() bool { return s.link.attr.Local.Addr().Is4() }

// protocol is the EtherType in network order.
func (s *packetSocket) protocol() uint16 {
	p := uint16(unix.ETH_P_IPV6)
	if s.v4() {
		p = unix.ETH_P_IP
	}
	return p<<8 | p>>8
}

func (s *packetSocket) close() error {
	err := s.ring.close()
	if s.fd >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(s.fd)))
		s.fd = -1
	}
	return err
}

// send sends at most burst frames, as mmsgSocket.send does.
func (s *packetSocket) send(frames []Frame) (taken, refused int, errno unix.Errno) {
	if len(frames) == 1 {
		b := s.whole(&frames[0], frames[0].Len, 0)
		to := &frames[0].Path.Link.(*packetPath).to
		if _, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrLinklayer); errno != 0 {
			return 0, 1, errno
		}
		return 1, 0, 0
	}
	messages := 0
	for at := 0; at < len(frames); messages++ {
		n := 1
		if s.trains {
			n = trainLength(frames[at:], samePacketPath)
		}
		total, size := 0, 0
		for i := range frames[at : at+n] {
			f := &frames[at+i]
			total += f.Len
			s.txVec[at+i].Base = unsafe.SliceData(f.Data)
			s.txVec[at+i].SetLen(f.Len)
		}
		if n > 1 {
			size = frames[at].Len
			s.number(frames[at : at+n])
		}
		b := s.whole(&frames[at], total, size) // the first vector begins with the headers
		s.txVec[at].Base = unsafe.SliceData(b)
		s.txVec[at].SetLen(len(b))
		h := &s.tx[messages].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&frames[at].Path.Link.(*packetPath).to)), unix.SizeofSockaddrLinklayer
		h.Iov = &s.txVec[at]
		h.SetIovlen(n)
		s.txTrain[messages] = n
		at += n
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.tx)), uintptr(messages), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		n, refused = 0, s.txTrain[0]
	}
	for _, k := range s.txTrain[:n] {
		taken += k
	}
	for at, i := taken, int(n); i < messages; i++ { // those may leave in other trains, or alone
		k := s.txTrain[i]
		s.number(frames[at : at+k])
		at += k
	}
	if refused > 1 && (errno == unix.EINVAL || errno == unix.EIO || errno == unix.EMSGSIZE) {
		s.trains = false // this device cannot; it may still send packets one by one
		return taken, 0, unix.EINTR
	}
	return taken, refused, errno
}

// number gives a train the identifications that the kernel will, where it has any.
func (s *packetSocket) number(train []Frame) {
	if s.v4() {
		number(train, 0)
	}
}

// whole is the memory of a frame with its headers in front, for bytes of packets.
func (s *packetSocket) whole(f *Frame, bytes, size int) []byte {
	h := &f.Path.Link.(*packetPath).head
	b := s.link.tx.whole(f)
	h.put(b[:headroom], bytes, size)
	return b[headroom-h.n:]
}

func samePacketPath(a, b *Path) bool {
	p, q := a.Link.(*packetPath), b.Link.(*packetPath)
	return p.dst == q.dst
}

// giveBack returns the slots of the last receive to the kernel, but not one of which
// packets are still to be handed out.
func (s *packetSocket) giveBack() {
	keep := 0
	if s.restIn && len(s.rest) > 0 {
		keep = 1
	}
	s.ring.give(keep)
}

// receive hands out packets where they lie in the ring, or in a buffer of the
// socket's for trains that were too long for it.
func (s *packetSocket) receive(frames []Frame) int {
	s.giveBack()
	s.longN = 0
	if len(s.rest) > 0 && !s.restIn {
		s.longN = 1 // see long: the first buffer is where rest lies
	}
	frames = frames[:min(len(frames), burst)]
	k := s.cut(frames, 0)
	st := &s.link.stats
	for scanned := 0; k < len(frames) && scanned < scanSlots && s.longN < trainBuffers; scanned++ {
		slot, status, ok := s.ring.take()
		if !ok {
			break
		}
		st.RxFrames++
		vnet, frame := slotFrame(slot)
		inRing := true
		if status&unix.TP_STATUS_COPY != 0 {
			inRing = false
			n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), uintptr(unsafe.Pointer(&s.long[s.longN][0])), trainBytes, unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
			if errno != 0 || n > trainBytes || n < vnetLen {
				st.DropLong++
				continue
			}
			b := s.long[s.longN][:n]
			vnet, frame = b[:vnetLen], b[vnetLen:]
			s.longN++
		} else if (*unix.Tpacket2Hdr)(unsafe.Pointer(unsafe.SliceData(slot))).Len > uint32(len(frame)) {
			st.DropLong++
			continue
		}
		if !s.vnet {
			vnet = nil
		}
		if status&unix.TP_STATUS_VLAN_VALID != 0 || !parseFrame(frame, s.link.attr.Local, &s.head) || !s.begin(vnet, inRing) {
			st.DropHeader++
			continue
		}
		k = s.cut(frames, k)
	}
	if len(s.rest) > 0 && !s.restIn && s.longN > 1 { // it lies in the last buffer: keep that one first
		last := s.longN - 1
		s.long[0], s.long[last] = s.long[last], s.long[0]
	}
	return k
}

// begin prepares handing out the packets of the frame that was parsed.
func (s *packetSocket) begin(vnet []byte, inRing bool) bool {
	p := s.head.payload
	size := trainSize(vnet, len(p))
	if len(p) < roce.MinPacket || size < roce.MinPacket {
		return false
	}
	s.rest, s.restIn, s.restSize, s.restID, s.restStep = p, inRing, size, s.head.ident, 0
	if size >= len(p) {
		return true
	}
	s.link.stats.RxTrains++
	if second := p[size:min(2*size, len(p))]; s.head.v4 && len(second) >= roce.MinPacket {
		s.restStep = trainIdents(&s.head, second)
	}
	return true
}

// cut fills frames from k on with the packets of rest.
func (s *packetSocket) cut(frames []Frame, k int) int {
	for ; k < len(frames) && len(s.rest) > 0; k++ {
		n := min(s.restSize, len(s.rest))
		f := &frames[k]
		f.Data, f.Len, f.Src, f.Pseudo = s.rest[:n:n], n, s.head.src, nil
		if s.head.v4 && (s.restID != 0 || !s.head.plain) {
			f.Pseudo = s.head.pseudo(s.pseudos[k][:0], n, s.restID)
		}
		s.rest = s.rest[n:]
		s.restID += s.restStep
	}
	return k
}
