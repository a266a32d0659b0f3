//go:build dpdk && cgo

package eal

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"github.com/millrace/millrace/dpdk"
)

func openVdev(t *testing.T, name, args string, queues int, o Options) []Port {
	t.Helper()
	start(t)
	ports, err := NewVdev(name, args, queues, o)
	if err != nil && strings.Contains(err.Error(), "no driver name") {
		t.Skipf("this libdpdk lacks the driver: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range ports {
			closeIfOpen(t, p)
		}
	})
	return ports
}

func addressOf(f dpdk.Frame) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(f.Data))) }

// What is written into a frame is what the other end reads: net_ring hands over where it
// lies, in the arena, in both directions, and no byte is copied between.
func TestRingCopiesNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
	}{{"default", Options{}}, {"small", Options{FrameBytes: 64, Frames: 8, Ring: 16}}, {"largest", Options{FrameBytes: maxFrameBytes, Frames: 8, Ring: 16}}} {
		t.Run(tc.name, func(t *testing.T) {
			p := openVdev(t, "net_ring4", "", 1, tc.o)[0].(*port)
			if p.dev.arena == nil || !strings.Contains(p.Info().Driver, "zero copy, arena of") {
				t.Fatalf("no arena: %s", p.Info().Driver)
			}
			const n = 8
			var tx, rx [n]dpdk.Frame
			seen := map[uintptr]bool{}
			for round := range 200 {
				if got := p.AllocBurst(tx[:]); got != n {
					t.Fatalf("round %d: %d empty frames", round, got)
				}
				for i := range tx {
					if !p.dev.arena.Contains(tx[i].Data) {
						t.Fatalf("frame %d of %d bytes lies outside of the arena", i, len(tx[i].Data))
					}
					if len(tx[i].Data) < max(tc.o.FrameBytes, 64) {
						t.Fatalf("a frame of %d bytes", len(tx[i].Data))
					}
					seen[addressOf(tx[i])] = true
					tx[i].Len = 60
				}
				if got := p.TxBurst(tx[:]); got != n {
					t.Fatalf("round %d: %d sent", round, got)
				}
				if got := p.RxBurst(rx[:]); got != n {
					t.Fatalf("round %d: %d received", round, got)
				}
				for i := range rx {
					if addressOf(rx[i]) != addressOf(tx[i]) {
						t.Fatalf("round %d: frame %d was sent from %#x and received at %#x", round, i, addressOf(tx[i]), addressOf(rx[i]))
					}
				}
				p.FreeBurst(rx[:])
			}
			st := p.Stats()
			if st.RxFrames != 200*n || st.TxFrames != 200*n || st.RxCopied+st.TxCopied+st.Dropped != 0 || !strings.HasPrefix(st.Memory, "arena of") {
				t.Errorf("%+v", st)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if after := p.Stats(); after != st {
				t.Errorf("after Close %+v, before %+v", after, st)
			}
		})
	}
}

// Frames never overlap, also those of different queues of one device.
func TestFramesAreApart(t *testing.T) {
	ports := openVdev(t, "net_null4", "no-rx=1", 2, Options{FrameBytes: 1000, Frames: 100})
	type span struct{ from, to uintptr }
	var all []span
	for _, p := range ports {
		f := make([]dpdk.Frame, 100)
		n := p.AllocBurst(f)
		for i := range n {
			s := span{addressOf(f[i]), addressOf(f[i]) + uintptr(len(f[i].Data))}
			for _, o := range all {
				if s.from < o.to && o.from < s.to {
					t.Fatalf("frames at %#x and %#x overlap", s.from, o.from)
				}
			}
			all = append(all, s)
		}
		if n != 100 {
			t.Errorf("%d frames", n)
		}
		p.FreeBurst(f[:n])
	}
}

func TestNullCopiesNothing(t *testing.T) {
	p := openVdev(t, "net_null5", "", 1, Options{})[0]
	var f [32]dpdk.Frame
	n := p.AllocBurst(f[:])
	for i := range n {
		f[i].Len = 64
	}
	sent := p.TxBurst(f[:n])
	got := p.RxBurst(f[:])
	p.FreeBurst(f[:got])
	if st := p.Stats(); st.TxFrames != uint64(sent) || st.RxFrames < uint64(got) || got == 0 || st.TxCopied+st.RxCopied != 0 {
		t.Errorf("sent %d, received %d: %+v", sent, got, st)
	}
}

