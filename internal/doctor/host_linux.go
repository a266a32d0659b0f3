package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/rdma/verbs"
)

// This is the machine and the program that run now. The caller sets Version,
// Sibling and Probe.
func This() *Host {
	h := &Host{
		Arch: runtime.GOARCH, Root: os.DirFS("/"), UID: os.Geteuid(), TempDir: os.TempDir(), LockedBytes: ^uint64(0),
		SocketBuffers: socketBuffers, Mailboxes: transports.ProbeMailboxes, SharedMemory: sharedMemory, XDPSocket: xdpSocket, OpenDevice: openDevice, Writable: writable,
		HasVerbs: verbs.Available, Libdpdk: eal.Version(), Transports: transports.All(),
		Write: writeKnob, Run: runCommand,
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Release = unix.ByteSliceToString(u.Release[:])
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil {
		h.LockedBytes = limit.Cur
	}
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		h.OpenFiles = limit.Max
	}
	return h
}

func socketBuffers(bytes int) (receive, send int, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, 0, fmt.Errorf("bind: %w", err)
	}
	// As rdma/softroce does for packets whose checksum it writes itself.
	for _, o := range [...][3]int{{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO}, {unix.SOL_SOCKET, unix.SO_NO_CHECK, 1}} {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			return 0, 0, fmt.Errorf("setsockopt: %w", err)
		}
	}
	for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], bytes) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], bytes)
		}
	}
	if receive, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil {
		send, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	}
	return receive / 2, send / 2, err // socket(7): the kernel doubles them
}

func sharedMemory() error {
	fd, err := unix.MemfdCreate("millrace-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		return fmt.Errorf("sealing a memfd: %w", err)
	}
	return nil
}

func xdpSocket() error {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func writable(folder string) error {
	if err := unix.Access(folder, unix.W_OK|unix.X_OK); err != nil {
		return &os.PathError{Op: "write to", Path: folder, Err: err}
	}
	return nil
}

func openDevice(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func writeKnob(name, value string) error {
	f, err := os.OpenFile("/"+name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func runCommand(ctx context.Context, command ...string) error {
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if text := strings.TrimSpace(string(out)); err != nil && text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}
