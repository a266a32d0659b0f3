package dpdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"github.com/intel-go/nff-go/types"
	"golang.org/x/sys/unix"
)

// kernelNet asks the kernel about the network of one of its devices, over
// rtnetlink(7): the kernel beside a port answers ARP and keeps routes, and the port
// uses what it knows. Control path only: each question is a system call or two.
type kernelNet struct {
	name  string
	index int
	sock  int // netlink
	sink  int // UDP: takes what arrives for the port's address, so that the kernel refuses nothing
	seq   uint32
}

// netlinkPatience bounds the wait for an answer, which the kernel gives at once.
var netlinkPatience = unix.Timeval{Usec: 200_000}

// openKernelNet prepares questions about the network device of that name, which
// has the address local.
func openKernelNet(name string, local netip.AddrPort) (*kernelNet, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("dpdk: network device %q: %w (ip link lists them)", name, err)
	}
	k := &kernelNet{name: name, index: dev.Index, sock: -1, sink: -1}
	if k.sock, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err == nil {
		err = unix.SetsockoptTimeval(k.sock, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &netlinkPatience)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dpdk: asking the kernel about %s: %w", name, err), k.close())
	}
	if err := k.openSink(local); err != nil {
		return nil, errors.Join(fmt.Errorf("dpdk: %s on %s: %w (the address must be one of that device, and the UDP port free)", local, name, err), k.close())
	}
	return k, nil
}

// openSink binds a socket that drops everything. Packets of the port reach the
// kernel too where it shares the device (net_af_packet, net_tap); without a socket
// it would tell the peers that nobody is here.
func (k *kernelNet) openSink(local netip.AddrPort) (err error) {
	family, sa := sockaddr(local)
	if k.sink, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return err
	}
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	if err = unix.SetsockoptSockFprog(k.sink, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}); err != nil {
		return err
	}
	return unix.Bind(k.sink, sa)
}

func sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func (k *kernelNet) close() error {
	for _, fd := range []*int{&k.sock, &k.sink} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
	return nil
}

// gateway is the station behind which dst lies; the zero Addr where dst is on the
// device's own network.
func (k *kernelNet) gateway(dst netip.Addr) (netip.Addr, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[1] = family(dst), byte(dst.BitLen())
	body = appendAttr(body, unix.RTA_DST, dst.AsSlice())
	body = appendAttr(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(k.index)))
	attrs, err := k.call(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.SizeofRtMsg, body)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the kernel's route to %s over %s: %w", dst, k.name, err)
	}
	if attrs[unix.RTA_VIA] != nil {
		return netip.Addr{}, fmt.Errorf("the kernel's route to %s over %s goes by a gateway of another IP version", dst, k.name)
	}
	gateway, _ := netip.AddrFromSlice(attrs[unix.RTA_GATEWAY])
	return gateway, nil
}

// lookup is the kernel's entry for a neighbour. Where it has none, it is made to
// look for one.
func (k *kernelNet) lookup(addr netip.Addr) (mac types.MACAddress, ok bool) {
	body := make([]byte, unix.SizeofNdMsg)
	body[0] = family(addr)
	binary.NativeEndian.PutUint32(body[4:], uint32(k.index))
	attrs, err := k.call(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, unix.SizeofNdMsg, appendAttr(body, unix.NDA_DST, addr.AsSlice()))
	if hw := attrs[unix.NDA_LLADDR]; err == nil && len(hw) == types.EtherAddrLen && types.MACAddress(hw) != (types.MACAddress{}) {
		return types.MACAddress(hw), true
	}
	// One datagram to the discard port: the kernel needs the address to send it.
	const discard = 9
	fam, sa := sockaddr(netip.AddrPortFrom(addr, discard))
	fd, err := unix.Socket(fam, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return mac, false
	}
	defer unix.Close(fd)
	_ = unix.BindToDevice(fd, k.name) // without it the route decides
	_ = unix.Sendto(fd, []byte{0}, 0, sa)
	return mac, false
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func appendAttr(b []byte, kind uint16, v []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(v)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, v...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// call sends one request and returns the attributes of its answer, which follow a
// header of skip bytes.
func (k *kernelNet) call(kind, answer uint16, skip int, body []byte) (map[uint16][]byte, error) {
	k.seq++
	req := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	*(*unix.NlMsghdr)(unsafe.Pointer(&req[0])) = unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Flags: unix.NLM_F_REQUEST, Seq: k.seq,
	}
	if err := unix.Sendto(k.sock, append(req, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 8192)
	for {
		n, _, err := unix.Recvfrom(k.sock, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			if m.Header.Seq != k.seq {
				continue // of a question whose time was over
			}
			switch {
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			case m.Header.Type == answer && len(m.Data) >= skip:
				return parseAttrs(m.Data[skip:]), nil
			}
		}
	}
}

func parseAttrs(p []byte) map[uint16][]byte {
	attrs := make(map[uint16][]byte)
	for len(p) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(p))
		if n < unix.SizeofRtAttr || n > len(p) {
			break
		}
		attrs[binary.NativeEndian.Uint16(p[2:])] = p[unix.SizeofRtAttr:n]
		p = p[min(len(p), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return attrs
}
