package roce

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func TestPSN(t *testing.T) {
	for _, c := range []struct {
		a, b uint32
		want int32
	}{
		{0, 0, 0}, {1, 0, 1}, {0, 1, -1}, {0, PSNMask, 1}, {PSNMask, 0, -1}, {5, PSNMask - 4, 10},
		{1 << 23, 0, -1 << 23}, {1<<23 - 1, 0, 1<<23 - 1}, {0, 1 << 23, -1 << 23},
	} {
		if got := PSNDiff(c.a, c.b); got != c.want {
			t.Errorf("PSNDiff(%#x, %#x) = %d, want %d", c.a, c.b, got, c.want)
		}
		if got := PSNAdd(c.b, uint32(c.want)); got != c.a {
			t.Errorf("PSNAdd(%#x, %d) = %#x, want %#x", c.b, c.want, got, c.a)
		}
	}
}

func TestPathMTU(t *testing.T) {
	for mtu, want := range map[int]int{65536: 4096, 9000: 4096, 4176: 4096, 4175: 2048, 1500: 1024, 1280: 1024, 576: 256, 336: 256, 335: 0, 0: 0} {
		if got := PathMTU(mtu); got != want {
			t.Errorf("PathMTU(%d) = %d, want %d", mtu, got, want)
		}
	}
	for n, want := range map[int]bool{256: true, 512: true, 4096: true, 128: false, 8192: false, 1500: false, 0: false, -256: false} {
		if ValidPathMTU(n) != want {
			t.Errorf("ValidPathMTU(%d) = %v", n, !want)
		}
	}
}

func TestRNRTimer(t *testing.T) {
	for s, want := range map[Syndrome]time.Duration{
		0x20: 655360 * time.Microsecond, 0x21: 10 * time.Microsecond, 0x2c: 640 * time.Microsecond,
		0x2e: 1280 * time.Microsecond, 0x3f: 491520 * time.Microsecond,
	} {
		if got := s.RNRTime(); got != want {
			t.Errorf("%#x waits %v, want %v", uint8(s), got, want)
		}
		if got := RNRSyndrome(want); got != s {
			t.Errorf("RNRSyndrome(%v) = %#x, want %#x", want, uint8(got), uint8(s))
		}
	}
	for d, want := range map[time.Duration]Syndrome{0: 0x21, 11 * time.Microsecond: 0x22, 500 * time.Millisecond: 0x20, time.Hour: 0x20} {
		if got := RNRSyndrome(d); got != want {
			t.Errorf("RNRSyndrome(%v) = %#x, want %#x", d, uint8(got), uint8(want))
		}
	}
	if AckTimeout(14) != 67108864*time.Nanosecond || AckTimeout(0) != 0 {
		t.Error("AckTimeout")
	}
}

func TestSyndromeKinds(t *testing.T) {
	for s, want := range map[Syndrome]string{
		SyndromeACK: "ACK", 0: "ACK", SyndromeRNR | 1: "RNR NAK 10µs", NAKSequence: "NAK PSN sequence error",
		NAKInvalidRequest: "NAK invalid request", NAKRemoteAccess: "NAK remote access error",
		NAKRemoteOperational: "NAK remote operational error", 0x40: "syndrome 0x40", 0x80: "syndrome 0x80", 0xe0: "syndrome 0xe0",
	} {
		if s.String() != want {
			t.Errorf("%#x is %q, want %q", uint8(s), s, want)
		}
	}
}

func TestOpcodes(t *testing.T) {
	for op, want := range map[Opcode]struct {
		name string
		hdr  int
	}{
		SendOnly: {"RC_SEND_ONLY", 12}, SendLastImm: {"RC_SEND_LAST_WITH_IMMEDIATE", 16}, WriteOnlyImm: {"RC_RDMA_WRITE_ONLY_WITH_IMMEDIATE", 32},
		Acknowledge: {"RC_ACKNOWLEDGE", 16}, AtomicAcknowledge: {"RC_ATOMIC_ACKNOWLEDGE", 24}, FetchAdd: {"RC_FETCH_ADD", 40},
		0x64: {"UD_SEND_ONLY", 12}, 0x1f: {"opcode 0x1f", 0}, 0x81: {"opcode 0x81", 0},
	} {
		if op.String() != want.name {
			t.Errorf("%#x is %q, want %q", uint8(op), op, want.name)
		}
		if op.Class() == RC && op.Props() != 0 && op.HeaderLen() != want.hdr {
			t.Errorf("%v has %d bytes of headers, want %d", op, op.HeaderLen(), want.hdr)
		}
	}
	for op := range 256 {
		if o := Opcode(op); (o.Props() != 0) != (op <= 0x14) {
			t.Errorf("%v has properties %#x", o, o.Props())
		}
	}
}

// TestICRCAgainstReference compares the table-driven sum with one pass of
// hash/crc32 over the masked bytes, for every short length and random long ones.
func TestICRCAgainstReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pairs := [][2]netip.AddrPort{
		{netip.MustParseAddrPort("10.1.2.3:4791"), netip.MustParseAddrPort("10.3.2.1:40000")},
		{netip.MustParseAddrPort("[::ffff:10.1.2.3]:4791"), netip.MustParseAddrPort("10.3.2.1:40000")},
		{netip.MustParseAddrPort("[fe80::1]:50000"), netip.MustParseAddrPort("[2001:db8::2]:4791")},
	}
	buf := make([]byte, 4200)
	for i := range buf {
		buf[i] = byte(rng.Uint32())
	}
	for _, pr := range pairs {
		pseudo := AppendPseudo(nil, pr[0], pr[1])
		c := NewICRC(pseudo)
		check := func(n int) {
			p := buf[:n]
			PutPseudoLen(pseudo, n+ICRCLen)
			ref := append(append([]byte(nil), pseudo...), p...)
			ref[len(pseudo)+4] = 0xff
			want := crc32.ChecksumIEEE(ref)
			if got := c.Sum(p); got != want {
				t.Fatalf("%v: %d bytes: %08x, want %08x", pr, n, got, want)
			}
		}
		for n := BTHLen; n < 300; n++ {
			check(n)
		}
		for range 200 {
			check(BTHLen + rng.IntN(len(buf)-BTHLen))
		}
	}
}

func TestNoAllocations(t *testing.T) {
	pkt := make([]byte, 160)
	c := NewICRC(AppendPseudo(nil, netip.MustParseAddrPort("10.1.2.3:4791"), netip.MustParseAddrPort("10.3.2.1:4791")))
	if n := testing.AllocsPerRun(100, func() {
		(*BTH)(pkt).Put(SendOnly, 0, 5, true, 6)
		PutICRC(pkt[156:], c.Sum(pkt[:156]))
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

var sink uint32

func BenchmarkICRC(b *testing.B) {
	c := NewICRC(AppendPseudo(nil, netip.MustParseAddrPort("10.1.2.3:4791"), netip.MustParseAddrPort("10.3.2.1:4791")))
	for _, n := range []int{16, 12 + 64, 12 + 128, 16 + 128, 12 + 1024, 12 + 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				sink = c.Sum(p)
			}
		})
	}
}

func BenchmarkSumCopy(b *testing.B) {
	c := NewICRC(AppendPseudo(nil, netip.MustParseAddrPort("10.1.2.3:4791"), netip.MustParseAddrPort("10.3.2.1:4791")))
	for _, n := range []int{256, 512, 1024, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			head, dst, p := make([]byte, BTHLen), make([]byte, n), make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				sink = c.SumCopy(head, dst, p, nil)
			}
		})
	}
}
