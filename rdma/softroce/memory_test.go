package softroce

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// memoryPackets sends count numbered packets from a to b, one each microsecond, and
// returns what arrives, in order, with its time.
func memoryPackets(t *testing.T, n *MemoryNet, a, b Link, count int) (got [][]byte, at []int64) {
	t.Helper()
	path, err := a.Path(b.Attr().Local)
	if err != nil {
		t.Fatal(err)
	}
	rx := make([]Frame, burst)
	collect := func() {
		k := b.Rx(rx)
		for _, f := range rx[:k] {
			if f.Src != a.Attr().Local {
				t.Fatalf("a packet from %v", f.Src)
			}
			got, at = append(got, bytes.Clone(f.Data[:f.Len])), append(at, n.Now())
		}
		b.RxFree(rx[:k])
	}
	for i := range count {
		tx := make([]Frame, 1)
		if a.TxAlloc(tx) != 1 {
			t.Fatal("no frame")
		}
		binary.BigEndian.PutUint64(tx[0].Data, uint64(i))
		binary.BigEndian.PutUint64(tx[0].Data[8:], ^uint64(i))
		tx[0].Len, tx[0].Path = 16, &path
		if a.Tx(tx) != 1 {
			t.Fatal("not sent")
		}
		collect()
		n.Advance(n.Now() + 1000)
		collect()
	}
	for n.Next() != 0 {
		n.Advance(n.Next())
		collect()
	}
	return got, at
}

func intact(p []byte) bool { return binary.BigEndian.Uint64(p) == ^binary.BigEndian.Uint64(p[8:]) }

// Every kind of fault happens as often as asked for, and does what it says.
func TestMemoryFaults(t *testing.T) {
	const count = 20_000
	for _, tt := range []struct {
		name   string
		faults Faults
		check  func(t *testing.T, got [][]byte, at []int64)
	}{
		{"none", Faults{}, func(t *testing.T, got [][]byte, at []int64) {
			for i, p := range got {
				if binary.BigEndian.Uint64(p) != uint64(i) || at[i] != int64(i)*1000 {
					t.Fatalf("packet %d: %x at %d", i, p, at[i])
				}
			}
		}},
		{"loss", Faults{Loss: 0.05}, func(t *testing.T, got [][]byte, _ []int64) { near(t, "lost", count-len(got), count/20) }},
		{"duplicates", Faults{Duplicate: 0.05}, func(t *testing.T, got [][]byte, _ []int64) {
			near(t, "more", len(got)-count, count/20)
			got = slices.CompactFunc(got, bytes.Equal)
			if len(got) != count {
				t.Errorf("%d different packets", len(got))
			}
		}},
		{"corruption", Faults{Corrupt: 0.05}, func(t *testing.T, got [][]byte, _ []int64) {
			bad := 0
			for i, p := range got {
				if intact(p) {
					continue
				}
				bad++
				flipped := bits.OnesCount64(binary.BigEndian.Uint64(p)^uint64(i)) + bits.OnesCount64(binary.BigEndian.Uint64(p[8:])^^uint64(i))
				if flipped != 1 {
					t.Errorf("packet %d: %d bits flipped", i, flipped)
				}
			}
			near(t, "damaged", bad, count/20)
		}},
		{"delay", Faults{Delay: 70 * time.Microsecond}, func(t *testing.T, got [][]byte, at []int64) {
			for i, p := range got {
				if binary.BigEndian.Uint64(p) != uint64(i) || at[i] != int64(i)*1000+70_000 {
					t.Fatalf("packet %d: %x at %d", i, p, at[i])
				}
			}
		}},
		{"reordering", Faults{Reorder: 0.05, ReorderBy: 50 * time.Microsecond}, func(t *testing.T, got [][]byte, at []int64) {
			late, latest := 0, uint64(0)
			for i, p := range got {
				n := binary.BigEndian.Uint64(p)
				if n < latest {
					late++
				}
				latest = max(latest, n)
				if d := at[i] - int64(n)*1000; d < 0 || d > 51_000 {
					t.Fatalf("packet %d took %d ns", n, d)
				}
			}
			near(t, "overtaken", late, count/20)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := NewMemoryNet(7, tt.faults)
			a, b := n.Pair()
			got, at := memoryPackets(t, n, a, b, count)
			if tt.faults.Loss == 0 && tt.faults.Duplicate == 0 && len(got) != count {
				t.Fatalf("%d of %d packets", len(got), count)
			}
			tt.check(t, got, at)
			if n.FreeFrames() != 2048 {
				t.Errorf("%d frames are free", n.FreeFrames())
			}
		})
	}
}

// near allows a fifth: more than six deviations of what these tests count.
func near(t *testing.T, what string, got, want int) {
	t.Helper()
	if got < want*4/5 || got > want*6/5 {
		t.Errorf("%s: %d packets, want about %d", what, got, want)
	}
}

