package softroce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

const (
	// socketBytes is what a link asks for as receive and as send buffer. The kernel
	// doubles it for its own bookkeeping.
	socketBytes = 8 << 20

	// skbBytes is what one packet of the largest path MTU takes from the receive
	// buffer: 4152 bytes and the kernel's skb_shared_info fill an 8 KiB allocation, and
	// struct sk_buff comes on top (include/linux/skbuff.h, SKB_TRUESIZE).
	skbBytes = 8192 + 256

	// hotLooks is how many times Rx looks into the hot socket while the loop spins.
	hotLooks = 4
)

// UDPLink carries packets over UDP sockets: one that is bound to the link's address,
// and up to maxConnected more on the same port that are connected to a peer each,
// which makes sending and receiving cheaper (see udpPeer). The kernel sends IPv4 with
// "don't fragment" and with identifications that the sender can know, so it can
// compute the ICRC; a receiver cannot see them (see Idents). A peer that numbers its
// packets otherwise (rdma_rxe, RNICs) is understood over IPv6, or through a packet
// socket or poll-mode port.
type UDPLink struct {
	sock mmsgSocket
	attr LinkAttr
	rcv  int // receive buffer as granted, bytes
	zone uint32
	wake wake

	sockets []*udpSocket // those in use: the one for all, then the connected ones
	hot     *udpSocket   // of them, the one that received last
	turn    int
	next    int
	spare   []*udpSocket // connected to the sink
	spareNo error        // why there are none
	sink    *udpPeer     // a socket of the link's that drops all
	sinkFD  int
	boxes   []byte // memory of the mailboxes; nil: there are none
	boxesNo error  // why

	peers    map[netip.AddrPort]*udpPeer
	lastName uint64 // the start of the last IPv4 sockaddr of the socket for all
	last     *udpPeer
	unknown  udpPeer // the last that is none of peers

	tx txPool

	txErrors uint64
	txErr    error
}

// NewUDPLink binds a socket to addr, which must be an address of this machine: it
// is part of every packet's ICRC. Port 0 lets the kernel choose; peers learn it
// from Attr. One address can have port 4791 once.
func NewUDPLink(addr netip.AddrPort) (*UDPLink, error) {
	ip := addr.Addr().Unmap()
	if !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() {
		return nil, fmt.Errorf("softroce: UDP link at %v; give one address of this machine", addr)
	}
	ifc, err := interfaceOf(ip)
	if err != nil {
		return nil, err
	}
	zone, err := zoneIndex(ip)
	if err != nil {
		return nil, err
	}
	l := &UDPLink{zone: zone, sinkFD: -1, peers: map[netip.AddrPort]*udpPeer{}}
	if err := l.wake.open(); err != nil {
		return nil, err
	}
	fd, trains, err := openUDP(netip.AddrPortFrom(ip, addr.Port()), zone, false)
	if err != nil {
		return nil, fmt.Errorf("softroce: UDP link at %v: %w", addr, errors.Join(err, l.wake.close()))
	}
	l.hot = &udpSocket{fd: fd}
	l.sockets = []*udpSocket{l.hot}
	local, err := localAddr(fd)
	if err == nil {
		l.rcv, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	}
	if err != nil {
		return nil, fmt.Errorf("softroce: UDP link at %v: %w", addr, errors.Join(err, l.Close()))
	}
	headers := ip4Len + udpLen
	if ip.Is6() {
		headers = ip6Len + udpLen
	}
	l.attr = LinkAttr{Name: "softroce+udp", Local: local, MTU: min(ifc.MTU-headers, frameBytes), Queue: max(l.rcv/skbBytes, 1)}
	l.attr.Trains = trains
	l.sock.init(ip.Is6(), trains)
	l.sock.source = l.source
	if l.attr.Local.Addr().Is4() {
		l.unknown.idents = &Idents{stranger: true}
	}
	l.tx = newTxPool(0, l.attr.MTU)
	if l.spareNo = l.openSpares(); l.spareNo != nil {
		l.closeSpares()
	}
	return l, nil
}

// openUDP makes a socket. shared lets it be bound where another one is already.
// trains tells that the kernel can send trains of packets.
func openUDP(addr netip.AddrPort, zone uint32, shared bool) (fd int, trains bool, err error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, false, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	type option struct{ level, name, value int }
	// Trains need the UDP checksum (net/ipv4/udp.c, udp_send_skb: EINVAL without).
	// The kernel leaves it to the card, and the ICRC does not cover it. Linux has
	// UDP_SEGMENT since 4.18 and UDP_GRO, without which trains are cut up before they
	// are received, since 5.0.
	trains = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, 0) == nil
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	noChecksum := 1
	if trains {
		noChecksum = 0
	}
	options := []option{
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO},
		{unix.SOL_SOCKET, unix.SO_NO_CHECK, noChecksum},
	}
	if family == unix.AF_INET6 {
		options = []option{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1},
			{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO},
			{unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, noChecksum},
			{unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1},
		}
	}
	if shared {
		options = append(options, option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	}
	for _, o := range options {
		if err = unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return -1, false, os.NewSyscallError("setsockopt", err)
		}
	}
	// Without CAP_NET_ADMIN net.core.rmem_max and wmem_max bound what is granted.
	for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBytes) != nil {
			if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBytes); err != nil {
				return -1, false, os.NewSyscallError("setsockopt", err)
			}
		}
	}
	if err = unix.Bind(fd, sockaddr(addr, zone)); err != nil {
		return -1, false, os.NewSyscallError("bind", err)
	}
	return fd, trains, nil
}

