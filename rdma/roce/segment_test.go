package roce

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestIdents compares with an ICRC over the header that has the identification.
func TestIdents(t *testing.T) {
	pseudo := AppendPseudo(nil, netip.MustParseAddrPort("192.0.2.1:4791"), netip.MustParseAddrPort("192.0.2.2:51000"))
	crc := NewICRC(pseudo)
	rng := rand.New(rand.NewPCG(1, 1))
	for n := MinPacket; n <= MaxPacket; n += 4 * (1 + rng.IntN(40)) {
		p := make([]byte, n-ICRCLen)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		base := crc.Sum(p)
		ids := []uint16{0, 1, MaxSegments, 0xff, 0x100, 0xffff}
		for range 50 {
			ids = append(ids, uint16(rng.Uint32()))
		}
		for _, id := range ids {
			h := append([]byte(nil), pseudo...)
			binary.BigEndian.PutUint16(h[lrhLen+4:], id)
			PutPseudoLen(h, n)
			want := Sum(h, p)
			if got := base ^ IdentDelta(id, n); got != want {
				t.Fatalf("%d bytes, identification %d: %#x, want %#x", n, id, got, want)
			}
			if got, ok := Ident(base^want, n); !ok || got != id {
				t.Fatalf("%d bytes, identification %d: found %d, %v", n, id, got, ok)
			}
		}
		wrong := 0
		for range 100 {
			if _, ok := Ident(rng.Uint32(), n); ok {
				wrong++
			}
		}
		if wrong > 2 {
			t.Fatalf("%d bytes: %d of 100 random differences count as identifications", n, wrong)
		}
	}
	for _, n := range []int{0, MinPacket - 4, MinPacket + 1, MaxPacket + 4, 65_507} {
		if _, ok := Ident(0, n); ok {
			t.Errorf("%d bytes: no packet has this length", n)
		}
	}
}

func BenchmarkIdent(b *testing.B) {
	for i := 0; b.Loop(); i++ {
		if _, ok := Ident(IdentDelta(uint16(i), 156), 156); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkIdentDelta(b *testing.B) {
	s := uint32(0)
	for i := 0; b.Loop(); i++ {
		s ^= IdentDelta(uint16(i), 156)
	}
	_ = s
}
