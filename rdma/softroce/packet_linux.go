package softroce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/internal/rtnetlink"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// PacketLinkName is the name of links over packet sockets.
const PacketLinkName = "softroce+packet"

const (
	// askEvery is how often an unanswered question for a MAC address is repeated,
	// and confirmEvery how often a known one is asked again, while there is something
	// to send. The kernel answers from its table.
	askEvery     = 5 * time.Millisecond
	confirmEvery = time.Second
)

// PacketLink carries packets over a packet socket (packet(7)) of one network device,
// and of the loopback device for peers on this machine. Unlike a UDP socket it sees
// and writes the whole header: it speaks with every RoCEv2 peer over IPv4 too, and
// checks the whole ICRC. Received packets are read where the kernel put them, without
// a system call. It needs CAP_NET_RAW, and passes the machine's packet filter by.
//
// The kernel keeps the addresses, routes and neighbours of the network device; the
// link asks it. A packet to a neighbour whose MAC address is not known yet is lost
// like any other, and the sender's timer sends it again.
type PacketLink struct {
	sock    packetSocket
	dev     *rtnetlink.Device
	sink    int // UDP socket that keeps the kernel from refusing what comes for the link
	attr    LinkAttr
	tx      txPool
	wake    wake
	lo      int // index of the loopback device
	started time.Time

	stats PacketStats
	txErr error
}

// PacketStats counts what a PacketLink saw.
type PacketStats struct {
	RxFrames   uint64 // frames that passed the socket's filter
	RxTrains   uint64 // of them, trains of packets
	DropHeader uint64 // a header with a wrong length or address, or a VLAN tag
	DropLong   uint64 // longer than any packet or train that there is room for
	RingFull   uint64 // frames that the kernel found no room for
	NoMAC      uint64 // packets lost because nobody had answered for the peer's MAC address
	TxErrors   uint64 // packets that the kernel refused; they count as lost
}

// packetPath is a way to a peer.
type packetPath struct {
	dst   netip.AddrPort
	to    unix.RawSockaddrLinklayer // the network device to send on
	hop   netip.Addr                // the peer, or the gateway
	head  packetHeader
	local bool          // the peer is on this machine: no MAC addresses
	known bool          // the MAC address of hop
	again time.Duration // when to ask for it again, since PacketLink.started
}

// NewPacketLink opens a link at addr, which is an address of the network device
// netdev; empty: of the one that has the address. Port 0 lets the kernel choose.
// Links may share a port, and with the kernel's rdma_rxe port 4791: each takes its own
// queue pair numbers, see FilterQPNs.
func NewPacketLink(netdev string, addr netip.AddrPort) (l *PacketLink, err error) {
	defer func() {
		if err != nil {
			l, err = nil, fmt.Errorf("softroce: packet link on %s at %v: %w", netdev, addr, errors.Join(err, l.Close()))
		}
	}()
	l = &PacketLink{sink: -1, started: time.Now(), wake: wake{ep: -1}}
	l.sock.fd = -1
	if err := l.wake.open(); err != nil {
		return l, err
	}
	ip := addr.Addr().Unmap()
	if netdev == "" {
		ifc, err := interfaceOf(ip)
		if err != nil {
			return l, err
		}
		netdev = ifc.Name
	}
	if l.dev, err = rtnetlink.Open(netdev); err != nil {
		return l, err
	}
	if err := l.checkDevice(ip); err != nil {
		return l, err
	}
	ifs, err := net.Interfaces()
	if err != nil {
		return l, err
	}
	lo, _ := loopback(ifs)
	l.lo = lo.Index
	headers := ip4Len + udpLen
	if ip.Is6() {
		headers = ip6Len + udpLen
	}
	mtu := min(l.dev.MTU-headers, frameBytes)
	if mtu < roce.MinPacket {
		return l, fmt.Errorf("its MTU of %d bytes is too small for RoCEv2", l.dev.MTU)
	}
	local := netip.AddrPortFrom(ip.WithZone(""), addr.Port())
	if l.sink, local, err = openSink(local, l.dev.Index); err != nil {
		return l, err
	}
	l.attr = LinkAttr{Name: PacketLinkName, Local: local, MTU: mtu}
	l.sock.link = l
	if err := l.sock.open(mtu + headers); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: run as root, or give the program CAP_NET_RAW (setcap cap_net_raw+ep)", err)
		}
		return l, err
	}
	l.attr.Queue, l.attr.Trains = l.sock.ring.slots, l.sock.trains
	l.tx = newTxPool(headroom, mtu)
	return l, nil
}

