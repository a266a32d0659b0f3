package softroce

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// rxMessages is how many datagrams, or trains of them, one system call takes.
	rxMessages = 32
	// datagramBytes holds the longest datagram or train.
	datagramBytes = 1 << 16
)

// mmsgSocket makes the system calls of a UDPLink. They are raw: its sockets do not
// block, so the Go scheduler need not hear of them (about 50 ns less each, and no
// hand-off of the P).
//
// Packets of one length to one peer travel as a train: the kernel takes them in one
// piece (UDP_SEGMENT), carries them through its layers as one, and cuts them up as
// late as it can, on loopback never. The receiver gets a train in one piece too
// (UDP_GRO). Over IPv4 the kernel counts the identifications of a train's packets up,
// and the ICRC covers them.
//
// The message headers point into Go memory: into this struct, into the link's frames
// and into a udpPeer that the frame's Path keeps alive. The heap does not move.
type mmsgSocket struct {
	v6     bool
	trains bool // the kernel sends trains

	tx      [burst]mmsghdr
	txVec   [burst]unix.Iovec
	txCtl   [burst]segmentControl
	txTrain [burst]int // frames in each message

	rx    [rxMessages]mmsghdr
	rxVec [rxMessages]unix.Iovec
	rxCtl [rxMessages]groControl
	names [rxMessages][unix.SizeofSockaddrInet6]byte
	data  []byte // rxMessages × datagramBytes

	// The messages of the last system call, of which rxAt is the next to hand out,
	// from byte rxOff on. They came to the socket from.
	rxCount, rxAt, rxOff int
	from                 *udpSocket
	source               func(name *[unix.SizeofSockaddrInet6]byte) *udpPeer
}

// udpSocket is one of a link's sockets.
type udpSocket struct {
	fd   int
	peer *udpPeer // to which it is connected; nil: to none
	// idle: the last system call found nothing, so probably one datagram comes next,
	// which recvmsg takes in less time (0.25 µs of 4 for a round trip's half).
	idle   bool
	misses int // calls in a row that found nothing
	// emptied: the last call asked for more than there was.
	emptied bool
	alone
}

// mmsghdr is struct mmsghdr of a 64-bit Linux.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   uint32
}

// segmentControl is the control message that makes a train: its packets' length.
type segmentControl struct {
	hdr  unix.Cmsghdr
	size uint16
	_    [6]byte
}

// groControl is the control message that comes with a train.
type groControl struct {
	hdr  unix.Cmsghdr
	size int32
	_    [4]byte
}

func (s *mmsgSocket) init(v6, trains bool) {
	s.v6, s.trains = v6, trains
	s.data = make([]byte, rxMessages*datagramBytes)
	for i := range s.rx {
		s.rxVec[i].Base = &s.data[i*datagramBytes]
		s.rxVec[i].SetLen(datagramBytes)
		h := &s.rx[i].hdr
		h.Iov = &s.rxVec[i]
		h.SetIovlen(1)
		h.Control = (*byte)(unsafe.Pointer(&s.rxCtl[i]))
	}
	for i := range s.txCtl {
		c := &s.txCtl[i].hdr
		c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		c.SetLen(unix.CmsgLen(2))
	}
	s.rxCount = rxMessages
	s.resetRx()
}

// resetRx prepares the headers that the kernel wrote to for its next use.
func (s *mmsgSocket) resetRx() {
	for i := range s.rx[:s.rxCount] {
		h := &s.rx[i].hdr
		h.Name, h.Namelen = &s.names[i][0], unix.SizeofSockaddrInet6
		h.SetControllen(int(unsafe.Sizeof(groControl{})))
	}
	s.rxCount, s.rxAt, s.rxOff = 0, 0, 0
}

