package dpdk_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/porttest"
	"github.com/millrace/millrace/rdma/roce"
	"github.com/millrace/millrace/rdma/softroce"
)

var (
	here4, there4 = netip.MustParseAddrPort("192.0.2.1:4791"), netip.MustParseAddrPort("192.0.2.2:4791")
	here6, there6 = netip.MustParseAddrPort("[2001:db8::1]:4791"), netip.MustParseAddrPort("[2001:db8::2]:4791")
	stranger      = net.HardwareAddr{2, 9, 9, 9, 9, 9}
)

// newLinks joins two links by a pair of fake ports.
func newLinks(t *testing.T, a, b dpdk.LinkConfig) (la, lb *dpdk.Link, pa, pb *porttest.Port) {
	t.Helper()
	pa, pb = porttest.NewPair("fake", porttest.Config{})
	la, err := dpdk.NewLink(pa, a)
	if err != nil {
		t.Fatal(err)
	}
	if lb, err = dpdk.NewLink(pb, b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var f [64]softroce.Frame
		la.RxFree(f[:0])
		lb.RxFree(f[:0])
		if n := pa.Outstanding() + pb.Outstanding(); n != 0 {
			t.Errorf("%d frames leaked", n)
		}
		la.Close()
		lb.Close()
	})
	return la, lb, pa, pb
}

// sendTo sends one packet of n bytes and returns them.
func sendTo(t *testing.T, l *dpdk.Link, path *softroce.Path, n int) []byte {
	t.Helper()
	var f [1]softroce.Frame
	if l.TxAlloc(f[:]) != 1 {
		t.Fatal("no frame")
	}
	f[0].Len, f[0].Path = n, path
	for i := range f[0].Data[:n] {
		f[0].Data[i] = byte(i * 3)
	}
	want := append([]byte{}, f[0].Data[:n]...)
	if l.Tx(f[:]) != 1 {
		t.Fatal("refused")
	}
	return want
}

func TestLinksFindEachOther(t *testing.T) {
	for _, tc := range []struct {
		name        string
		here, there netip.AddrPort
		vlan        uint16
	}{{"IPv4", here4, there4, 0}, {"IPv6", here6, there6, 0}, {"IPv4, VLAN", here4, there4, 7}, {"IPv6, VLAN", here6, there6, 4094}} {
		t.Run(tc.name, func(t *testing.T) {
			a, b, _, _ := newLinks(t, dpdk.LinkConfig{Local: tc.here, VLAN: tc.vlan}, dpdk.LinkConfig{Local: tc.there, VLAN: tc.vlan})
			there, err := a.Path(tc.there) // asks for the MAC address
			if err != nil {
				t.Fatal(err)
			}
			sendTo(t, a, &there, 100) // nobody has answered yet
			if a.Stats().Unresolved != 1 {
				t.Fatalf("%+v", a.Stats())
			}
			var rx [8]softroce.Frame
			if b.Rx(rx[:]) != 0 || a.Rx(rx[:]) != 0 || b.Stats().Answered != 1 {
				t.Fatalf("%+v %+v", a.Stats(), b.Stats())
			}
			for _, n := range []int{16, 17, 100, a.Attr().MTU} {
				want := sendTo(t, a, &there, n)
				if k := b.Rx(rx[:]); k != 1 || !bytes.Equal(rx[0].Data[:rx[0].Len], want) || rx[0].Src != tc.here {
					t.Fatalf("%d bytes: %d packets, %+v; %+v", n, k, rx[0], b.Stats())
				}
				// b has no path back: it must say what the ICRC covers.
				pseudo := rx[0].Pseudo
				if want := roce.AppendPseudo(nil, tc.here, tc.there); len(pseudo) != len(want) {
					t.Fatalf("pseudo header % x, want one like % x", pseudo, want)
				}
			}
			if _, err := b.Path(tc.here); err != nil {
				t.Fatal(err)
			}
			sendTo(t, a, &there, 64)
			b.Rx(rx[:])
			a.Rx(rx[1:]) // b's question
			if b.Rx(rx[2:]); rx[0].Pseudo != nil {
				t.Error("the headers are those of the path, and yet a pseudo header came")
			}
			if d := b.Stats().Dropped; len(d) != 0 {
				t.Errorf("dropped %v", d)
			}
		})
	}
}

