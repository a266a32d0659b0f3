package afxdp

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Netdev is a network device with the program on it that feeds its ports. Any
// goroutine.
type Netdev struct {
	dev     *net.Interface
	mode    string // of the program: native or generic
	sockets *ebpf.Map
	program *ebpf.Program
	link    link.Link
}

// maxQueues is the number of queues of one device that ports can be opened on.
const maxQueues = 64

// Probe tells whether this process may make AF_XDP sockets and their programs; nil: it may. It asks
// for no device, so nothing of one is touched. Any goroutine.
func Probe() error {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("afxdp: no socket: %w%s", err, attachFix(err))
	}
	defer unix.Close(fd)
	n := &Netdev{}
	if err := errors.Join(n.load(Match{All: true}), n.Close()); err != nil {
		return fmt.Errorf("afxdp: no program: %w%s", err, attachFix(err))
	}
	return nil
}

// Attach puts the program on a device of the calling thread's network namespace.
// A device takes one program: another one's fails.
func Attach(netdev string, m Match) (*Netdev, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	dev, err := net.InterfaceByName(netdev)
	if err != nil {
		return nil, fmt.Errorf("afxdp: %s: %w (see: ip link)", netdev, err)
	}
	n := &Netdev{dev: dev}
	if err = n.attach(m); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("afxdp: %s: %w%s", netdev, err, attachFix(err))
	}
	return n, nil
}

// load makes the program and the map that it looks in.
func (n *Netdev) load(m Match) (err error) {
	n.sockets, err = ebpf.NewMap(&ebpf.MapSpec{Name: "millrace_xsks", Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: maxQueues})
	if err != nil {
		return err
	}
	n.program, err = ebpf.NewProgram(m.program(n.sockets, xdpPass))
	return err
}

func (n *Netdev) attach(m Match) error {
	err := n.load(m)
	if err != nil {
		return err
	}
	// The driver's hook first; the kernel's own, on a copy of the frame, works with
	// every device.
	n.mode = "native"
	n.link, err = link.AttachXDP(link.XDPOptions{Program: n.program, Interface: n.dev.Index, Flags: link.XDPDriverMode})
	if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EPERM) {
		n.mode = "generic"
		n.link, err = link.AttachXDP(link.XDPOptions{Program: n.program, Interface: n.dev.Index, Flags: link.XDPGenericMode})
	}
	return err
}

func attachFix(err error) string {
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return ": another XDP program is on the device (see: ip link; take it off, or use another device)"
	case errors.Is(err, unix.EPERM):
		return ": run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW"
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, ebpf.ErrNotSupported):
		return ": this kernel lacks AF_XDP or XDP links (Linux 5.9 or later with CONFIG_XDP_SOCKETS)"
	}
	return ""
}

// Close takes the program off the device. Close the ports first.
func (n *Netdev) Close() error {
	var err error
	if n.link != nil {
		err = n.link.Close()
	}
	if n.program != nil {
		err = errors.Join(err, n.program.Close())
	}
	if n.sockets != nil {
		err = errors.Join(err, n.sockets.Close())
	}
	return err
}

// bindPatience: a queue is busy for a moment after its last socket was closed,
// because the kernel frees that later.
const bindPatience = time.Second

// bind takes the queue, without copies if the driver can do that.
func (n *Netdev) bind(fd, queue int) (mode string, err error) {
	for deadline := time.Now().Add(bindPatience); ; time.Sleep(5 * time.Millisecond) {
		for _, try := range []struct {
			mode string
			flag uint16
		}{{"zero copy", unix.XDP_ZEROCOPY}, {"copy", unix.XDP_COPY}} {
			err = unix.Bind(fd, &unix.SockaddrXDP{Flags: try.flag | unix.XDP_USE_NEED_WAKEUP, Ifindex: uint32(n.dev.Index), QueueID: uint32(queue)})
			if err == nil {
				return try.mode, nil
			}
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return "", fmt.Errorf("queue %d: %w: another socket has it", queue, err)
	case errors.Is(err, unix.EINVAL):
		return "", fmt.Errorf("queue %d: %w: the device has no such queue (see: ethtool -l %s), or an MTU above the frames' size", queue, err, n.dev.Name)
	}
	return "", fmt.Errorf("queue %d: %w", queue, err)
}
