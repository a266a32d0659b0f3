// Package rtnetlink asks the kernel what it knows of the network of one of its
// devices, over rtnetlink(7): the kernel beside a raw port answers ARP and keeps
// routes, and the port uses what it knows. Control path only: each question is two
// system calls.
package rtnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a network device of this machine. One goroutine.
type Device struct {
	net.Interface
	sock int // netlink
	ask4 int // UDP; see Ask
	ask6 int // -1 on a machine without IPv6
	seq  uint32
}

// patience bounds the wait for an answer, which the kernel gives at once.
var patience = unix.Timeval{Usec: 200_000}

// Open prepares questions about the network device of that name.
func Open(name string) (*Device, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("no network device %q (ip link lists them): %w", name, err)
	}
	d := &Device{Interface: *ifc, sock: -1, ask4: -1, ask6: -1}
	// All sockets are made here: they belong to the network namespace of their maker.
	if d.sock, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptTimeval(d.sock, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return nil, errors.Join(os.NewSyscallError("setsockopt", err), d.Close())
	}
	d.ask4, d.ask6 = d.udp(unix.AF_INET), d.udp(unix.AF_INET6)
	return d, nil
}

// udp is a socket that sends through the device; -1 if there is none of that family.
func (d *Device) udp(family int) int {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1
	}
	_ = unix.BindToDevice(fd, d.Name) // without it the route decides
	return fd
}

// Close frees the device; a second call does nothing.
func (d *Device) Close() (err error) {
	for _, fd := range []*int{&d.sock, &d.ask4, &d.ask6} {
		if *fd >= 0 {
			err = errors.Join(err, os.NewSyscallError("close", unix.Close(*fd)))
			*fd = -1
		}
	}
	return err
}

// Route is how packets leave.
type Route struct {
	Gateway netip.Addr // the station behind which the destination lies; the zero Addr where it is on the device's own network
	Local   bool       // the destination is this machine
}

// Route is the kernel's route to dst; it is an error if that leads over another
// device.
func (d *Device) Route(dst netip.Addr) (Route, error) {
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[1] = family(dst), byte(dst.BitLen())
	body = appendAttr(body, unix.RTA_DST, dst.AsSlice())
	if dst.IsLinkLocalUnicast() { // on every device; elsewhere the kernel would not look whether there is a route
		body = appendAttr(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(d.Index)))
	}
	header, attrs, err := d.call(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.SizeofRtMsg, body)
	if err != nil {
		return Route{}, fmt.Errorf("the kernel's route to %s: %w", dst, err)
	}
	if attrs[unix.RTA_VIA] != nil {
		return Route{}, fmt.Errorf("the kernel's route to %s over %s goes by a gateway of another IP version", dst, d.Name)
	}
	r := Route{Local: header[7] == unix.RTN_LOCAL} // rtm_type
	if oif := attrs[unix.RTA_OIF]; !r.Local && (len(oif) != 4 || binary.NativeEndian.Uint32(oif) != uint32(d.Index)) {
		other := "another device"
		if len(oif) == 4 {
			if ifc, err := net.InterfaceByIndex(int(binary.NativeEndian.Uint32(oif))); err == nil {
				other = ifc.Name
			}
		}
		return Route{}, fmt.Errorf("the kernel's route to %s leads over %s, not over %s", dst, other, d.Name)
	}
	r.Gateway, _ = netip.AddrFromSlice(attrs[unix.RTA_GATEWAY])
	return r, nil
}

// Neighbour is the MAC address that the kernel knows of a station on the device's
// network.
func (d *Device) Neighbour(addr netip.Addr) (mac [6]byte, ok bool) {
	body := make([]byte, unix.SizeofNdMsg)
	body[0] = family(addr)
	binary.NativeEndian.PutUint32(body[4:], uint32(d.Index))
	_, attrs, err := d.call(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, unix.SizeofNdMsg, appendAttr(body, unix.NDA_DST, addr.AsSlice()))
	hw := attrs[unix.NDA_LLADDR]
	if err != nil || len(hw) != len(mac) {
		return mac, false
	}
	mac = [6]byte(hw)
	return mac, mac != [6]byte{}
}

// Ask makes the kernel look for a neighbour: it sends one datagram to the
// station's discard port, for which the kernel needs the address. It does not wait.
func (d *Device) Ask(addr netip.Addr) {
	const discard = 9
	if addr.Is4() {
		_ = unix.Sendto(d.ask4, []byte{0}, 0, &unix.SockaddrInet4{Port: discard, Addr: addr.As4()})
	} else {
		_ = unix.Sendto(d.ask6, []byte{0}, 0, &unix.SockaddrInet6{Port: discard, Addr: addr.As16(), ZoneId: uint32(d.Index)})
	}
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

// call sends one request and returns the header of its answer, size bytes, and the
// attributes that follow it.
func (d *Device) call(kind, answer uint16, size int, body []byte) (header []byte, attrs map[uint16][]byte, err error) {
	d.seq++
	req := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	*(*unix.NlMsghdr)(unsafe.Pointer(&req[0])) = unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Flags: unix.NLM_F_REQUEST, Seq: d.seq,
	}
	if err := unix.Sendto(d.sock, append(req, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, nil, err
	}
	buf := make([]byte, 8192)
	for {
		n, _, err := unix.Recvfrom(d.sock, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, nil, err
		}
		for _, m := range msgs {
			switch {
			case m.Header.Seq != d.seq: // of a question whose time was over
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return nil, nil, unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			case m.Header.Type == answer && len(m.Data) >= size:
				return m.Data[:size], parseAttrs(m.Data[size:]), nil
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
