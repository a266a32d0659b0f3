package softroce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConnected is how many peers get a socket of their own: each is a system call
	// more to look for packets.
	maxConnected = 4
	// coldMisses is after how many vain looks a socket is looked at but now and then,
	// and coldEvery how often then, in calls of Rx.
	coldMisses = 64
	coldEvery  = 16
	// countEvery is how long a link that lost count of a peer's identifications sends
	// from the socket for all before it asks again.
	countEvery = time.Millisecond
)

// udpPeer is where a link sends to. The first peers have a socket each, connected, for
// which the kernel looks up no route when it sends and no receiver when it receives:
// 0.6 to 0.7 of the round trip on a socket for all (loopback, and veth).
//
// Over IPv4 the kernel numbers what a connected socket sends, one for each call, from
// a random start. The link has the kernel show it one packet, counts along, and says
// what it counted to the ICRC. Where it lost count it sends from the socket for all,
// for which the identification is 0, until it has asked again.
type udpPeer struct {
	addr    netip.AddrPort
	name    [unix.SizeofSockaddrInet6]byte // addr as the kernel wants it
	nameLen uint32
	paths   int
	idents  *Idents // of what the peer sends; nil over IPv6

	socket  *udpSocket // connected to it; nil: none
	ident   uint16     // of the socket's next call
	counted bool       // ident is right
	asked   time.Time  // when it was asked for last
}

func (l *UDPLink) newPeer(addr netip.AddrPort) *udpPeer {
	p := &udpPeer{addr: addr}
	p.nameLen = putSockaddr(&p.name, addr, l.zone)
	if addr.Addr().Is4() {
		p.idents = &Idents{}
	}
	return p
}

// openSpares opens the sockets for peers, all at once and before anybody knows the
// port: one that is bound and not connected would take other peers' packets. They are
// connected to the link's sink. They are made here and now also because a socket
// belongs to the network namespace of the thread that made it.
func (l *UDPLink) openSpares() (err error) {
	all, local := l.sockets[0].fd, l.attr.Local
	if l.sinkFD, _, err = openUDP(netip.AddrPortFrom(local.Addr(), 0), l.zone, false); err != nil {
		return err
	}
	if err := attachFilter(l.sinkFD, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}); err != nil {
		return err
	}
	at, err := localAddr(l.sinkFD)
	if err != nil {
		return err
	}
	l.sink = l.newPeer(at)
	// All that share a port must say so, the first one too, but only while the others
	// join it: nobody else may.
	share := func(yes int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(all, unix.SOL_SOCKET, unix.SO_REUSEPORT, yes))
	}
	if err := share(1); err != nil {
		return err
	}
	for range maxConnected {
		fd, _, err := openUDP(local, l.zone, true)
		if err != nil {
			return err
		}
		s := &udpSocket{fd: fd, peer: l.sink}
		l.spare = append(l.spare, s)
		if err := l.point(s, l.sink); err != nil {
			return err
		}
	}
	if err := share(0); err != nil {
		return err
	}
	if err := l.checkCounting(); err != nil {
		return err
	}
	if err := l.openBoxes(l.spare); err != nil {
		l.boxesNo = fmt.Errorf("no mailboxes (CAP_BPF, Linux 5.12): %w", err)
	}
	return nil
}

// closeSpares closes what openSpares opened and what is not in use.
func (l *UDPLink) closeSpares() (err error) {
	for _, s := range l.spare {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(s.fd)))
	}
	l.spare = nil
	if l.sinkFD >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(l.sinkFD)))
		l.sinkFD = -1
	}
	return err
}

// checkCounting proves that this kernel counts as udpPeer says.
func (l *UDPLink) checkCounting() error {
	if l.sock.v6 {
		return nil
	}
	s := l.spare[0]
	first, err := l.askIdent(s.fd)
	if err != nil {
		return err
	}
	frames := make([]Frame, 3) // a train of two, and one alone
	path := Path{Link: l.sink}
	l.tx.alloc(frames)
	for i, n := range []int{24, 24, 28} {
		frames[i].Len, frames[i].Path = n, &path
	}
	n, _, errno := l.sock.send(s, frames)
	l.tx.give(frames)
	if errno != 0 || n != len(frames) {
		return fmt.Errorf("%d of %d packets sent to myself: %w", n, len(frames), errno)
	}
	calls := uint16(2)
	if !l.sock.trains {
		calls = 3
	}
	after, err := l.askIdent(s.fd)
	if err == nil && after != first+calls+1 {
		err = fmt.Errorf("this kernel went from IPv4 identification %d to %d with %d sends", first, after, calls+1)
	}
	return err
}