// ProbePacketLink tells why this process cannot have a link on the network device of
// that name; empty: on any.
func ProbePacketLink(netdev string) error {
	if netdev != "" {
		dev, err := rtnetlink.Open(netdev)
		if err != nil {
			return err
		}
		defer dev.Close()
		if err := (&PacketLink{dev: dev}).usable(); err != nil {
			return err
		}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

// usable tells why the network device cannot carry a link.
func (l *PacketLink) usable() error {
	if l.dev.Flags&net.FlagUp == 0 {
		return fmt.Errorf("the device is down (ip link set %s up)", l.dev.Name)
	}
	if l.dev.Flags&net.FlagLoopback == 0 && len(l.dev.HardwareAddr) != 6 {
		return errors.New("it is no Ethernet device")
	}
	return nil
}

// checkDevice tells why the network device cannot carry the address ip.
func (l *PacketLink) checkDevice(ip netip.Addr) error {
	if err := l.usable(); err != nil {
		return err
	}
	addrs, err := l.dev.Addrs()
	if err != nil {
		return err
	}
	var have []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if o, ok := netip.AddrFromSlice(n.IP); ok && o.Unmap() == ip.WithZone("") {
				return nil
			}
			have = append(have, n.IP.String())
		}
	}
	if ip.Is4() && ip.IsLoopback() && l.dev.Flags&net.FlagLoopback != 0 { // all of 127.0.0.0/8
		return nil
	}
	return fmt.Errorf("%v is not one of its addresses (%s)", ip, strings.Join(have, ", "))
}

// openSink binds a socket that drops all it gets, and returns its address: packets of
// the link reach the kernel's UDP too, which would tell the peers that nobody is here.
// Where somebody else has port 4791 already, it tells them nothing. fd -1: none is
// needed.
func openSink(local netip.AddrPort, ifindex int) (fd int, bound netip.AddrPort, err error) {
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(local.Port()), Addr: [4]byte(local.Addr().AsSlice()[:4])}
	if local.Addr().Is6() {
		family = unix.AF_INET6
		sa6 := &unix.SockaddrInet6{Port: int(local.Port()), Addr: local.Addr().As16()}
		if local.Addr().IsLinkLocalUnicast() {
			sa6.ZoneId = uint32(ifindex)
		}
		sa = sa6
	}
	if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, bound, os.NewSyscallError("socket", err)
	}
	err = attachFilter(fd, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}})
	if err == nil && local.Port() != 0 { // links share a port that was asked for
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	if err == nil {
		// Trains that come here need not be cut up to be dropped.
		_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
		err = os.NewSyscallError("bind", unix.Bind(fd, sa))
	}
	if err == nil {
		bound, err = localAddr(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) && local.Port() == roce.UDPPort {
			return -1, local, nil
		}
		return -1, bound, err
	}
	return fd, bound, nil
}

// FilterQPNs lets the kernel drop packets for other queue pair numbers than the 2^12
// from first on, a Device.QPNBlock, before they reach the link.
func (l *PacketLink) FilterQPNs(first uint32) error {
	return attachFilter(l.sock.fd, packetFilter(l.attr.Local, l.dev.Index, l.lo, first, qpnBlock))
}

// Attr implements Link.
func (l *PacketLink) Attr() LinkAttr { return l.attr }

// Stats is a copy of the counters, and the reason of the latest transmit error.
func (l *PacketLink) Stats() (PacketStats, error) {
	if l.sock.fd >= 0 {
		// The kernel forgets its count when asked.
		if s, err := unix.GetsockoptTpacketStats(l.sock.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			l.stats.RingFull += uint64(s.Drops)
		}
	}
	return l.stats, l.txErr
}

// Trains reports whether packets of one length leave in trains, as UDPLink.Trains.
func (l *PacketLink) Trains() bool { return l.sock.trains }

// Path implements Link. The source port is the link's.
func (l *PacketLink) Path(dst netip.AddrPort) (Path, error) {
	fail := func(err error) (Path, error) {
		return Path{}, fmt.Errorf("softroce: no path from %v on %s to %v: %w", l.attr.Local, l.dev.Name, dst, err)
	}
	if !dst.IsValid() || dst.Port() == 0 || dst.Addr().Is4() != l.attr.Local.Addr().Is4() {
		return fail(errors.New("both must be of one IP version and name a UDP port"))
	}
	r, err := l.dev.Route(dst.Addr())
	if err != nil {
		return fail(err)
	}
	p := &packetPath{dst: dst, hop: dst.Addr(), head: newPacketHeader(l.sock.vnet, l.attr.Local, dst), local: r.Local, known: r.Local}
	p.to = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Protocol: l.sock.protocol(), Ifindex: int32(l.dev.Index)}
	if r.Gateway.IsValid() {
		p.hop = r.Gateway
	}
	if p.local {
		p.to.Ifindex = int32(l.lo)
	} else {
		l.find(p)
	}
	return Path{Dst: dst, Pseudo: roce.AppendPseudo(nil, l.attr.Local, dst), Link: p}, nil
}

