package main

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// openPacketSocket opens a socket that receives all frames of a network device,
// sent ones included, each behind a virtio_net_hdr. It is non-blocking, so deadlines work on the file.
func openPacketSocket(ifc *net.Interface) (*os.File, error) {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if ifc.Flags&net.FlagLoopback != 0 {
		// Everything sent on loopback is received there too; once is enough.
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	}
	if err == nil {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifc.Index}))
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet socket of "+ifc.Name), nil
}