// askIdent is the identification of what the socket sends next, over IPv4. The kernel
// shows the packet of which one asks when it was sent, headers and all
// (Documentation/networking/timestamping.rst), unless net.core.tstamp_allow_data
// forbids it. That packet goes to the sink.
func (l *UDPLink) askIdent(fd int) (uint16, error) {
	const text = "which?!!"
	stamp := func(flags int) error {
		return os.NewSyscallError("setsockopt SO_TIMESTAMPING", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, flags))
	}
	if err := stamp(unix.SOF_TIMESTAMPING_TX_SCHED | unix.SOF_TIMESTAMPING_SOFTWARE); err != nil {
		return 0, err
	}
	err := unix.Sendto(fd, []byte(text), unix.MSG_DONTWAIT, sockaddr(l.sink.addr, l.zone))
	if err := errors.Join(os.NewSyscallError("sendto", err), stamp(0)); err != nil {
		return 0, err
	}
	var packet [256]byte
	for range 16 { // errors of earlier packets may lie before it
		n, _, _, _, err := unix.Recvmsg(fd, packet[:], nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return 0, fmt.Errorf("the kernel does not show what was sent (sysctl net.core.tstamp_allow_data): %w", err)
		}
		at := n - len(text) - udpLen - ip4Len
		if at < 0 || packet[at] != 0x45 || packet[at+9] != protocolUDP || string(packet[n-len(text):n]) != text {
			continue
		}
		return binary.BigEndian.Uint16(packet[at+4:]) + 1, nil
	}
	return 0, errors.New("the kernel does not show what was sent")
}

// point connects a socket to a peer.
func (l *UDPLink) point(s *udpSocket, p *udpPeer) error {
	s.peer = p
	return os.NewSyscallError("connect", unix.Connect(s.fd, sockaddr(p.addr, l.zone)))
}

// connect gives a peer a socket, if there is one left.
func (l *UDPLink) connect(p *udpPeer) {
	n := len(l.spare)
	if n == 0 {
		return
	}
	s := l.spare[n-1]
	if l.point(s, p) != nil {
		_ = l.point(s, l.sink) // the socket for all tells what is wrong, when it sends
		return
	}
	l.spare = l.spare[:n-1]
	p.socket = s
	s.idle, s.misses = true, 0
	if l.wake.on {
		l.unwatch() // and all anew before the loop sleeps again
	}
	l.sockets = append(l.sockets, s)
	l.hot = s
	l.count(p)
}

// disconnect takes a peer's socket back.
func (l *UDPLink) disconnect(p *udpPeer) {
	s := p.socket
	if s == nil {
		return
	}
	p.socket, p.counted = nil, false
	if l.wake.on {
		l.unwatch()
	}
	for i := range l.sockets {
		if l.sockets[i] == s {
			l.sockets = append(l.sockets[:i], l.sockets[i+1:]...)
			break
		}
	}
	l.hot = l.sockets[0]
	if l.sock.from == s { // what is left of its packets is nobody's
		l.sock.rxAt = l.sock.rxCount
	}
	if l.point(s, l.sink) != nil { // then it could take what it should not
		unix.Close(s.fd)
		return
	}
	s.idle = true
	for l.sock.take(s, true) {
	}
	s.reset(s.fd)
	s.box.empty()
	l.spare = append(l.spare, s)
}

// count asks for the identification of the peer's socket.
func (l *UDPLink) count(p *udpPeer) {
	if l.sock.v6 {
		p.counted = true
		return
	}
	p.asked = time.Now()
	id, err := l.askIdent(p.socket.fd)
	p.ident, p.counted = id, err == nil
}

// socketTo is the socket to send a frame from.
func (l *UDPLink) socketTo(f *Frame) *udpSocket {
	p := f.Path.Link.(*udpPeer)
	if p.socket == nil {
		return l.sockets[0]
	}
	if !p.counted {
		if time.Since(p.asked) > countEvery {
			l.count(p)
		}
		if !p.counted {
			return l.sockets[0]
		}
	}
	return p.socket
}

// another is a socket to look into besides the hot one.
func (l *UDPLink) another() *udpSocket {
	n := len(l.sockets)
	if n == 1 {
		return nil
	}
	l.turn++
	if l.turn%coldEvery == 0 {
		if s := l.sockets[l.turn/coldEvery%n]; s != l.hot {
			return s
		}
		return nil
	}
	for range n {
		l.next = (l.next + 1) % n
		if s := l.sockets[l.next]; s != l.hot && s.misses < coldMisses && !s.box.opened {
			return s
		}
	}
	return nil
}

// source is the sender of what the socket for all received.
func (l *UDPLink) source(name *[unix.SizeofSockaddrInet6]byte) *udpPeer {
	start := binary.NativeEndian.Uint64(name[:])
	if !l.sock.v6 && start == l.lastName {
		return l.last
	}
	port := binary.BigEndian.Uint16(name[2:])
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:8])), port)
	if l.sock.v6 {
		addr = netip.AddrPortFrom(netip.AddrFrom16([16]byte(name[8:24])), port)
	}
	p := l.peers[addr]
	if p == nil {
		p = &l.unknown
		p.addr = addr
	}
	l.lastName, l.last = start, p
	return p
}
