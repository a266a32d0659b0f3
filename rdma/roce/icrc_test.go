package roce

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestSumLengths: the ways to a sum agree with hash/crc32 for every length that a
// packet can have, and beyond.
func TestSumLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4300)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for n := BTHLen; n <= len(p); n++ {
		packet := p[len(p)-n:]
		masked := append([]byte(nil), packet...)
		masked[4] = 0xff
		state := rng.Uint32()
		want := crc32.Update(^state, crc32.IEEETable, masked)
		if got := sum(state, packet); got != want {
			t.Fatalf("%d bytes: sum %08x, want %08x", n, got, want)
		}
		if got := sumGeneric(state, packet); got != want {
			t.Fatalf("%d bytes: sumGeneric %08x, want %08x", n, got, want)
		}
	}
}

// TestSumCopy: a packet in pieces has the sum that it has whole, and what is copied is
// copied whole and no further.
func TestSumCopy(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	c := NewICRC(AppendPseudo(nil, netip.MustParseAddrPort("10.1.2.3:4791"), netip.MustParseAddrPort("10.3.2.1:4791")))
	src, dst := make([]byte, 4400), make([]byte, 4400)
	for i := range src {
		src[i] = byte(rng.Uint32())
	}
	for n := range 4200 {
		headers := src[n%7:][:BTHLen+4*(n%8)]
		payload := src[50+n%5:][:n]
		pad := make([]byte, -n&3)
		for i := range dst {
			dst[i] = 0xa5
		}
		packet := append(append(append([]byte(nil), headers...), payload...), pad...)
		if got, want := c.SumCopy(headers, dst[1:1+n], payload, pad), c.Sum(packet); got != want {
			t.Fatalf("%d bytes: %08x, want %08x", n, got, want)
		}
		if !bytes.Equal(dst[1:1+n], payload) || dst[0] != 0xa5 || dst[1+n] != 0xa5 {
			t.Fatalf("%d bytes: not copied, or more", n)
		}
		if got, want := copySumGeneric(1, dst, payload), copySum(1, dst, payload); got != want {
			t.Fatalf("%d bytes: copySumGeneric %08x, copySum %08x", n, got, want)
		}
	}
}
