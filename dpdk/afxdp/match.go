package afxdp

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Match says which frames are the port's; the kernel keeps the others.
type Match struct {
	// Local is the address and UDP port of the port's owner. Datagrams to it are
	// taken if they are whole, without VLAN tag, and their IP header has neither
	// options nor extensions.
	Local netip.AddrPort
	// All takes every frame instead, ARP and all.
	All bool
}

func (m Match) check() error {
	if m.All == m.Local.IsValid() || m.Local.IsValid() && (m.Local.Port() == 0 || m.Local.Addr().Is4In6()) {
		return fmt.Errorf("afxdp: nothing to match (%v, all: %v): give an address with a UDP port, or All", m.Local, m.All)
	}
	return nil
}

// Offsets in struct xdp_md (linux/bpf.h).
const (
	mdData    = 0
	mdDataEnd = 4
	mdQueue   = 16
)

// Offsets in a frame, and values there.
const (
	etherType   = 12
	network     = 14
	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd
	ip4Plain    = 0x45 // version 4, no options
	ip4Fragment = network + 6
	ip4Protocol = network + 9
	ip4To       = network + 16
	ip4Bytes    = 20
	ip6NextAt   = network + 6
	ip6To       = network + 24
	ip6Bytes    = 40
	udpTo       = 2
	udpBytes    = 8
	protocolUDP = 17
)

// The verdicts of an XDP program (enum xdp_action).
const (
	xdpDrop = 1
	xdpPass = 2
)

// program is the filter: frames that match go to the socket of their queue in
// sockets, or meet the verdict missing if it has none; others pass.
func (m Match) program(sockets *ebpf.Map, missing int32) *ebpf.ProgramSpec {
	// Headers are compared in host order as they lie in memory.
	half := func(v uint16) int32 { return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))) }

	const packet, value = asm.R2, asm.R4
	p := asm.Instructions{asm.LoadMem(asm.R7, asm.R1, mdQueue, asm.Word)}
	unless := func(offset int16, size asm.Size, want int32) {
		p = append(p, asm.LoadMem(value, packet, offset, size), asm.JNE.Imm(value, want, "pass"))
	}
	// A comparison of 32 bits would extend the sign of its immediate.
	unlessWord := func(offset int16, want []byte) {
		p = append(p, asm.LoadMem(value, packet, offset, asm.Word),
			asm.LoadImm(asm.R5, int64(binary.NativeEndian.Uint32(want)), asm.DWord),
			asm.JNE.Reg(value, asm.R5, "pass"))
	}
	if !m.All {
		addr := m.Local.Addr().AsSlice()
		header, to := int32(ip6Bytes), int16(ip6To)
		if m.Local.Addr().Is4() {
			header, to = ip4Bytes, ip4To
		}
		p = append(p,
			asm.LoadMem(packet, asm.R1, mdData, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, mdDataEnd, asm.Word),
			asm.Mov.Reg(value, packet),
			asm.Add.Imm(value, network+header+udpBytes),
			asm.JGT.Reg(value, asm.R3, "pass"))
		if m.Local.Addr().Is4() {
			unless(etherType, asm.Half, half(etherIPv4))
			unless(network, asm.Byte, ip4Plain)
			unless(ip4Protocol, asm.Byte, protocolUDP)
			p = append(p, asm.LoadMem(value, packet, ip4Fragment, asm.Half),
				asm.And.Imm(value, half(0x3fff)), // more fragments, or an offset
				asm.JNE.Imm(value, 0, "pass"))
		} else {
			unless(etherType, asm.Half, half(etherIPv6))
			unless(ip6NextAt, asm.Byte, protocolUDP)
		}
		for i := 0; i < len(addr); i += 4 {
			unlessWord(to+int16(i), addr[i:])
		}
		unless(int16(network+header)+udpTo, asm.Half, half(m.Local.Port()))
	}
	p = append(p,
		asm.LoadMapPtr(asm.R1, sockets.FD()),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, missing),
		asm.FnRedirectMap.Call(),
		asm.Return())
	if !m.All {
		p = append(p, asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"), asm.Return())
	}
	return &ebpf.ProgramSpec{Name: "millrace", Type: ebpf.XDP, License: "Apache-2.0", Instructions: p}
}
