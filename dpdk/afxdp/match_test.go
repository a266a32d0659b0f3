package afxdp

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// load makes the program with a verdict that tells "matched" from "passed".
func load(t testing.TB, m Match) *ebpf.Program {
	t.Helper()
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	need(t, err)
	t.Cleanup(func() { _ = sockets.Close() })
	p, err := ebpf.NewProgram(m.program(sockets, xdpDrop))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// need skips where AF_XDP cannot be had and fails for any other error.
func need(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, unix.EPERM) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skipf("no AF_XDP here: %v (needs root and a kernel with CONFIG_XDP_SOCKETS)", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// frame is hexadecimal, spaces aside, padded to what the kernel takes.
func frame(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProgramPicksItsFrames(t *testing.T) {
	const (
		ether4 = "020000000001 020000000002 0800 "
		ether6 = "020000000001 020000000002 86dd "
		ip4    = "45 00 0024 0000 4000 40 11 0000 c0000202 c0000201 "
		ip6    = "60000000 0010 11 40 20010db8000000000000000000000002 20010db8000000000000000000000001 "
		udp    = "c000 12b7 0010 0000 0102030405060708"
	)
	v4 := Match{Local: netip.MustParseAddrPort("192.0.2.1:4791")}
	v6 := Match{Local: netip.MustParseAddrPort("[2001:db8::1]:4791")}
	for _, tc := range []struct {
		name  string
		match Match
		frame string
		taken bool
	}{
		{"IPv4", v4, ether4 + ip4 + udp, true},
		{"another port", v4, ether4 + ip4 + strings.Replace(udp, "12b7", "12b8", 1), false},
		{"another address", v4, ether4 + strings.Replace(ip4, "c0000201 ", "c0000203 ", 1) + udp, false},
		{"TCP", v4, ether4 + strings.Replace(ip4, "40 11", "40 06", 1) + udp, false},
		{"with IP options", v4, ether4 + strings.Replace(ip4, "45 00", "46 00", 1) + udp, false},
		{"first fragment", v4, ether4 + strings.Replace(ip4, "4000", "2000", 1) + udp, false},
		{"later fragment", v4, ether4 + strings.Replace(ip4, "4000", "0001", 1) + udp, false},
		{"ARP", v4, "ffffffffffff 020000000002 0806 0001080006040001 020000000002 c0000202 000000000000 c0000201", false},
		{"VLAN", v4, "020000000001 020000000002 8100 0001 0800 " + ip4 + udp, false},
		{"IPv6 for the IPv4 program", v4, ether6 + ip6 + udp, false},
		{"too short for UDP", v4, ether4 + ip4 + "c000 12b7", false},
		{"IPv6", v6, ether6 + ip6 + udp, true},
		{"IPv6, another address in its last word", v6, ether6 + strings.Replace(ip6, "0001 ", "0003 ", 1) + udp, false},
		{"IPv6, another address in its first word", v6, ether6 + ip6[:len(ip6)-33] + "3" + ip6[len(ip6)-32:] + udp, false},
		{"IPv6, another port", v6, ether6 + ip6 + strings.Replace(udp, "12b7", "0035", 1), false},
		{"IPv6 with an extension header", v6, ether6 + strings.Replace(ip6, "11 40", "00 40", 1) + udp, false},
		{"all", Match{All: true}, "ffffffffffff 020000000002 0806 0001", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := frame(t, tc.frame)
			if len(b) < 64 && tc.name != "too short for UDP" {
				b = append(b, make([]byte, 64-len(b))...)
			}
			in := bytes.Clone(b)
			verdict, err := load(t, tc.match).Run(&ebpf.RunOptions{Data: b})
			if err != nil {
				t.Fatal(err)
			}
			if taken := verdict == xdpDrop; taken != tc.taken || !taken && verdict != xdpPass {
				t.Errorf("verdict %d, want taken: %v", verdict, tc.taken)
			}
			if !bytes.Equal(in, b) {
				t.Error("the frame was changed")
			}
		})
	}
}

func TestBadMatch(t *testing.T) {
	for _, m := range []Match{
		{},
		{All: true, Local: netip.MustParseAddrPort("192.0.2.1:4791")},
		{Local: netip.MustParseAddrPort("192.0.2.1:0")},
		{Local: netip.MustParseAddrPort("[::ffff:192.0.2.1]:4791")},
	} {
		if _, err := Attach("lo", m); err == nil || !strings.Contains(err.Error(), "give an address") {
			t.Errorf("%+v: %v", m, err)
		}
	}
}
