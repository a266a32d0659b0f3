package roce

import (
	"hash/crc32"
	"math/rand/v2"
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
