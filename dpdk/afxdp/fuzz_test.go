package afxdp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// takes is what the program decides, in Go.
func (m Match) takes(frame []byte) bool {
	v4 := m.Local.Addr().Is4()
	header := ip6Bytes
	if v4 {
		header = ip4Bytes
	}
	if len(frame) < network+header+udpBytes {
		return false
	}
	be := func(at int) int { return int(binary.BigEndian.Uint16(frame[at:])) }
	to := ip6To
	if v4 {
		to = ip4To
		if be(etherType) != etherIPv4 || frame[network] != ip4Plain || frame[ip4Protocol] != protocolUDP || be(ip4Fragment)&0x3fff != 0 {
			return false
		}
	} else if be(etherType) != etherIPv6 || frame[ip6NextAt] != protocolUDP {
		return false
	}
	addr := m.Local.Addr().AsSlice()
	return bytes.Equal(frame[to:to+len(addr)], addr) && be(network+header+udpTo) == int(m.Local.Port())
}

// Every value of every byte of a frame that is taken, and every shorter frame: random
// bytes come upon few frames that are nearly right.
func TestProgramAgreesWithItsTwin(t *testing.T) {
	for _, tc := range []struct{ local, frame string }{
		{"192.0.2.1:4791", "020000000001 020000000002 0800 45 00 0024 0000 4000 40 11 0000 c0000202 c0000201 c000 12b7 0010 0000 0102030405060708"},
		{"[2001:db8::1]:4791", "020000000001 020000000002 86dd 60000000 0010 11 40 20010db8000000000000000000000002 20010db8000000000000000000000001 c000 12b7 0010 0000 0102030405060708"},
	} {
		m := Match{Local: netip.MustParseAddrPort(tc.local)}
		p := load(t, m)
		good := frame(t, tc.frame)
		if !m.takes(good) {
			t.Fatalf("%s: not taken", tc.local)
		}
		agree := func(b []byte) {
			t.Helper()
			verdict, err := p.Run(&ebpf.RunOptions{Data: b})
			if err != nil {
				t.Fatalf("%d bytes: %v", len(b), err)
			}
			if want := m.takes(b); verdict == xdpDrop != want || !want && verdict != xdpPass {
				t.Fatalf("%s: verdict %d, want taken: %v: %x", tc.local, verdict, want, b)
			}
		}
		for at := range good {
			b := bytes.Clone(good)
			for v := range 256 {
				b[at] = byte(v)
				agree(b)
			}
		}
		for n := 14; n <= len(good); n++ {
			agree(good[:n])
		}
	}
}

// The program in the kernel and its twin in Go agree on every frame, and the program
// changes none.
func FuzzProgram(f *testing.F) {
	var programs []*ebpf.Program
	matches := []Match{{Local: netip.MustParseAddrPort("192.0.2.1:4791")}, {Local: netip.MustParseAddrPort("[2001:db8::1]:4791")}}
	for _, m := range matches {
		programs = append(programs, load(f, m))
	}
	for _, s := range []string{
		"020000000001020000000002080045000024000040004011 0000c0000202c0000201c00012b700100000 0102030405060708 0000000000000000",
		"02000000000102000000000286dd6000000000101140 20010db8000000000000000000000002 20010db8000000000000000000000001 c00012b700100000 0102030405060708",
		"0200000000010200000000020800460000240000400040110000c0000202c0000201c00012b70010000001020304050607080000000000000000",
		"ffffffffffff0200000000020806000108000604000102000000000200000000000000000000000000000000000000000000000000000000000000000000",
	} {
		f.Add(frame(f, s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 14 || len(data) > 3000 {
			return // the kernel does not run programs on less than an Ethernet header
		}
		for i, m := range matches {
			in := bytes.Clone(data)
			verdict, err := programs[i].Run(&ebpf.RunOptions{Data: in})
			if err != nil {
				t.Fatalf("%d bytes: %v", len(data), err)
			}
			if want := m.takes(data); verdict == xdpDrop != want || !want && verdict != xdpPass {
				t.Errorf("%v: verdict %d, want taken: %v: %x", m.Local, verdict, want, data)
			}
			if !bytes.Equal(in, data) {
				t.Error("the frame was changed")
			}
		}
	})
}