// sockaddr is addr; zone is the interface of link-local addresses.
func sockaddr(addr netip.AddrPort, zone uint32) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if addr.Addr().IsLinkLocalUnicast() {
		sa.ZoneId = zone
	}
	return sa
}

func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, errors.New("getsockname: unexpected address family")
}

// interfaceOf is the interface that owns ip.
func interfaceOf(ip netip.Addr) (net.Interface, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return net.Interface{}, fmt.Errorf("softroce: list interfaces: %w", err)
	}
	for _, ifc := range ifs {
		addrs, err := ifc.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if o, ok := netip.AddrFromSlice(n.IP); ok && o.Unmap() == ip.WithZone("") {
					return ifc, nil
				}
			}
		}
	}
	if lo, ok := loopback(ifs); ok && ip.IsLoopback() { // all of 127.0.0.0/8 is local
		return lo, nil
	}
	return net.Interface{}, fmt.Errorf("softroce: no interface of this machine has the address %v", ip)
}

func loopback(ifs []net.Interface) (net.Interface, bool) {
	for _, ifc := range ifs {
		if ifc.Flags&net.FlagLoopback != 0 {
			return ifc, true
		}
	}
	return net.Interface{}, false
}

func zoneIndex(ip netip.Addr) (uint32, error) {
	if ip.Zone() == "" {
		return 0, nil
	}
	ifc, err := net.InterfaceByName(ip.Zone())
	if err != nil {
		return 0, fmt.Errorf("softroce: zone of %v: %w", ip, err)
	}
	return uint32(ifc.Index), nil
}

// Attr implements Link.
func (l *UDPLink) Attr() LinkAttr { return l.attr }

// ReceiveBuffer is the socket's receive buffer as the kernel granted it, bytes. It
// is twice 8 MiB with CAP_NET_ADMIN, else twice net.core.rmem_max at most.
func (l *UDPLink) ReceiveBuffer() int { return l.rcv }

// TxErrors counts the frames that the kernel refused for a reason other than a full
// queue; they count as lost. last is the reason of the latest.
func (l *UDPLink) TxErrors() (n uint64, last error) { return l.txErrors, l.txErr }

// Trains reports whether packets of one length leave in trains, one system call and
// one pass through the kernel's layers for up to 64 of them. It turns false when a
// device refuses one.
func (l *UDPLink) Trains() bool { return l.sock.trains }

// Connected is how many peers have a socket of their own, and why no peer can.
func (l *UDPLink) Connected() (n int, err error) { return len(l.sockets) - 1, l.spareNo }

// Mailboxes is how many peers' lone packets arrive without a system call now, and why
// none can.
func (l *UDPLink) Mailboxes() (n int, err error) {
	for _, s := range l.sockets {
		if s.box.opened {
			n++
		}
	}
	return n, l.boxesNo
}

// Path implements Link. The source port is the link's.
func (l *UDPLink) Path(dst netip.AddrPort) (Path, error) {
	if dst.Addr().Is4() != l.attr.Local.Addr().Is4() {
		return Path{}, fmt.Errorf("softroce: %v is not of the address family of %v", dst, l.attr.Local)
	}
	p := l.peers[dst]
	if p == nil {
		p = l.newPeer(dst)
		l.connect(p)
		l.peers[dst] = p
		l.lastName = 0
	}
	p.paths++
	return Path{Dst: dst, Pseudo: roce.AppendPseudo(nil, l.attr.Local, dst), Link: p}, nil
}

// ClosePath implements PathCloser.
func (l *UDPLink) ClosePath(path *Path) {
	p := path.Link.(*udpPeer)
	if p.paths--; p.paths == 0 {
		delete(l.peers, p.addr)
		l.lastName = 0
		l.disconnect(p)
	}
}

// TxAlloc implements Link.
func (l *UDPLink) TxAlloc(frames []Frame) int { return l.tx.alloc(frames) }

// TxFree implements Link.
func (l *UDPLink) TxFree(frames []Frame) { l.tx.give(frames) }

