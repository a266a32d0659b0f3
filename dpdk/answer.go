package dpdk

import (
	"encoding/binary"
	"net/netip"

	"github.com/intel-go/nff-go/types"
)

// A port that no kernel stands behind must answer for its address itself: ARP and
// neighbour discovery, without which nobody reaches it, and echo requests, by which
// people find out why. All of it happens on the queue's owner, between two bursts.

// answersPerBurst bounds what strangers can make a link send: the transmit ring is
// for data.
const answersPerBurst = 4

// minFrame is the shortest Ethernet frame, without its checksum (IEEE 802.3); not
// every device fills up to it.
const minFrame = 60

const (
	arpEthernet = 1 // hardware type (RFC 826)
	arpRequest  = 1
	arpReply    = 2
	arpOpAt     = 6
	arpSHA      = 8
	arpSPA      = 14
	arpTPA      = 24

	icmpLen = 8 // type, code, checksum, and 4 bytes that depend on the type (RFC 792)

	// neighbour discovery (RFC 4861)
	ndTarget       = icmpLen
	ndLen          = icmpLen + types.IPv6AddrLen
	ndOptionLen    = 8 // type, length in units of 8 bytes, MAC address
	ndOptionSource = 1
	ndOptionTarget = 2
	ndSolicited    = 0x60 // flags: solicited, override
	ndOverride     = 0x20
	ndHopLimit     = 255 // proves that the packet comes from this network
)

// control handles a frame that carries none of RoCE's packets and tells whether it
// was one for this end.
func (l *Link) control(frame []byte) bool {
	if l.cfg.PointToPoint || l.kernel != nil || len(frame) < l.parse.ip || l.answers == 0 {
		return false
	}
	dst := types.MACAddress(frame)
	if dst != l.mac && dst != broadcast && !(dst[0] == 0x33 && dst[1] == 0x33) { // the last: IPv6 multicast (RFC 2464 §7)
		return false
	}
	kind, why := l.parse.etherType(frame)
	if why != accepted {
		return false
	}
	p := frame[l.parse.ip:]
	v4 := l.cfg.Local.Addr().Is4()
	switch {
	case kind == types.ARPNumber && v4:
		return l.arp(p)
	case kind == types.IPV4Number && v4 && dst == l.mac:
		return l.icmp4(types.MACAddress(frame[types.EtherAddrLen:]), p)
	case kind == types.IPV6Number && !v4:
		return l.icmp6(types.MACAddress(frame[types.EtherAddrLen:]), p)
	}
	return false
}

// say sends a frame to dst whose payload fill writes. It does nothing where the port
// is full: whoever asked asks again.
func (l *Link) say(dst types.MACAddress, kind uint16, fill func(b []byte) []byte) bool {
	var f [1]Frame
	if l.port.AllocBurst(f[:]) == 0 {
		return false
	}
	b := appendEther(f[0].Data[:0], dst, l.mac, l.cfg.VLAN, kind)
	b = fill(b)
	for len(b) < minFrame {
		b = append(b, 0)
	}
	f[0].Len = len(b)
	if l.port.TxBurst(f[:]) == 0 {
		l.port.FreeBurst(f[:])
		return false
	}
	return true
}

// answer is say within what strangers may make this end send.
func (l *Link) answer(dst types.MACAddress, kind uint16, fill func(b []byte) []byte) {
	l.answers--
	if l.say(dst, kind, fill) {
		l.counts.answered++
	}
}

// solicit asks the network for addr's MAC address.
func (l *Link) solicit(addr netip.Addr) {
	if addr.Is4() {
		l.say(broadcast, types.ARPNumber, func(b []byte) []byte {
			return l.appendARP(b, arpRequest, types.MACAddress{}, addr)
		})
		return
	}
	// The solicited-node group of addr (RFC 4291 §2.7.1).
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	a := addr.As16()
	copy(group[13:], a[13:])
	l.say(types.MACAddress{0x33, 0x33, group[12], group[13], group[14], group[15]}, types.IPV6Number, func(b []byte) []byte {
		return l.appendND(b, types.ICMPv6NeighborSolicitation, 0, netip.AddrFrom16(group), addr, ndOptionSource)
	})
}

