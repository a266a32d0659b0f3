package softroce

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsgSocket makes the system calls of a UDPLink. They are raw: the socket does not
// block, so the Go scheduler need not hear of them (about 50 ns less each, and no
// hand-off of the P).
//
// The message headers point into Go memory: into this struct, into the link's frames
// and into a udpPath that the frame's Path keeps alive. The heap does not move.
type mmsgSocket struct {
	fd    int
	v6    bool
	zone  uint32
	tx    [burst]mmsghdr
	txVec [burst]unix.Iovec
	rx    [burst]mmsghdr
	rxVec [burst]unix.Iovec
	names [burst][unix.SizeofSockaddrInet6]byte
	data  [burst][]byte
	used  int // headers of rx that the kernel wrote to at the last call

	lastName uint64 // the start of the last IPv4 sockaddr
	lastSrc  netip.AddrPort
}

// mmsghdr is struct mmsghdr of a 64-bit Linux.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   uint32
}

func (s *mmsgSocket) init(fd int, v6 bool, rx []byte) {
	s.fd, s.v6 = fd, v6
	for i := range s.rx {
		s.data[i] = rx[i*frameBytes:][:frameBytes:frameBytes]
		s.rxVec[i].Base = &s.data[i][0]
		s.rxVec[i].SetLen(frameBytes)
		h := &s.rx[i].hdr
		h.Name = &s.names[i][0]
		h.Namelen = unix.SizeofSockaddrInet6
		h.Iov = &s.rxVec[i]
		h.SetIovlen(1)
		s.tx[i].hdr.Iov = &s.txVec[i]
		s.tx[i].hdr.SetIovlen(1)
	}
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
// not 0, is about the next one.
func (s *mmsgSocket) send(frames []Frame) (int, unix.Errno) {
	if len(frames) == 1 { // the usual case at low load: the plain call is cheaper
		f := &frames[0]
		p := f.Path.Link.(*udpPath)
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(f.Data))),
			uintptr(f.Len), unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&p.name)), uintptr(p.len))
		if errno != 0 {
			return 0, errno
		}
		return 1, 0
	}
	for i := range frames {
		f := &frames[i]
		p := f.Path.Link.(*udpPath)
		h := &s.tx[i].hdr
		h.Name, h.Namelen = &p.name[0], p.len
		s.txVec[i].Base = unsafe.SliceData(f.Data)
		s.txVec[i].SetLen(f.Len)
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.tx)), uintptr(len(frames)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// receive takes at most burst packets. An error other than "nothing there" belongs
// to an earlier packet of ours and costs none of these.
func (s *mmsgSocket) receive(frames []Frame) int {
	for i := range s.rx[:s.used] {
		s.rx[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	s.used = 0
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.rx)),
		uintptr(min(len(frames), burst)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0
	}
	s.used = int(n)
	for i := range frames[:n] {
		f := &frames[i]
		f.Data, f.Len, f.Src, f.Pseudo = s.data[i], int(s.rx[i].n), s.source(i), nil
	}
	return int(n)
}

func (s *mmsgSocket) source(i int) netip.AddrPort {
	b := &s.names[i]
	if s.v6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:]))
	}
	if name := binary.NativeEndian.Uint64(b[:]); name != s.lastName {
		s.lastName = name
		s.lastSrc = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
	}
	return s.lastSrc
}