// net_memif and net_af_packet copy, and every frame is counted as copied.
func TestCopiesAreCounted(t *testing.T) {
	exchange := func(t *testing.T, a, b Port) {
		t.Helper()
		mustUp(t, a)
		mustUp(t, b)
		const n = 8
		var f [n]dpdk.Frame
		sent, got := 0, 0
		for round := 0; got < n && round < 1<<20; round++ {
			k := a.AllocBurst(f[:n-sent])
			for i := range k {
				f[i].Len = 64
				copy(f[i].Data, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5")
			}
			took := a.TxBurst(f[:k]) // net_memif takes none until the other end has polled
			a.FreeBurst(f[took:k])
			sent += took
			k = b.RxBurst(f[:])
			got += k
			b.FreeBurst(f[:k])
		}
		sa, sb := a.Stats(), b.Stats()
		if sa.TxFrames != n || sa.TxCopied != n || sb.RxFrames < n || sb.RxCopied != sb.RxFrames {
			t.Errorf("sent %+v\nreceived %+v", sa, sb)
		}
		for _, p := range []Port{a, b} {
			if !strings.Contains(p.Info().Driver, ", copies, libdpdk's memory)") {
				t.Error(p.Info().Driver)
			}
		}
	}
	t.Run("net_memif", func(t *testing.T) {
		a, b := pair(t, Options{})
		exchange(t, a, b)
	})
	t.Run("net_af_packet", func(t *testing.T) {
		start(t)
		out, err := exec.Command("ip", "link", "add", "mrzc0", "type", "veth", "peer", "name", "mrzc1").CombinedOutput()
		if err != nil {
			t.Skipf("no veth pair here (it takes root and iproute2): %s", out)
		}
		t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "mrzc0").Run() })
		for _, dev := range []string{"mrzc0", "mrzc1"} {
			if out, err := exec.Command("ip", "link", "set", dev, "up").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		a := openVdev(t, "net_af_packet4", "iface=mrzc0", 1, Options{})[0]
		b := openVdev(t, "net_af_packet5", "iface=mrzc1", 1, Options{})[0]
		exchange(t, a, b)
	})
}

// Devices come and go without leaving memory of libdpdk's, or arenas, behind; also where
// they do not start.
func TestArenasAreFreed(t *testing.T) {
	start(t)
	once := func() {
		p := openVdev(t, "net_ring5", "", 2, Options{})
		for _, q := range p {
			closeIfOpen(t, q)
		}
		if _, err := NewVdev("net_af_packet6", "iface=lo", 1, Options{MTU: 9000}); err == nil {
			t.Fatal("an MTU of 9000 passed")
		}
	}
	once()
	once()
	heap, maps := HeapBytes(), mappings(t)
	for range 10 {
		once()
	}
	if after := HeapBytes(); after > heap {
		t.Errorf("%d bytes of libdpdk's heaps in use before, %d after", heap, after)
	}
	if after := mappings(t); after > maps+4 { // what the Go runtime makes meanwhile
		t.Errorf("%d mappings before, %d after", maps, after)
	}
}

func mappings(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

// Of several queues only the last one that closes closes the device.
func TestStatsOfAClosedQueue(t *testing.T) {
	ports := openVdev(t, "net_null6", "no-rx=1", 2, Options{})
	var f [1]dpdk.Frame
	ports[0].AllocBurst(f[:])
	f[0].Len = 60
	ports[0].TxBurst(f[:])
	has := func() (n int) {
		open, _ := Ports()
		for _, o := range open {
			if o.Info.Name == "net_null6" && o.Stats.TxFrames == uint64(1-o.Queue) {
				n++
			}
		}
		return n
	}
	for i, p := range ports {
		if n := has(); n != 2-i {
			t.Errorf("%d of the device's queues are among the open ports; want %d", n, 2-i)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("a second Close: %v", err)
		}
		if st := ports[0].Stats(); st.TxFrames != 1 {
			t.Errorf("%+v", st)
		}
	}
}