func (l *Link) appendARP(b []byte, op uint16, mac types.MACAddress, to netip.Addr) []byte {
	b = binary.BigEndian.AppendUint16(b, arpEthernet)
	b = binary.BigEndian.AppendUint16(b, types.IPV4Number)
	b = append(b, types.EtherAddrLen, types.IPv4AddrLen)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, l.mac[:]...)
	b = append(b, l.cfg.Local.Addr().AsSlice()...)
	b = append(b, mac[:]...)
	return append(b, to.AsSlice()...)
}

// arp takes an ARP packet: it learns from it and answers where it asks for this end.
func (l *Link) arp(p []byte) bool {
	if len(p) < types.ARPLen || binary.BigEndian.Uint16(p) != arpEthernet || binary.BigEndian.Uint16(p[2:]) != types.IPV4Number ||
		p[4] != types.EtherAddrLen || p[5] != types.IPv4AddrLen {
		return false
	}
	op := binary.BigEndian.Uint16(p[arpOpAt:])
	if op != arpRequest && op != arpReply {
		return false
	}
	mac := types.MACAddress(p[arpSHA:])
	from := netip.AddrFrom4([4]byte(p[arpSPA:]))
	mine := netip.AddrFrom4([4]byte(p[arpTPA:])) == l.cfg.Local.Addr()
	learned := l.hood.learn(from, mac)
	if !mine || op != arpRequest || mac[0]&1 != 0 {
		return learned || mine
	}
	l.answer(mac, types.ARPNumber, func(b []byte) []byte { return l.appendARP(b, arpReply, mac, from) })
	return true
}

// icmp4 answers an echo request.
func (l *Link) icmp4(from types.MACAddress, p []byte) bool {
	if len(p) < types.IPv4MinLen+icmpLen {
		return false
	}
	total := int(binary.BigEndian.Uint16(p[ip4Len:]))
	if p[0] != types.IPv4VersionIhl || fold(onesSum(p[:types.IPv4MinLen])) != 0xffff || total > len(p) || total < types.IPv4MinLen+icmpLen ||
		binary.BigEndian.Uint16(p[ip4Frag:])&fragmentField != 0 || p[ip4Proto] != types.ICMPNumber || types.SliceToIPv4(p[ip4Dst:]) != l.parse.v4 {
		return false
	}
	body := p[types.IPv4MinLen:total]
	if body[0] != types.ICMPTypeEchoRequest || body[1] != 0 || fold(onesSum(body)) != 0xffff {
		return false
	}
	if total > l.mtu {
		return false
	}
	l.answer(from, types.IPV4Number, func(b []byte) []byte {
		at := len(b)
		b = append(b, p[:total]...)
		ip := b[at:]
		copy(ip[ip4Src:], p[ip4Dst:][:types.IPv4AddrLen])
		copy(ip[ip4Dst:], p[ip4Src:][:types.IPv4AddrLen])
		ip[8] = timeToLive
		putSum(ip[:types.IPv4MinLen], ip4Checksum, 0)
		ip[types.IPv4MinLen] = types.ICMPTypeEchoResponse
		putSum(ip[types.IPv4MinLen:], 2, 0)
		return b
	})
	return true
}

// putSum writes the Internet checksum of b at b[at:], on top of a sum.
func putSum(b []byte, at int, sum uint32) {
	b[at], b[at+1] = 0, 0
	binary.BigEndian.PutUint16(b[at:], ^fold(sum+onesSum(b)))
}

// pseudo6 is the sum of the pseudo header of an ICMPv6 packet (RFC 8200 §8.1) that
// lies behind the IPv6 header ip.
func pseudo6(ip []byte, n int) uint32 {
	return onesSum(ip[ip6Src:types.IPv6Len]) + uint32(n) + types.ICMPv6Number
}