func TestNeighboursAreKept(t *testing.T) {
	fixed := net.HardwareAddr{2, 1, 1, 1, 1, 1}
	a, _, pa, pb := newLinks(t, dpdk.LinkConfig{
		Local: here4, Prefix: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("192.0.2.254"),
		Neighbours: map[netip.Addr]net.HardwareAddr{there4.Addr(): fixed},
	}, dpdk.LinkConfig{Local: there4})
	var rx [8]softroce.Frame
	var raw [8]dpdk.Frame
	sentTo := func(path *softroce.Path) net.HardwareAddr {
		t.Helper()
		sendTo(t, a, path, 64)
		n := pb.RxBurst(raw[:])
		if n != 1 {
			t.Fatalf("%d frames", n)
		}
		mac := append(net.HardwareAddr{}, raw[0].Data[:6]...)
		pb.FreeBurst(raw[:n])
		return mac
	}
	says := func(op uint16, addr netip.Addr, mac net.HardwareAddr) {
		pa.Inject(arp(t, op, mac, addr, pa.Info().MAC, here4.Addr()))
		a.Rx(rx[:])
	}
	path, err := a.Path(there4)
	if err != nil {
		t.Fatal(err)
	}
	says(2, there4.Addr(), stranger)
	if got := sentTo(&path); !bytes.Equal(got, fixed) {
		t.Errorf("a neighbour that was given moved to %s", got)
	}
	// Peers outside of the network share the gateway's address, and it may move.
	far1, err1 := a.Path(netip.MustParseAddrPort("198.51.100.1:4791"))
	far2, err2 := a.Path(netip.MustParseAddrPort("198.51.100.2:4791"))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	pb.FreeBurst(raw[:pb.RxBurst(raw[:])]) // the question
	for _, mac := range []net.HardwareAddr{{2, 5, 5, 5, 5, 5}, {2, 6, 6, 6, 6, 6}} {
		says(2, netip.MustParseAddr("192.0.2.254"), mac)
		if one, two := sentTo(&far1), sentTo(&far2); !bytes.Equal(one, mac) || !bytes.Equal(two, mac) {
			t.Errorf("the gateway is at %s, packets go to %s and %s", mac, one, two)
		}
	}
	says(2, netip.MustParseAddr("192.0.2.254"), net.HardwareAddr{3, 0, 0, 0, 0, 1}) // a group
	if got := sentTo(&far1); got[0]&1 != 0 {
		t.Errorf("packets go to %s", got)
	}
}

