package dpdk

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/intel-go/nff-go/types"
)

// usualFrame is a frame with n bytes after UDP, as a link writes it.
func usualFrame(src, dst netip.AddrPort, n int) []byte {
	h := newHeader(types.MACAddress{2, 0, 0, 0, 0, 2}, types.MACAddress{2, 0, 0, 0, 0, 1}, 0, src, dst)
	f := make([]byte, h.n+n)
	h.put(f, n)
	return f
}

// FuzzUsualHeader compares the short way with the parser: it takes nothing that the
// parser does not, and gives the same, and it takes what a link writes.
func FuzzUsualHeader(f *testing.F) {
	here, there := netip.MustParseAddrPort("192.0.2.1:4791"), netip.MustParseAddrPort("192.0.2.2:4791")
	first := usualFrame(there, here, 32)
	f.Add(first, first)
	f.Add(first, usualFrame(there, here, 1024))
	f.Add(first, usualFrame(there, here, 15))                                     // too short for RoCEv2
	f.Add(first, append(usualFrame(there, here, 40), 0, 0))                       // padded
	f.Add(first, usualFrame(there, here, 40)[:60])                                // cut
	f.Add(first, usualFrame(netip.AddrPortFrom(there.Addr(), 9), here, 40))       // another port
	f.Add(first, usualFrame(netip.MustParseAddrPort("192.0.2.3:4791"), here, 40)) // another peer
	for _, at := range []int{15, 16, 17, 18, 20, 22, 23, 24, 25, 38, 39, 40} {
		g := usualFrame(there, here, 64)
		g[at] ^= 1
		f.Add(first, g)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		p := newParser(types.MACAddress{2, 0, 0, 0, 0, 1}, 0, here)
		var u usualHeader
		if u.payload(second) != nil {
			t.Fatal("taken before anything was learnt")
		}
		var a, b parsed
		if p.parse(first, &a) != accepted || !a.canonical {
			return
		}
		u.learn(first, a.src)
		// The other way to write a checksum of 0 is the parser's alone.
		if got := u.payload(first); got == nil && (first[usualChecksumAt] != 0xff || first[usualChecksumAt+1] != 0xff) {
			t.Fatalf("it does not take the frame that it was learnt from: % x", first)
		} else if got != nil && !bytes.Equal(got, a.payload) {
			t.Fatalf("% x\nwant % x", got, a.payload)
		}
		got := u.payload(second)
		if got == nil {
			return
		}
		if why := p.parse(second, &b); why != accepted || !b.canonical || b.src != u.src {
			t.Fatalf("taken, but the parser says %v, canonical %v, from %v instead of %v: % x", why, b.canonical, b.src, u.src, second)
		}
		if len(got) != len(b.payload) || &got[0] != &b.payload[0] {
			t.Fatalf("%d bytes, the parser finds %d", len(got), len(b.payload))
		}
	})
}

func TestUsualHeaderTakesWhatALinkWrites(t *testing.T) {
	here, there := netip.MustParseAddrPort("169.254.77.1:4791"), netip.MustParseAddrPort("169.254.77.2:4791")
	var u usualHeader
	u.learn(usualFrame(there, here, 100), there)
	for n := usualShortest - types.UDPLen; n < 9000; n++ {
		if got := u.payload(usualFrame(there, here, n)); len(got) != n {
			t.Fatalf("%d bytes: %d", n, len(got))
		}
	}
}