// Tx implements Link: one system call for a burst to one peer. The kernel copies, so
// the frames are free again at the return.
func (l *UDPLink) Tx(frames []Frame) int {
	sent := 0
	for calls := 0; sent < len(frames) && calls < 2*burst; calls++ {
		to := l.socketTo(&frames[sent])
		end := sent + 1
		for end < len(frames) && end-sent < burst && l.socketTo(&frames[end]) == to {
			end++
		}
		n, refused, errno := l.sock.send(to, frames[sent:end])
		sent += n
		if errno == 0 || errno == unix.ECONNREFUSED { // nobody was there for an earlier packet; this one was not looked at
			continue
		}
		if errno == unix.EAGAIN || errno == unix.ENOBUFS || errno == unix.ENOMEM {
			break
		}
		if to.peer != nil {
			to.peer.counted = false
		}
		if refused > 1 && !l.sock.trains { // they go one by one
			continue
		}
		// A firewall, a route, an MTU: trying again does not help.
		l.txErrors += uint64(refused)
		l.txErr = errno
		sent += refused
	}
	l.tx.give(frames[:sent])
	return sent
}

// Rx implements Link. It looks into the socket that received last, and into another
// that had something lately or, from time to time, into any. While the loop spins it
// looks into the first several times: a look takes less than the rest of a cycle does,
// so what comes meanwhile is found 0.15 µs earlier on average.
func (l *UDPLink) Rx(frames []Frame) int {
	if n := l.sock.hand(frames); n > 0 {
		return n
	}
	if l.wake.spinning() {
		l.unwatch()
	}
	if n := l.fetch(frames); n > 0 { // before any socket: what a closed mailbox has came before that
		return n
	}
	if s := l.another(); s != nil && l.look(s) {
		l.hot = s
		return l.sock.hand(frames)
	}
	looks, passed := hotLooks, l.hot.box.passed()
	if l.hot.box.opened {
		looks = 1
		if !l.hot.box.owed() {
			l.hot.row = 0
			if l.turn%boxEvery != 0 {
				return 0
			}
		}
	}
	for range looks {
		if l.look(l.hot) {
			return l.sock.hand(frames)
		}
		if l.wake.on {
			return 0
		}
	}
	if s := l.hot; s.plain && s.box.mem != nil && !s.box.opened {
		s.box.open(passed)
	}
	return 0
}

// fetch takes packets out of a mailbox. One that waits for packets of its socket makes
// that the hot one.
func (l *UDPLink) fetch(frames []Frame) int {
	for _, s := range l.sockets[1:] {
		if s.box.mem == nil {
			continue
		}
		s.box.free() // what the last Rx handed out
		if n := s.box.hand(frames, s.peer); n > 0 {
			l.hot = s
			if s.box.opened {
				s.inRow(s.fd, n)
			}
			return n
		}
		if s.box.opened && s.box.owed() {
			l.hot = s
			break
		}
	}
	return 0
}

// Watch implements Watcher: the mailboxes, as long as there is nothing else to look at.
func (l *UDPLink) Watch(ws []rdma.Watched) (_ []rdma.Watched, ok bool) {
	if !l.hot.box.opened {
		return ws, false
	}
	for _, s := range l.sockets {
		b := &s.box
		switch {
		case !b.opened:
			if s.misses < coldMisses {
				return ws, false
			}
		case b.owed():
			return ws, false
		default:
			state := b.state()
			old := atomic.LoadUint32(state)
			if old == b.next+1 {
				return ws, false
			}
			ws = append(ws, rdma.Watched{Word: state, Value: old}, rdma.Watched{Word: b.word(boxPassed), Value: b.taken})
		}
	}
	return ws, true
}

// look takes what a socket has. A loop that sleeps between its messages finds several
// at once then, whose answers leave together, and none behind them: it need not look
// there before it is about to sleep again.
func (l *UDPLink) look(s *udpSocket) bool {
	if l.wake.on && s.emptied {
		s.emptied = false
		return false
	}
	return l.sock.take(s, l.wake.on)
}

// RxFree implements Link.
func (l *UDPLink) RxFree([]Frame) {}

// FD implements Link.
func (l *UDPLink) FD() int { return l.wake.ep }

// Arm implements Armer. Whichever socket ends the sleep, the next looks find it; that
// of none of the peers now and then.
func (l *UDPLink) Arm() (idle bool) {
	l.wake.looks = 0
	for i, s := range l.sockets {
		if i > 0 || len(l.peers) >= len(l.sockets) {
			s.misses = min(s.misses, coldMisses-1)
		}
	}
	if l.wake.on {
		return true
	}
	for _, s := range l.sockets {
		if s.box.close(); s.box.mem != nil && s.box.arrived() {
			return false
		}
	}
	for _, s := range l.sockets {
		if l.wake.watch(s.fd) != nil { // then the loop must not sleep
			l.unwatch()
			return false
		}
	}
	l.wake.on = true
	return true
}

func (l *UDPLink) unwatch() {
	for _, s := range l.sockets {
		l.wake.unwatch(s.fd)
	}
	l.wake.on = false
}

// Close implements Link.
func (l *UDPLink) Close() error {
	if l.sockets == nil {
		return nil
	}
	fds := []int{l.sockets[0].fd}
	for _, s := range l.sockets[1:] {
		fds = append(fds, s.fd)
	}
	l.sockets = nil
	var err error
	for _, fd := range fds {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
	}
	return errors.Join(err, l.closeSpares(), l.closeBoxes(), l.wake.close())
}