// putSockaddr writes addr as a struct sockaddr_in or sockaddr_in6 and returns its
// length. zone is the interface of link-local addresses.
func putSockaddr(b *[unix.SizeofSockaddrInet6]byte, addr netip.AddrPort, zone uint32) uint32 {
	binary.BigEndian.PutUint16(b[2:], addr.Port())
	if addr.Addr().Is4() {
		binary.NativeEndian.PutUint16(b[0:], unix.AF_INET)
		a := addr.Addr().As4()
		copy(b[4:], a[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b[0:], unix.AF_INET6)
	a := addr.Addr().As16()
	copy(b[8:], a[:])
	if addr.Addr().IsLinkLocalUnicast() {
		binary.NativeEndian.PutUint32(b[24:], zone)
	}
	return unix.SizeofSockaddrInet6
}

// send sends at most burst frames and returns how many the kernel took; errno, if
// not 0, is about the refused ones that follow. to must be connected to the peer of
// all of them, or to nobody.
func (s *mmsgSocket) send(to *udpSocket, frames []Frame) (taken, refused int, errno unix.Errno) {
	if len(frames) == 1 { // the usual case at low load: the plain call is cheaper
		f := &frames[0]
		var name *[unix.SizeofSockaddrInet6]byte
		var nameLen uint32
		if to.peer == nil {
			p := f.Path.Link.(*udpPeer)
			name, nameLen = &p.name, p.nameLen
		} else {
			s.number(to, frames, 0)
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(to.fd), uintptr(unsafe.Pointer(unsafe.SliceData(f.Data))),
			uintptr(f.Len), unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(name)), uintptr(nameLen))
		if errno != 0 {
			if to.peer != nil {
				s.number(to, frames, 0)
			}
			return 0, 1, errno
		}
		if to.peer != nil {
			to.peer.ident++
		}
		return 1, 0, 0
	}
	messages := 0
	for at := 0; at < len(frames); messages++ {
		n := 1
		if s.trains {
			n = trainLength(frames[at:], sameUDPPath)
		}
		h := &s.tx[messages].hdr
		h.Name, h.Namelen = nil, 0
		if to.peer == nil {
			p := frames[at].Path.Link.(*udpPeer)
			h.Name, h.Namelen = &p.name[0], p.nameLen
		}
		h.Iov = &s.txVec[at]
		h.SetIovlen(n)
		for i := range frames[at : at+n] {
			f := &frames[at+i]
			s.txVec[at+i].Base = unsafe.SliceData(f.Data)
			s.txVec[at+i].SetLen(f.Len)
		}
		h.Control = nil
		h.SetControllen(0)
		if n > 1 {
			c := &s.txCtl[messages]
			c.size = uint16(frames[at].Len)
			h.Control = (*byte)(unsafe.Pointer(c))
			h.SetControllen(int(unsafe.Sizeof(*c)))
		}
		s.number(to, frames[at:at+n], messages)
		s.txTrain[messages] = n
		at += n
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(to.fd), uintptr(unsafe.Pointer(&s.tx)), uintptr(messages), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		n, refused = 0, s.txTrain[0]
	}
	for _, k := range s.txTrain[:n] {
		taken += k
	}
	for at, i := taken, int(n); i < messages; i++ { // those may leave in other trains, or alone
		k := s.txTrain[i]
		s.number(to, frames[at:at+k], i)
		at += k
	}
	if to.peer != nil {
		to.peer.ident += uint16(n)
		if errno == 0 && int(n) < messages {
			to.peer.counted = false // what stopped the kernel may have taken an identification
		}
	}
	if refused > 1 && (errno == unix.EINVAL || errno == unix.EIO || errno == unix.EMSGSIZE) {
		// This device cannot, for instance because it has no checksum offload
		// (net/ipv4/udp.c, udp_send_skb). It may still send packets one by one.
		s.trains = false
	}
	return taken, refused, errno
}

func sameUDPPath(a, b *Path) bool { return a.Link.(*udpPeer) == b.Link.(*udpPeer) }

// number gives the packets of a call's message i the identifications that the kernel
// will, where it has any; done twice, it undoes that.
func (s *mmsgSocket) number(to *udpSocket, packets []Frame, i int) {
	if s.v6 {
		return
	}
	first := uint16(0)
	if to.peer != nil {
		first = to.peer.ident + uint16(i)
	}
	number(packets, first)
}

// take receives from a socket; all: also if only one is likely to be there. An error
// other than "nothing there" belongs to an earlier packet of ours and costs none of
// these.
func (s *mmsgSocket) take(from *udpSocket, all bool) bool {
	s.resetRx()
	from.emptied = false
	var n uintptr
	var errno unix.Errno
	switch h := &s.rx[0].hdr; {
	case from.plain:
		n, _, errno = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(from.fd), uintptr(unsafe.Pointer(&s.data[0])), datagramBytes, unix.MSG_DONTWAIT, 0, 0)
		s.rx[0].n, n = uint32(n), 1
		h.SetControllen(0)
	case from.idle && !all:
		if from.peer != nil { // a name takes the kernel 50 ns
			h.Name, h.Namelen = nil, 0
		}
		n, _, errno = unix.RawSyscall(unix.SYS_RECVMSG, uintptr(from.fd), uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT)
		s.rx[0].n, n = uint32(n), 1
	default:
		n, _, errno = unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(from.fd), uintptr(unsafe.Pointer(&s.rx)), rxMessages, unix.MSG_DONTWAIT, 0, 0)
		from.emptied = n < rxMessages
	}
	from.idle = errno != 0
	if from.idle {
		if from.box.opened {
			from.box.looked(0)
		}
		s.rxCount = 1 // recvmsg may have written to the first header
		s.rxAt = 1
		from.misses++
		from.row = 0
		return false
	}
	from.misses = 0
	s.rxCount, s.from = int(n), from
	if from.box.opened {
		from.box.looked(int(n))
	}
	if from.peer != nil {
		from.took(from.fd, n == 1 && s.trainSize(0, int(s.rx[0].n)) == int(s.rx[0].n))
	}
	return true
}

// hand hands out packets of the last call.
func (s *mmsgSocket) hand(frames []Frame) int {
	k := 0
	for s.rxAt < s.rxCount && k < len(frames) {
		i := s.rxAt
		total := int(s.rx[i].n)
		size := s.trainSize(i, total)
		data := s.data[i*datagramBytes:][:total]
		peer := s.from.peer
		if peer == nil {
			peer = s.source(&s.names[i])
		}
		for {
			f := &frames[k]
			k++
			end := min(s.rxOff+size, total)
			f.Data, f.Src, f.Pseudo, f.Idents = data[s.rxOff:end:end], peer.addr, nil, peer.idents
			f.Len = len(f.Data)
			s.rxOff = end
			if end == total {
				s.rxAt, s.rxOff = i+1, 0
				break
			}
			if k == len(frames) {
				break
			}
		}
	}
	return k
}

// trainSize is the length of the packets in message i, which has total bytes.
func (s *mmsgSocket) trainSize(i, total int) int {
	c := &s.rxCtl[i]
	if int(s.rx[i].hdr.Controllen) >= unix.CmsgLen(4) && c.hdr.Level == unix.SOL_UDP && c.hdr.Type == unix.UDP_GRO && c.size > 0 {
		return int(c.size)
	}
	return total
}
