package verbs

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Choice says which device to use.
type Choice struct {
	// Device is a device ("rxe0") or a port of one ("mlx4_0:2"). Empty: the one
	// that has the address.
	Device string
	// Local is the address one listens on. The zero Addr, an unspecified address
	// and a loopback address fit every device.
	Local netip.Addr
	// Remote is the address one dials. The kernel's route to it gives the local
	// address, unless Local does.
	Remote netip.Addr
}

// local is the address that the device must have; the zero Addr if any will do.
func (c Choice) local(route func(netip.Addr) (netip.Addr, error)) (netip.Addr, error) {
	addr := c.Local.Unmap()
	if !specific(addr) && c.Remote.IsValid() {
		var err error
		if addr, err = route(c.Remote.Unmap()); err != nil {
			return netip.Addr{}, &Error{Op: "open", Err: fmt.Errorf("no route to %v: %w", c.Remote, err), Fix: "check `ip route get " + c.Remote.String() + "`"}
		}
		addr = addr.Unmap()
	}
	if !specific(addr) {
		return netip.Addr{}, nil
	}
	return addr, nil
}

func specific(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() }

// routeTo is the local address from which the kernel would send to remote. No
// packet is sent.
func routeTo(remote netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, 4791)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(), nil
}

// Resolve is the first address of hostport's host, for Choice.Local or
// Choice.Remote; the zero Addr for an empty host (":7000").
func Resolve(ctx context.Context, hostport string) (netip.Addr, error) {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil || host == "" {
		return netip.Addr{}, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(addrs) == 0 {
		return netip.Addr{}, fmt.Errorf("%q has no address", host)
	}
	return addrs[0].Unmap(), nil
}

// choose finds the port and the GID in the inventory.
func choose(ports []Port, c Choice, route func(netip.Addr) (netip.Addr, error)) (*Port, GID, error) {
	addr, err := c.local(route)
	if err != nil {
		return nil, GID{}, err
	}
	type fit struct {
		port *Port
		gid  GID
	}
	var fits []fit
	var unfit []*Error // why ports that were asked for or have the address do not fit
	named := false
	for i := range ports {
		p := &ports[i]
		if c.Device != "" && c.Device != p.Device && c.Device != p.Device+":"+strconv.Itoa(p.Num) {
			continue
		}
		named = true
		gid, e := p.choose(addr, c.Device != "")
		switch {
		case e != nil:
			unfit = append(unfit, e)
		case gid.Type != "":
			fits = append(fits, fit{p, gid})
		}
	}
	switch {
	case len(fits) == 1:
		return fits[0].port, fits[0].gid, nil
	case len(fits) > 1:
		var names []string
		for _, f := range fits {
			names = append(names, f.port.describe())
		}
		return nil, GID{}, &Error{
			Op: "open", Err: fmt.Errorf("%w%s: %s", ErrAmbiguous, forAddr(addr), strings.Join(names, ", ")),
			Fix: "name one of them: ?device=" + fits[0].port.Name(),
		}
	case len(unfit) == 1:
		return nil, GID{}, unfit[0]
	case len(unfit) > 1:
		var all []string
		for _, e := range unfit {
			all = append(all, e.Device+": "+e.Err.Error())
		}
		return nil, GID{}, &Error{Op: "open", Err: fmt.Errorf("%w: %s", ErrNoMatch, strings.Join(all, ", ")), Fix: unfit[0].Fix}
	}
	var have []string
	for i := range ports {
		have = append(have, ports[i].describe())
	}
	list := "this machine has " + strings.Join(have, ", ")
	if !named {
		return nil, GID{}, &Error{Op: "open", Device: c.Device, Err: fmt.Errorf("%w: there is no such device; %s", ErrNoMatch, list), Fix: "name one of these"}
	}
	return nil, GID{}, &Error{
		Op: "open", Err: fmt.Errorf("%w: none has the address %v; %s", ErrNoMatch, addr, list),
		Fix: "use an address of one of them, or name the device: ?device=" + ports[0].Name(),
	}
}

func forAddr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return " " + a.String()
}

// choose finds the GID of addr, of any address if addr is the zero Addr. A GID
// without type: this port is not meant. asked tells that the port was named: then
// it need not have the address.
func (p *Port) choose(addr netip.Addr, asked bool) (GID, *Error) {
	mine := slices.ContainsFunc(p.GIDs, func(g GID) bool { return g.has(addr) })
	if addr.IsValid() && !mine && !asked {
		return GID{}, nil
	}
	v2 := p.RoCEv2()
	switch {
	case p.LinkLayer != "Ethernet":
		return GID{}, p.wrongType(fmt.Errorf("%w: the link layer is %s", ErrGIDType, p.LinkLayer),
			"use an Ethernet port, or switch the port over (mlxconfig -d … set LINK_TYPE_P1=2)")
	case len(v2) == 0 && len(p.GIDs) == 0:
		return GID{}, p.wrongType(fmt.Errorf("%w: the GID table is empty", ErrGIDType),
			"set its network device up and give it an address (ip link set … up; ip addr add …)")
	case len(v2) == 0:
		return GID{}, p.wrongType(fmt.Errorf("%w: its GIDs are all of type %q", ErrGIDType, p.GIDs[0].Type),
			"enable RoCEv2 on the device (its driver or firmware settings), or use another device")
	case !p.Active():
		return GID{}, &Error{
			Op: "open", Device: p.Name(), Err: fmt.Errorf("%w: it is %s (%s)", ErrPortState, p.State, p.PhysState),
			Fix: "plug the cable in and set the network device up: ip link set " + p.netdev() + " up",
		}
	}
	if addr.IsValid() && mine {
		for _, g := range v2 {
			if g.has(addr) {
				return g, nil
			}
		}
		return GID{}, p.wrongType(fmt.Errorf("%w for %v", ErrGIDType, addr), "enable RoCEv2 on the device, or use another address")
	}
	best := v2[0]
	for _, g := range v2[1:] {
		if rank(g.Addr, addr) < rank(best.Addr, addr) {
			best = g
		}
	}
	return best, nil
}

func (p *Port) wrongType(err error, fix string) *Error {
	return &Error{Op: "open", Device: p.Name(), Err: err, Fix: fix}
}

func (p *Port) netdev() string {
	if p.NetDev == "" {
		return "DEV"
	}
	return p.NetDev
}

// has compares addresses; a zone of addr names the network device.
func (g GID) has(addr netip.Addr) bool {
	return addr.IsValid() && g.Addr == addr.WithZone("") && (addr.Zone() == "" || addr.Zone() == g.NetDev)
}

// rank orders the GIDs of a port where the address does not say: the family of the
// address first, then IPv4, then IPv6 that is not link-local.
func rank(g, addr netip.Addr) int {
	r := 0
	switch {
	case g.Is4():
	case !g.IsLinkLocalUnicast():
		r = 1
	default:
		r = 2
	}
	if addr.IsValid() && addr.Is4() != g.Is4() {
		r += 4
	}
	return r
}