func TestPathsThatCannotBe(t *testing.T) {
	pa, _ := porttest.NewPair("fake", porttest.Config{})
	for _, cfg := range []dpdk.LinkConfig{
		{}, {Local: netip.MustParseAddrPort("0.0.0.0:4791")}, {Local: netip.MustParseAddrPort("192.0.2.1:0")}, {Local: netip.MustParseAddrPort("[ff02::1]:4791")},
		{Local: here4, VLAN: 4095}, {Local: here4, Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Local: here4, Gateway: here6.Addr()},
		{Local: here4, Prefix: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("198.51.100.1")},
		{Local: here4, Neighbours: map[netip.Addr]net.HardwareAddr{there4.Addr(): {1, 2}}}, {Local: here4, Neighbours: map[netip.Addr]net.HardwareAddr{there6.Addr(): stranger}},
		{Local: here4, NetDev: "nonesuch9"},
	} {
		if _, err := dpdk.NewLink(pa, cfg); err == nil || !strings.HasPrefix(err.Error(), "dpdk: ") {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	l, err := dpdk.NewLink(pa, dpdk.LinkConfig{Local: here4, Prefix: netip.MustParsePrefix("192.0.2.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Path(netip.MustParseAddrPort("198.51.100.1:4791")); !errors.Is(err, dpdk.ErrNoNeighbour) {
		t.Errorf("without a gateway: %v", err)
	}
	if _, err := l.Path(there6); err == nil {
		t.Error("a path from IPv4 to IPv6")
	}
}

// A station's questions, made by an independent implementation of the formats.
func arp(t testing.TB, op uint16, mac net.HardwareAddr, addr netip.Addr, toMAC net.HardwareAddr, to netip.Addr) []byte {
	return serialize(t, &layers.Ethernet{SrcMAC: mac, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: mac, SourceProtAddress: addr.AsSlice(), DstHwAddress: toMAC, DstProtAddress: to.AsSlice(),
		})
}

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ip4(proto layers.IPProtocol, src, dst netip.Addr) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 9, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func ip6(hops uint8, src, dst netip.Addr) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: hops, NextHeader: layers.IPProtocolICMPv6, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func icmp6(ip *layers.IPv6, kind uint8) *layers.ICMPv6 {
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	_ = l.SetNetworkLayerForChecksum(ip)
	return l
}

// questions are frames that a link at here4 or here6 must answer, and what the answer
// must hold.
func questions(t testing.TB, mac net.HardwareAddr) map[string]struct {
	frame  []byte
	answer func(t *testing.T, p gopacket.Packet)
} {
	ether := func(kind layers.EthernetType, dst net.HardwareAddr) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: stranger, DstMAC: dst, EthernetType: kind}
	}
	group := net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 1}
	data := gopacket.Payload(bytes.Repeat([]byte("grind"), 11))
	echo := ip6(9, there6.Addr(), here6.Addr())
	ns := ip6(255, there6.Addr(), netip.MustParseAddr("ff02::1:ff00:1"))
	dad := ip6(255, netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1:ff00:1"))
	nsBody := func(options layers.ICMPv6Options) *layers.ICMPv6NeighborSolicitation {
		return &layers.ICMPv6NeighborSolicitation{TargetAddress: here6.Addr().AsSlice(), Options: options}
	}
	advert := func(solicited bool, to netip.Addr) func(*testing.T, gopacket.Packet) {
		return func(t *testing.T, p gopacket.Packet) {
			ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
			na := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
			if !na.TargetAddress.Equal(here6.Addr().AsSlice()) || na.Solicited() != solicited || !na.Override() || ip.HopLimit != 255 || !ip.DstIP.Equal(to.AsSlice()) ||
				len(na.Options) != 1 || na.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(na.Options[0].Data, mac) {
				t.Errorf("%v", p)
			}
		}
	}
	return map[string]struct {
		frame  []byte
		answer func(t *testing.T, p gopacket.Packet)
	}{
		"ARP": {arp(t, 1, stranger, there4.Addr(), make(net.HardwareAddr, 6), here4.Addr()), func(t *testing.T, p gopacket.Packet) {
			a := p.Layer(layers.LayerTypeARP).(*layers.ARP)
			if a.Operation != 2 || !bytes.Equal(a.SourceHwAddress, mac) || !bytes.Equal(a.SourceProtAddress, here4.Addr().AsSlice()) ||
				!bytes.Equal(a.DstHwAddress, stranger) || !bytes.Equal(a.DstProtAddress, there4.Addr().AsSlice()) {
				t.Errorf("%v", p)
			}
		}},
		"echo": {serialize(t, ether(layers.EthernetTypeIPv4, mac), ip4(layers.IPProtocolICMPv4, there4.Addr(), here4.Addr()),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7, Seq: 8}, data), func(t *testing.T, p gopacket.Packet) {
			ip, e := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if e.TypeCode.Type() != 0 || e.Id != 7 || e.Seq != 8 || !bytes.Equal(e.Payload, data) || !ip.DstIP.Equal(there4.Addr().AsSlice()) || ip.TTL != 64 {
				t.Errorf("%v", p)
			}
		}},
		"echo of IPv6": {serialize(t, ether(layers.EthernetTypeIPv6, mac), echo, icmp6(echo, 128), &layers.ICMPv6Echo{Identifier: 7, SeqNumber: 8}), func(t *testing.T, p gopacket.Packet) {
			e := p.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo)
			if p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).TypeCode.Type() != 129 || e.Identifier != 7 || e.SeqNumber != 8 {
				t.Errorf("%v", p)
			}
		}},
		"neighbour solicitation": {serialize(t, ether(layers.EthernetTypeIPv6, group), ns, icmp6(ns, 135),
			nsBody(layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: stranger}})), advert(true, there6.Addr())},
		"duplicate address detection": {serialize(t, ether(layers.EthernetTypeIPv6, group), dad, icmp6(dad, 135), nsBody(nil)),
			advert(false, netip.IPv6LinkLocalAllNodes())},
	}
}

