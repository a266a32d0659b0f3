package dpdk

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/intel-go/nff-go/types"
)

// The header in six words is the one that is copied and changed, whatever was there before.
func TestHeaderInWords(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var src, dst types.MACAddress
		var ip [8]byte
		for _, b := range [][]byte{src[:], dst[:], ip[:]} {
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}
		h := newHeader(src, dst, 0, netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[:])), uint16(rng.Uint32())),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[4:])), uint16(rng.Uint32())))
		got, want := bytes.Repeat([]byte{0xa5}, 64), bytes.Repeat([]byte{0xa5}, 64)
		n := rng.IntN(9000)
		h.put(got, n)
		h.putAny(want, n)
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes:\n got %x\nwant %x", n, got, want)
		}
	}
}