// icmp6 takes an ICMPv6 packet: neighbour discovery and echo requests.
func (l *Link) icmp6(from types.MACAddress, p []byte) bool {
	if len(p) < types.IPv6Len+icmpLen || p[0]>>4 != types.IPv6VtcFlow>>4 || p[ip6Next] != types.ICMPv6Number {
		return false
	}
	n := int(binary.BigEndian.Uint16(p[ip6Len:]))
	if n < icmpLen || n > len(p)-types.IPv6Len {
		return false
	}
	body := p[types.IPv6Len:][:n]
	if fold(pseudo6(p, n)+onesSum(body)) != 0xffff || body[1] != 0 {
		return false
	}
	src, dst := netip.AddrFrom16([16]byte(p[ip6Src:])), netip.AddrFrom16([16]byte(p[ip6Dst:]))
	local := l.cfg.Local.Addr()
	switch body[0] {
	case types.ICMPv6TypeEchoRequest:
		if dst != local || src.IsMulticast() || src.IsUnspecified() || types.IPv6Len+n > l.mtu {
			return false
		}
		l.answer(from, types.IPV6Number, func(b []byte) []byte {
			at := len(b)
			b = append(b, p[:types.IPv6Len+n]...)
			ip := b[at:]
			copy(ip[ip6Src:], p[ip6Dst:][:types.IPv6AddrLen])
			copy(ip[ip6Dst:], p[ip6Src:][:types.IPv6AddrLen])
			ip[ip6Hops] = timeToLive
			ip[types.IPv6Len] = types.ICMPv6TypeEchoResponse
			putSum(ip[types.IPv6Len:], 2, pseudo6(ip, n))
			return b
		})
		return true
	case types.ICMPv6NeighborSolicitation, types.ICMPv6NeighborAdvertisement:
		if n < ndLen || p[ip6Hops] != ndHopLimit {
			return false
		}
		target := netip.AddrFrom16([16]byte(body[ndTarget:]))
		if body[0] == types.ICMPv6NeighborAdvertisement {
			mac, ok := ndOption(body[ndLen:], ndOptionTarget)
			return ok && l.hood.learn(target, mac)
		}
		mac, ok := ndOption(body[ndLen:], ndOptionSource)
		learned := ok && l.hood.learn(src, mac)
		if target != local {
			return learned
		}
		if !ok {
			mac = from
		}
		flags, to := byte(ndSolicited), src
		if src.IsUnspecified() { // somebody wants the address for himself (RFC 4862 §5.4)
			flags, to = ndOverride, netip.IPv6LinkLocalAllNodes()
			mac = types.MACAddress{0x33, 0x33, 0, 0, 0, 1}
		} else if mac[0]&1 != 0 {
			return learned
		}
		l.answer(mac, types.IPV6Number, func(b []byte) []byte {
			return l.appendND(b, types.ICMPv6NeighborAdvertisement, flags, to, target, ndOptionTarget)
		})
		return true
	}
	return false
}

// ndOption finds the MAC address in a list of options.
func ndOption(p []byte, kind byte) (mac types.MACAddress, ok bool) {
	for len(p) >= ndOptionLen && p[1] != 0 {
		n := int(p[1]) * ndOptionLen
		if n > len(p) {
			break
		}
		if p[0] == kind {
			return types.MACAddress(p[2:]), true
		}
		p = p[n:]
	}
	return mac, false
}

// appendND appends an IPv6 packet of neighbour discovery from this end.
func (l *Link) appendND(b []byte, kind, flags byte, dst, target netip.Addr, option byte) []byte {
	const n = ndLen + ndOptionLen
	at := len(b)
	b = append(b, types.IPv6VtcFlow, 0, 0, 0, 0, n, types.ICMPv6Number, ndHopLimit)
	b = append(b, l.cfg.Local.Addr().AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = append(b, kind, 0, 0, 0, flags, 0, 0, 0)
	b = append(b, target.AsSlice()...)
	b = append(b, option, 1)
	b = append(b, l.mac[:]...)
	putSum(b[at+types.IPv6Len:], 2, pseudo6(b[at:], n))
	return b
}