func TestAnswers(t *testing.T) {
	pa, pb := porttest.NewPair("fake", porttest.Config{})
	links := map[bool]*dpdk.Link{}
	for _, local := range []netip.AddrPort{here4, here6} {
		l, err := dpdk.NewLink(pa, dpdk.LinkConfig{Local: local})
		if err != nil {
			t.Fatal(err)
		}
		links[local.Addr().Is4()] = l
	}
	var raw [8]dpdk.Frame
	var rx [64]softroce.Frame
	for name, q := range questions(t, pa.Info().MAC) {
		t.Run(name, func(t *testing.T) {
			l := links[name == "ARP" || name == "echo"]
			pa.Inject(q.frame)
			if l.Rx(rx[:]) != 0 {
				t.Fatal("taken for data")
			}
			n := pb.RxBurst(raw[:])
			if n != 1 {
				t.Fatalf("%d answers; %+v", n, l.Stats())
			}
			frame := append([]byte{}, raw[0].Data[:raw[0].Len]...)
			pb.FreeBurst(raw[:n])
			p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			if p.ErrorLayer() != nil {
				t.Fatal(p.ErrorLayer().Error())
			}
			if eth := p.LinkLayer().(*layers.Ethernet); !bytes.Equal(eth.SrcMAC, pa.Info().MAC) || name != "duplicate address detection" && !bytes.Equal(eth.DstMAC, stranger) {
				t.Errorf("%v", p)
			}
			q.answer(t, p)
			// Lengths and checksums, counted again by others, must not change anything.
			if c, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
				_ = c.SetNetworkLayerForChecksum(p.NetworkLayer())
			}
			again := gopacket.NewSerializeBuffer()
			if err := gopacket.SerializePacket(again, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, p); err != nil || !bytes.Equal(again.Bytes(), frame) {
				t.Errorf("%v: want\n% x\nhave\n% x", err, again.Bytes(), frame)
			}
			// A damaged question gets no answer: every byte counts but the
			// addresses of the Ethernet header and what nobody checks.
			for i := 14; i < len(q.frame); i++ {
				bad := append([]byte{}, q.frame...)
				bad[i] ^= 0x10
				pa.Inject(bad)
				l.Rx(rx[:])
				if n := pb.RxBurst(raw[:]); n > 0 {
					if name != "ARP" && !strings.Contains(name, "IPv6") && name != "neighbour solicitation" && name != "duplicate address detection" {
						t.Errorf("answered with byte %d damaged", i)
					}
					pb.FreeBurst(raw[:n])
				}
			}
			// A flood of them takes a few frames of each burst.
			for range 64 {
				pa.Inject(q.frame)
			}
			l.Rx(rx[:])
			n = pb.RxBurst(raw[:])
			pb.FreeBurst(raw[:n])
			if n == 0 || n > 4 {
				t.Errorf("%d answers to a burst", n)
			}
		})
	}
}