// find asks for the MAC address of the path's next station.
func (l *PacketLink) find(p *packetPath) {
	now := time.Since(l.started)
	if mac, ok := l.dev.Neighbour(p.hop); ok {
		p.head.setMAC(mac, [6]byte(l.dev.HardwareAddr))
		p.known, p.again = true, now+confirmEvery
		return
	}
	p.again = now + askEvery // until then, the address that was last known
	l.dev.Ask(p.hop)
}

// ready tells whether packets can be sent on p now.
func (l *PacketLink) ready(p *packetPath, now time.Duration) bool {
	if !p.local && now >= p.again {
		l.find(p)
	}
	return p.known
}

// TxAlloc implements Link.
func (l *PacketLink) TxAlloc(frames []Frame) int { return l.tx.alloc(frames) }

// TxFree implements Link.
func (l *PacketLink) TxFree(frames []Frame) { l.tx.give(frames) }

// Tx implements Link: one system call for a burst.
func (l *PacketLink) Tx(frames []Frame) int {
	now := time.Since(l.started)
	sent := 0
	for sent < len(frames) {
		ready := 0
		for ready < len(frames)-sent && l.ready(frames[sent+ready].Path.Link.(*packetPath), now) {
			ready++
		}
		if ready == 0 {
			l.stats.NoMAC++
			sent++
			continue
		}
		n, refused, errno := l.sock.send(frames[sent : sent+min(ready, burst)])
		sent += n
		if errno == 0 {
			continue
		}
		if errno == unix.EAGAIN || errno == unix.ENOBUFS || errno == unix.ENOMEM {
			break
		}
		if errno != unix.EINTR {
			l.stats.TxErrors += uint64(refused)
			l.txErr = errno
			sent += refused
		}
	}
	l.tx.give(frames[:sent])
	return sent
}

// Rx implements Link. A frame's Pseudo is nil where its headers are those of Path for
// the way back.
func (l *PacketLink) Rx(frames []Frame) int {
	if l.wake.spinning() {
		l.wake.unwatch(l.sock.fd)
		l.wake.on = false
	}
	return l.sock.receive(frames)
}

// RxFree implements Link.
func (l *PacketLink) RxFree([]Frame) { l.sock.giveBack() }

// FD implements Link.
func (l *PacketLink) FD() int { return l.wake.ep }

// Arm implements Armer.
func (l *PacketLink) Arm() (idle bool) {
	l.wake.looks = 0
	l.wake.on = l.wake.on || l.wake.watch(l.sock.fd) == nil
	return l.wake.on
}

// Watch implements Watcher.
func (l *PacketLink) Watch(ws []rdma.Watched) (_ []rdma.Watched, ok bool) {
	if len(l.sock.rest) > 0 {
		return ws, false
	}
	return l.sock.ring.watch(ws)
}

// Close implements Link.
func (l *PacketLink) Close() error {
	err := errors.Join(l.sock.close(), l.wake.close())
	if l.sink >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(l.sink)))
		l.sink = -1
	}
	if l.dev != nil {
		err = errors.Join(err, l.dev.Close())
	}
	return err
}

// vnetTrains tells whether this kernel passes trains of UDP packets through packet
// sockets: since Linux 6.2 (include/linux/virtio_net.h, virtio_net_hdr_from_skb).
var vnetTrains = func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var v [2]int
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &v[0], &v[1])
	return err == nil && slices.Compare(v[:], []int{6, 2}) >= 0
}()

// trainIdents tells what the identifications of a train's packets are, given that of
// the first: counted up, as the sender's kernel counts, or all the same, where the
// receiver's joined packets that came one by one. The ICRC of the second packet tells.
func trainIdents(r *received, second []byte) (step uint16) {
	var b [8 + ip6Len + udpLen]byte
	sum := roce.Sum(r.pseudo(b[:0], len(second), r.ident+1), second[:len(second)-roce.ICRCLen])
	if sum == roce.GetICRC(second[len(second)-roce.ICRCLen:]) {
		return 1
	}
	return 0
}

// trainSize is the length of the packets in a frame of payload bytes; it is 0 where
// the virtio_net_hdr contradicts it.
func trainSize(vnet []byte, payload int) int {
	switch {
	case vnet == nil || vnet[vnetType] == 0:
		return payload
	case vnet[vnetType] != vnetUDP:
		return 0
	}
	return int(binary.NativeEndian.Uint16(vnet[vnetSize:]))
}
