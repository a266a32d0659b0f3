package transports

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
	"github.com/millrace/millrace/rdma/verbs"
)

// The user-space RoCEv2 engine. Its devices reach each other, whichever they are.
const (
	SoftRoCEUDP    = "softroce+udp"          // over a UDP socket
	SoftRoCEPacket = softroce.PacketLinkName // over packet sockets, which need CAP_NET_RAW
)

var rdmaTransport = Transport{
	Scheme: "rdma", Param: "device",
	Devices: func() []Device {
		devices := []Device{{Name: SoftRoCEUDP, Default: true, Probe: available, New: newSoftRoCEUDP}, packetDevice(SoftRoCEPacket)}
		ports, _ := verbs.List() // none that can be listed: none
		var names []string
		for i := range ports {
			if ports[i].Active() && len(ports[i].RoCEv2()) > 0 {
				names = append(names, ports[i].Name())
			}
		}
		for _, name := range sortedUnique(names) {
			devices = append(devices, verbsDevice(name))
		}
		return devices
	},
	Other: packetDevice, OtherNames: SoftRoCEPacket + ":NETDEV",
}

// packetDevice is the user-space RoCEv2 engine on packet sockets: of the network
// device that the name goes on with, where it meets everything that speaks RoCEv2, or
// as another way to the peers of SoftRoCEUDP.
func packetDevice(name string) Device {
	netdev := ""
	if name != SoftRoCEPacket {
		var ok bool
		if netdev, ok = strings.CutPrefix(name, SoftRoCEPacket+":"); !ok || netdev == "" {
			return Device{}
		}
	}
	return Device{
		Name: name,
		Probe: func() *Unavailable {
			if err := softroce.ProbePacketLink(netdev); err != nil {
				return &Unavailable{Transport: "rdma", Device: name, Reason: err.Error(), Fix: "run as root, or give the program CAP_NET_RAW (setcap cap_net_raw+ep); the device is one that ip link lists as UP"}
			}
			return nil
		},
		New: func(u *url.URL) (netpoll.Backend, error) {
			return newSoftRoCE(u, func(local netip.AddrPort) rdma.Fabric {
				if netdev == "" {
					return softroce.NewRawFabric(local, softroce.Options{})
				}
				return softroce.NewPacketFabric(netdev, local, softroce.Options{})
			})
		},
	}
}

// ProbeMailboxes tells why SoftRoCEUDP takes a system call for each packet here; nil: the
// kernel puts packets that come one by one into memory.
func ProbeMailboxes() error {
	l, err := softroce.NewUDPLink(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0))
	if err != nil {
		return err
	}
	_, err = l.Connected()
	if err == nil {
		_, err = l.Mailboxes()
	}
	return errors.Join(err, l.Close())
}

func newSoftRoCEUDP(u *url.URL) (netpoll.Backend, error) {
	return newSoftRoCE(u, func(local netip.AddrPort) rdma.Fabric { return softroce.NewFabric(local, softroce.Options{}) })
}

func newSoftRoCE(u *url.URL, fabric func(local netip.AddrPort) rdma.Fabric) (netpoll.Backend, error) {
	if err := addressOnly(u, "device"); err != nil {
		return nil, err
	}
	local, err := localAddr(u)
	if err != nil {
		return nil, err
	}
	return deviceParam{rdma.NewEventLoop(fabric(local), rdma.EventLoopOptions{}), []string{"device"}}, nil
}

// NamesVerbs tells whether an rdma:// address asks for a device of libibverbs: any
// that is not the user-space engine's.
func NamesVerbs(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "rdma" {
		return false
	}
	device := query(u, "device")
	return device != "" && !strings.HasPrefix(device, "softroce")
}

// verbsDevice is an RNIC or the kernel's Soft-RoCE, through libibverbs.
func verbsDevice(name string) Device {
	return Device{
		Name: name, HostOnly: true,
		Probe: func() *Unavailable {
			err := verbs.Probe(verbs.Choice{Device: name})
			if err == nil {
				return nil
			}
			un := &Unavailable{Transport: "rdma", Device: name, Reason: err.Error(), Fix: "millrace doctor tells more"}
			var ve *verbs.Error
			if errors.As(err, &ve) && ve.Fix != "" {
				un.Reason, un.Fix = ve.Err.Error(), ve.Fix
			}
			return un
		},
		New: func(u *url.URL) (netpoll.Backend, error) {
			if err := addressOnly(u, "device"); err != nil {
				return nil, err
			}
			fabric, err := verbs.NewFabric(verbs.Options{Choice: verbs.Choice{Device: name}})
			if err != nil {
				return nil, err
			}
			return deviceParam{rdma.NewEventLoop(fabric, rdma.EventLoopOptions{}), []string{"device"}}, nil
		},
	}
}

// localAddr is the address of this machine from which the host of u is reached,
// or at which it listens: the one of the same network. Port 0: any.
func localAddr(u *url.URL) (netip.AddrPort, error) {
	// Connecting a datagram socket sends nothing, but chooses the source address.
	c, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), "9"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: no route to that host, or no such host: %w", u, err)
	}
	defer c.Close()
	return netip.AddrPortFrom(c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), 0), nil
}