func TestForeignTrafficIsCounted(t *testing.T) {
	packet := func(dst netip.AddrPort, mac net.HardwareAddr, change func(*layers.IPv4)) []byte {
		ip := ip4(layers.IPProtocolUDP, there4.Addr(), dst.Addr())
		if change != nil {
			change(ip)
		}
		udp := &layers.UDP{SrcPort: 4791, DstPort: layers.UDPPort(dst.Port())}
		_ = udp.SetNetworkLayerForChecksum(ip)
		return serialize(t, &layers.Ethernet{SrcMAC: stranger, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(make([]byte, 40)))
	}
	pa, _ := porttest.NewPair("fake", porttest.Config{})
	l, err := dpdk.NewLink(pa, dpdk.LinkConfig{Local: here4})
	if err != nil {
		t.Fatal(err)
	}
	me := pa.Info().MAC
	tagged := append(append(append([]byte{}, packet(here4, me, nil)[:12]...), 0x81, 0, 0, 5), packet(here4, me, nil)[12:]...)
	badSum := packet(here4, me, nil)
	badSum[24] ^= 1
	for _, tc := range []struct {
		why   dpdk.Drop
		frame []byte
	}{
		{dpdk.DropShort, make([]byte, 10)}, {dpdk.DropMAC, packet(here4, stranger, nil)}, {dpdk.DropVLAN, tagged},
		{dpdk.DropEtherType, append(append([]byte{}, packet(here4, me, nil)[:12]...), make([]byte, 60)...)},
		{dpdk.DropIPHeader, badSum}, {dpdk.DropFragment, packet(here4, me, func(ip *layers.IPv4) { ip.Flags = layers.IPv4MoreFragments })},
		{dpdk.DropProtocol, packet(here4, me, func(ip *layers.IPv4) { ip.Protocol = layers.IPProtocolSCTP })},
		{dpdk.DropAddress, packet(there4, me, nil)}, {dpdk.DropPort, packet(netip.AddrPortFrom(here4.Addr(), 53), me, nil)},
	} {
		before := l.Stats().Dropped[tc.why]
		pa.Inject(tc.frame)
		var rx [8]softroce.Frame
		if n := l.Rx(rx[:]); n != 0 || l.Stats().Dropped[tc.why] != before+1 {
			t.Errorf("%v: %d packets, %v", tc.why, n, l.Stats().Dropped)
		}
	}
	pa.Inject(packet(here4, me, nil))
	var rx [8]softroce.Frame
	if n := l.Rx(rx[:]); n != 1 {
		t.Errorf("the good one was dropped: %v", l.Stats().Dropped)
	}
}

// FuzzFrame gives a link arbitrary frames. Each is accepted, answered or counted,
// and none leaks.
func FuzzFrame(f *testing.F) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for _, q := range questions(f, mac) {
		f.Add(q.frame)
	}
	ip := ip4(layers.IPProtocolUDP, there4.Addr(), here4.Addr())
	udp := &layers.UDP{SrcPort: 4791, DstPort: 4791}
	_ = udp.SetNetworkLayerForChecksum(ip)
	f.Add(serialize(f, &layers.Ethernet{SrcMAC: stranger, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(make([]byte, 40))))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) == 0 || len(frame) > 2048 {
			return
		}
		for _, cfg := range []dpdk.LinkConfig{{Local: here4}, {Local: here6}, {Local: here4, VLAN: 5}, {Local: here6, VLAN: 5}, {Local: here4, PointToPoint: true}} {
			pa, pb := porttest.NewPair("fake", porttest.Config{Frames: 12, FrameBytes: 2048})
			l, err := dpdk.NewLink(pa, cfg)
			if err != nil {
				t.Fatal(err)
			}
			there := there4
			if cfg.Local.Addr().Is6() {
				there = there6
			}
			if _, err := l.Path(there); err != nil {
				t.Fatal(err)
			}
			pa.Inject(frame)
			var rx [8]softroce.Frame
			n := l.Rx(rx[:])
			for _, p := range rx[:n] {
				if p.Len < roce.MinPacket || p.Len > len(p.Data) || p.Src.Addr().Is4() != cfg.Local.Addr().Is4() {
					t.Fatalf("%+v", p)
				}
			}
			l.RxFree(rx[:n])
			if pa.Outstanding() != 0 {
				t.Fatal("a frame leaked")
			}
			var raw [8]dpdk.Frame
			pb.FreeBurst(raw[:pb.RxBurst(raw[:])])
			l.Close()
		}
	})
}