// The same seed gives the same run, another seed another.
func TestMemorySeeds(t *testing.T) {
	run := func(seed uint64) (got [][]byte, at []int64) {
		n := NewMemoryNet(seed, Faults{Loss: 0.1, Duplicate: 0.1, Corrupt: 0.1, Reorder: 0.2, ReorderBy: 20 * time.Microsecond, Delay: time.Microsecond})
		a, b := n.Pair()
		return memoryPackets(t, n, a, b, 2000)
	}
	same := func(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }
	g1, at1 := run(1)
	g2, at2 := run(1)
	if !same(g1, g2) || !slices.Equal(at1, at2) {
		t.Error("two runs of one seed differ")
	}
	if g3, _ := run(2); same(g1, g3) {
		t.Error("two seeds give the same run")
	}
}

// A partition loses what is sent while it lasts; half of one leaves the way back open.
func TestMemoryPartition(t *testing.T) {
	for _, f := range []Faults{{}, {Delay: 10 * time.Microsecond}} {
		n := NewMemoryNet(1, f)
		a, b := n.Pair()
		count := func(from, to Link) int {
			got, _ := memoryPackets(t, n, from, to, 10)
			return len(got)
		}
		if count(a, b) != 10 {
			t.Fatal("packets lost before")
		}
		n.Cut(a, b)
		if ab, ba := count(a, b), count(b, a); ab != 0 || ba != 10 {
			t.Errorf("one way is cut: %d and %d of 10", ab, ba)
		}
		n.Partition(a, b)
		if ab, ba := count(a, b), count(b, a); ab != 0 || ba != 0 {
			t.Errorf("partition: %d and %d of 10", ab, ba)
		}
		n.Heal()
		if ab, ba := count(a, b), count(b, a); ab != 10 || ba != 10 {
			t.Errorf("healed: %d and %d of 10", ab, ba)
		}
		if n.Lost() != 30 || n.FreeFrames() != 2048 {
			t.Errorf("%d lost, %d frames are free", n.Lost(), n.FreeFrames())
		}
	}
}

// Messages survive a partition that is shorter than the peer's time-out, once and in
// order; a longer one fails the queue pair.
func TestPartitionHeals(t *testing.T) {
	p := newPair(t, 3, Faults{Delay: 5 * time.Microsecond}, 1024, options{peerTimeout: 500 * time.Millisecond})
	tr := newTraffic(3, 4000, 3000)
	p.b.postRecvs(t, p.b.depth)
	la, lb := p.a.dev.link, p.b.dev.link
	cuts := []func(){func() { p.net.Partition(la, lb) }, func() { p.net.Cut(la, lb) }, func() { p.net.Cut(lb, la) }}
	end := p.net.Now() + int64(20*time.Second)
	next, healAt := 500, int64(0)
	for !tr.done() {
		tr.pump(t, p.a, p.b)
		p.step()
		if healAt == 0 && tr.got >= next {
			cuts[next/500%len(cuts)]()
			next, healAt = next+500, p.net.Now()+int64(100*time.Millisecond)
		}
		if healAt != 0 && p.net.Now() >= healAt {
			p.net.Heal()
			healAt = 0
		}
		if p.net.Now() > end {
			t.Fatalf("%d of %d messages\na: %+v\nb: %+v", tr.got, tr.count, p.a.dev.Stats(), p.b.dev.Stats())
		}
	}
	if p.a.dev.Stats().Timeouts == 0 {
		t.Error("no partition was noticed")
	}
}

// Every bound of the net has an end that is named: a queue that is full loses
// packets, a net without frames gives none.
func TestMemoryBounds(t *testing.T) {
	n := NewMemoryNet(1, Faults{Queue: 8, Frames: 16})
	a, b := n.Pair()
	path, err := a.Path(b.Attr().Local)
	if err != nil {
		t.Fatal(err)
	}
	tx := make([]Frame, 32)
	if k := a.TxAlloc(tx); k != 16 {
		t.Fatalf("%d frames of 16", k)
	}
	if k := b.TxAlloc(make([]Frame, 1)); k != 0 {
		t.Fatal("a frame out of nothing")
	}
	for i := range tx[:12] {
		tx[i].Len, tx[i].Path = 16, &path
	}
	if a.Tx(tx[:12]) != 12 || n.Lost() != 4 {
		t.Errorf("a queue of 8 lost %d of 12", n.Lost())
	}
	a.TxFree(tx[12:16])
	nowhere, err := a.Path(netip.MustParseAddrPort("192.0.2.200:4791"))
	if err != nil {
		t.Fatal(err)
	}
	a.TxAlloc(tx[:1])
	tx[0].Len, tx[0].Path = 16, &nowhere
	if a.Tx(tx[:1]) != 1 || n.Lost() != 5 {
		t.Errorf("to nowhere: %d lost", n.Lost())
	}
	if _, err := a.Path(netip.MustParseAddrPort("[2001:db8::1]:4791")); err == nil {
		t.Error("a path from IPv4 to IPv6")
	}
	if _, err := n.Link(a.Attr().Local); err == nil {
		t.Error("an address twice")
	}
	for _, l := range []Link{a, b, a} {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if n.FreeFrames() != 16 {
		t.Errorf("%d frames are free", n.FreeFrames())
	}
}
