package eal

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/dpdk"
)

// Device is a port of a network as an address names it:
//
//	dpdk://HOST:PORT?port=NAME[,ARGS]&ip=192.0.2.1/24&…
//
// HOST:PORT is the kernel's: connections are set up there.
type Device struct {
	Name   string   // net_af_packet0, 0000:01:00.0, …
	Args   string   // of the driver; comma separated
	EAL    []string // arguments of rte_eal_init
	Queues int      // one for each loop
	Options
	Link dpdk.LinkConfig
}

// maxQueues of one device.
const maxQueues = 64

// defaultUDPPort is RoCEv2's (IBTA annex A17).
const defaultUDPPort = 4791

// Params are the URL parameters of a Device.
var Params = []string{"port", "eal", "queues", "mtu", "ip", "udp", "gw", "vlan", "neigh", "netdev"}

// ParseDevice reads the parameters of a URL:
//
//	port    name of the device, and arguments of its driver: net_af_packet0,iface=eth0
//	eal     arguments of rte_eal_init, separated by spaces
//	queues  how many loops of this process may share the device; default 1
//	mtu     IP bytes per frame; default the device's
//	ip      the port's address, with the length of its network's prefix if peers
//	        beyond it are reached by gw; default that of the network device
//	udp     UDP port; default 4791; loops after the first have the ports after it
//	gw      gateway
//	vlan    802.1Q tag; default none
//	neigh   ADDRESS@MAC of a peer that is not to be asked for it; may be repeated
//	netdev  the kernel's device beside the port, which answers for the address;
//	        default the driver's argument iface, where the kernel has the address
func ParseDevice(q url.Values) (Device, error) {
	d := Device{Queues: 1}
	fail := func(name, want string) (Device, error) {
		return Device{}, fmt.Errorf("dpdk/eal: %s=%q in the address: want %s", name, q.Get(name), want)
	}
	for name, v := range q {
		if !slices.Contains(Params, name) {
			return Device{}, fmt.Errorf("dpdk/eal: unknown parameter %q in the address: it takes %s", name, strings.Join(Params, ", "))
		}
		if len(v) > 1 && name != "neigh" {
			return fail(name, "it once")
		}
	}
	d.Name, d.Args, _ = strings.Cut(q.Get("port"), ",")
	if d.Name == "" || strings.ContainsAny(d.Name, " =[]\x00") || strings.ContainsRune(d.Args, 0) || len(d.Name) >= 64 {
		return fail("port", "the name of a device of libdpdk, and arguments after a comma")
	}
	d.EAL = strings.Fields(q.Get("eal"))
	udp := defaultUDPPort
	vlan := 0
	for _, n := range []struct {
		name     string
		to       *int
		min, max int
	}{{"queues", &d.Queues, 1, maxQueues}, {"mtu", &d.MTU, minMTU, maxFrameBytes - etherHeaderBytes}, {"udp", &udp, 1, 1<<16 - 1}, {"vlan", &vlan, 1, 4094}} {
		if v := q.Get(n.name); v != "" {
			i, err := strconv.Atoi(v)
			if err != nil || i < n.min || i > n.max {
				return fail(n.name, fmt.Sprintf("a number from %d to %d", n.min, n.max))
			}
			*n.to = i
		}
	}
	d.Link.VLAN = uint16(vlan)
	for _, v := range q["neigh"] {
		ip, hw, _ := strings.Cut(v, "@")
		addr, err := netip.ParseAddr(ip)
		mac, merr := net.ParseMAC(hw)
		if err != nil || merr != nil || len(mac) != 6 {
			return Device{}, fmt.Errorf("dpdk/eal: neigh=%q in the address: want one like 192.0.2.2@02:00:00:00:00:02", v)
		}
		if d.Link.Neighbours == nil {
			d.Link.Neighbours = map[netip.Addr]net.HardwareAddr{}
		}
		d.Link.Neighbours[addr] = mac
	}
	if v := q.Get("gw"); v != "" {
		var err error
		if d.Link.Gateway, err = netip.ParseAddr(v); err != nil {
			return fail("gw", "an IP address")
		}
	}
	var addr netip.Addr
	if v := q.Get("ip"); v != "" {
		prefix, err := netip.ParsePrefix(v)
		if err == nil {
			addr, d.Link.Prefix = prefix.Addr(), prefix.Masked()
		} else if addr, err = netip.ParseAddr(v); err != nil {
			return fail("ip", "an address, or one with its network's prefix like 192.0.2.1/24")
		}
	}
	if d.Link.Gateway.IsValid() && !d.Link.Prefix.IsValid() {
		return fail("gw", "ip with the length of its prefix, like ip=192.0.2.1/24: else no peer is beyond a gateway")
	}
	addr, err := d.beside(q.Get("netdev"), addr)
	if err != nil {
		return Device{}, err
	}
	d.Link.Local = netip.AddrPortFrom(addr, uint16(udp))
	return d, nil
}

// beside finds out what the kernel has beside the port, and the port's address.
func (d *Device) beside(netdev string, addr netip.Addr) (netip.Addr, error) {
	guess := ""
	for _, arg := range strings.Split(d.Args, ",") {
		if v, ok := strings.CutPrefix(arg, "iface="); ok {
			guess = v
		}
	}
	if netdev == "" && guess == "" {
		if !addr.IsValid() {
			return addr, fmt.Errorf("dpdk/eal: no address for port %s: give it one with ip=192.0.2.1/24, or name the kernel's device beside it with netdev=NAME", d.Name)
		}
		return addr, nil
	}
	name := netdev
	if name == "" {
		name = guess
	}
	own, err := kernelAddresses(name)
	if err != nil {
		return addr, err
	}
	switch {
	case !addr.IsValid() && len(own) > 0:
		addr = own[0]
	case !addr.IsValid():
		return addr, fmt.Errorf("dpdk/eal: network device %s has no address that others reach: give the port one with ip=", name)
	case netdev == "" && !slices.Contains(own, addr):
		return addr, nil // of its own; the port answers for it
	}
	d.Link.NetDev = name
	return addr, nil
}

// kernelAddresses are those of a network device, IPv4 first.
func kernelAddresses(name string) (own []netip.Addr, err error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("dpdk/eal: network device %q: %w (ip link lists them)", name, err)
	}
	addrs, err := dev.Addrs()
	if err != nil {
		return nil, fmt.Errorf("dpdk/eal: addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().IsGlobalUnicast() {
				own = append(own, ip.Unmap())
			}
		}
	}
	slices.SortStableFunc(own, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return own, nil
}

// ealArgs completes the arguments of rte_eal_init: cards are found only if allowed.
func (d *Device) ealArgs() []string {
	if !isPCI(d.Name) {
		return d.EAL
	}
	spec := d.Name
	if d.Args != "" {
		spec += "," + d.Args
	}
	return append(slices.Clone(d.EAL), "--allow", spec)
}

// attached tells whether the device is there once libdpdk has started.
func (d *Device) attached() bool {
	return !strings.HasPrefix(d.Name, "net_") || slices.ContainsFunc(d.EAL, func(a string) bool {
		a = strings.TrimPrefix(a, "--vdev=")
		name, _, _ := strings.Cut(a, ",")
		return name == d.Name
	})
}

// isPCI tells whether a name is a PCI address: 0000:01:00.0.
func isPCI(name string) bool {
	var domain, bus, dev, fn int
	n, _ := fmt.Sscanf(name, "%x:%x:%x.%x", &domain, &bus, &dev, &fn)
	return n == 4
}
