package roce

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestSegments compares with an ICRC over the header that has the identification.
func TestSegments(t *testing.T) {
	pseudo := AppendPseudo(nil, netip.MustParseAddrPort("192.0.2.1:4791"), netip.MustParseAddrPort("192.0.2.2:51000"))
	crc := NewICRC(pseudo)
	rng := rand.New(rand.NewPCG(1, 1))
	for n := MinPacket; n <= maxSegmented; n += 4 * (1 + rng.IntN(40)) {
		p := make([]byte, n-ICRCLen)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		base := crc.Sum(p)
		for id := range MaxSegments {
			h := append([]byte(nil), pseudo...)
			binary.BigEndian.PutUint16(h[lrhLen+4:], uint16(id))
			PutPseudoLen(h, n)
			want := Sum(h, p)
			if got := base ^ SegmentDelta(id, n); got != want {
				t.Fatalf("%d bytes, segment %d: %#x, want %#x", n, id, got, want)
			}
			if !IsSegment(base^want, n) {
				t.Fatalf("%d bytes, segment %d not found", n, id)
			}
		}
		h := append([]byte(nil), pseudo...)
		binary.BigEndian.PutUint16(h[lrhLen+4:], MaxSegments)
		PutPseudoLen(h, n)
		if IsSegment(base^Sum(h, p), n) || IsSegment(rng.Uint32()|1, n) {
			t.Fatalf("%d bytes: what is no segment was found", n)
		}
	}
	for _, n := range []int{0, MinPacket - 4, MinPacket + 1, maxSegmented + 4, 65_507} {
		if IsSegment(0, n) || IsSegment(1, n) {
			t.Errorf("%d bytes: no packet has this length", n)
		}
	}
}
