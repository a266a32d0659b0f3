package porttest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
)

// Conform runs the conformance suite. newPair makes two connected ports without
// faults and closes them with t.Cleanup; both are driven by one goroutine.
func Conform(t *testing.T, newPair func(t *testing.T) (a, b dpdk.Port)) {
	suite{}.run(t, newPair)
}

// ConformLossy is Conform for ports that do not hold a sender back: what the
// receiver has no room for is lost, as on a wire.
func ConformLossy(t *testing.T, newPair func(t *testing.T) (a, b dpdk.Port)) {
	suite{lossy: true}.run(t, newPair)
}

// ConformThrough is ConformLossy for ports with a third party between them, which takes
// what is sent and drops what it cannot hand on: neither end can fill the other's ring.
func ConformThrough(t *testing.T, newPair func(t *testing.T) (a, b dpdk.Port)) {
	suite{lossy: true, through: true}.run(t, newPair)
}

type suite struct{ lossy, through bool }

func (s suite) run(t *testing.T, newPair func(t *testing.T) (a, b dpdk.Port)) {
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, a, b dpdk.Port)
	}{
		{"info", testInfo},
		{"alloc gives distinct whole frames", testAlloc},
		{"frames arrive in order and intact", s.testOrder},
		{"both ways at once", s.testBothWays},
		{fullRing, s.testFull},
		{refusedFrames, testRefused},
		{"frames do not leak", s.testNoLeak},
		{"nothing to do is harmless", testEmpty},
		{"a closed peer is survived", testPeerCloses},
	} {
		if s.through && (tc.name == fullRing || tc.name == refusedFrames) {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			a, b := newPair(t)
			waitUp(t, a, b)
			// A port may offer its peer room for frames no earlier than at its first
			// poll (libdpdk's memif client does).
			for _, p := range []dpdk.Port{a, b} {
				if n := p.RxBurst(make([]dpdk.Frame, 1)); n != 0 {
					t.Fatalf("%s received %d frames that nobody sent", p.Info().Name, n)
				}
			}
			tc.run(t, a, b)
		})
	}
}

const (
	fullRing      = "a full ring"
	refusedFrames = "refused frames stay the caller's"
)

const patience = 10 * time.Second

func waitUp(t *testing.T, ports ...dpdk.Port) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for _, p := range ports {
		s, ok := p.(dpdk.LinkState)
		for ok && !s.Up() {
			if time.Now().After(deadline) {
				t.Fatalf("port %s did not come up within %v", p.Info().Name, patience)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// fill writes frame number seq: its length, its number, then bytes that depend on
// both.
func fill(f *dpdk.Frame, seq, n int) {
	f.Len = n
	b := f.Data[:n]
	for i := range b {
		b[i] = byte(seq + i*7)
	}
	binary.BigEndian.PutUint32(b[14:], uint32(seq))
	binary.BigEndian.PutUint32(b[18:], uint32(n))
}

// check compares a received frame with number seq. A port may pad to 60 bytes.
func check(t *testing.T, f dpdk.Frame, seq, n int) {
	t.Helper()
	if f.Len < n {
		t.Fatalf("frame %d has %d bytes, want %d", seq, f.Len, n)
	}
	want := dpdk.Frame{Data: make([]byte, n)}
	fill(&want, seq, n)
	if got := f.Data[:n]; !bytes.Equal(got, want.Data) {
		t.Fatalf("frame %d (%d bytes) differs: it says it is frame %d of %d bytes",
			seq, n, binary.BigEndian.Uint32(got[14:]), binary.BigEndian.Uint32(got[18:]))
	}
}

const minFrame = 60

func maxFrame(p dpdk.Port) int { return p.Info().MTU + 14 }

func testInfo(t *testing.T, a, b dpdk.Port) {
	for _, p := range []dpdk.Port{a, b} {
		i := p.Info()
		if i.Name == "" || i.Driver == "" || len(i.MAC) != 6 || i.MTU < 576 || i.Ring < 2 || i.FD < -1 {
			t.Errorf("incomplete: %+v", i)
		}
	}
	if a.Info().Name == b.Info().Name {
		t.Errorf("both ports are called %s", a.Info().Name)
	}
}

func testAlloc(t *testing.T, a, _ dpdk.Port) {
	frames := make([]dpdk.Frame, min(a.Info().Ring, 64))
	n := a.AllocBurst(frames)
	if n == 0 {
		t.Fatal("an idle port gave no frame")
	}
	for i := range frames[:n] {
		if len(frames[i].Data) < maxFrame(a) {
			t.Fatalf("frame %d has room for %d bytes, the MTU needs %d", i, len(frames[i].Data), maxFrame(a))
		}
		fill(&frames[i], i, maxFrame(a))
	}
	for i := range frames[:n] {
		check(t, frames[i], i, maxFrame(a)) // none overlaps another
	}
	a.FreeBurst(frames[:n])
}

// pump sends count frames from each given port to its peer, in bursts of random
// size, until all have arrived at the other end in order.
func (s suite) pump(t *testing.T, seed uint64, count int, links ...[2]dpdk.Port) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	type flow struct {
		src, dst   dpdk.Port
		sent, rcvd int
		size       func(seq int) int
	}
	var flows []*flow
	for _, l := range links {
		top := min(maxFrame(l[0]), maxFrame(l[1]))
		flows = append(flows, &flow{src: l[0], dst: l[1], size: func(seq int) int {
			return minFrame + int(uint64(seq)*2654435761%uint64(top-minFrame+1))
		}})
	}
	tx, rx := make([]dpdk.Frame, 64), make([]dpdk.Frame, 64)
	deadline := time.Now().Add(patience)
	for busy := true; busy; {
		busy = false
		for _, f := range flows {
			n := min(1+rng.IntN(64), count-f.sent)
			if s.lossy {
				n = min(n, f.dst.Info().Ring/2-(f.sent-f.rcvd))
			}
			n = f.src.AllocBurst(tx[:max(n, 0)])
			for i := range n {
				fill(&tx[i], f.sent+i, f.size(f.sent+i))
			}
			took := f.src.TxBurst(tx[:n])
			f.sent += took
			f.src.FreeBurst(tx[took:n])

			m := f.dst.RxBurst(rx[:1+rng.IntN(64)])
			for i := range m {
				check(t, rx[i], f.rcvd, f.size(f.rcvd))
				f.rcvd++
			}
			f.dst.FreeBurst(rx[:m])
			if f.rcvd > f.sent {
				t.Fatalf("received %d frames of %d sent", f.rcvd, f.sent)
			}
			busy = busy || f.rcvd < count
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: sent %d, received %d of %d", patience, flows[0].sent, flows[0].rcvd, count)
		}
		runtime.Gosched()
	}
}

func (s suite) testOrder(t *testing.T, a, b dpdk.Port) { s.pump(t, 1, 2000, [2]dpdk.Port{a, b}) }

func (s suite) testBothWays(t *testing.T, a, b dpdk.Port) {
	s.pump(t, 2, 2000, [2]dpdk.Port{a, b}, [2]dpdk.Port{b, a})
}

// send transmits frames seq… of 200 bytes until the port refuses and returns how
// many it took.
func send(t *testing.T, p dpdk.Port, seq, limit int) int {
	t.Helper()
	tx := make([]dpdk.Frame, 16)
	sent := 0
	for sent < limit {
		n := p.AllocBurst(tx[:min(len(tx), limit-sent)])
		for i := range n {
			fill(&tx[i], seq+sent+i, 200)
		}
		took := p.TxBurst(tx[:n])
		p.FreeBurst(tx[took:n])
		sent += took
		if took < n || n == 0 {
			break
		}
	}
	return sent
}

// receive takes exactly count frames seq….
func receive(t *testing.T, p dpdk.Port, seq, count int) {
	t.Helper()
	rx := make([]dpdk.Frame, 32)
	deadline := time.Now().Add(patience)
	for got := 0; got < count; {
		n := p.RxBurst(rx)
		for i := range n {
			check(t, rx[i], seq+got, 200)
			got++
		}
		p.FreeBurst(rx[:n])
		if got > count || time.Now().After(deadline) {
			t.Fatalf("received %d frames, want %d", got, count)
		}
	}
}

func (s suite) testFull(t *testing.T, a, b dpdk.Port) {
	if s.lossy {
		s.testOverrun(t, a, b)
		return
	}
	// It refuses, and loses nothing.
	ring := a.Info().Ring
	seq := 0
	for range 5 {
		n := send(t, a, seq, 8*ring)
		if n == 0 || n == 8*ring {
			t.Fatalf("a ring of %d frames took %d without a receiver", ring, n)
		}
		receive(t, b, seq, n)
		seq += n
	}
}

// testOverrun sends more than the receiver has room for: what arrives is whole and
// in order, and afterwards the ports are as before.
func (s suite) testOverrun(t *testing.T, a, b dpdk.Port) {
	ring := a.Info().Ring
	rx := make([]dpdk.Frame, 32)
	seq := 0
	for range 5 {
		last := seq + send(t, a, seq, 8*ring)
		if last < seq+ring/2 {
			t.Fatalf("a ring of %d frames took %d", ring, last-seq)
		}
		for quiet := time.Now(); time.Since(quiet) < 50*time.Millisecond; {
			n := b.RxBurst(rx)
			for i := range n {
				got := int(binary.BigEndian.Uint32(rx[i].Data[14:]))
				if got < seq || got >= last {
					t.Fatalf("frame %d arrived after %d, the last one sent is %d", got, seq-1, last-1)
				}
				check(t, rx[i], got, 200)
				seq, quiet = got+1, time.Now()
			}
			b.FreeBurst(rx[:n])
			a.RxBurst(nil) // a kernel's queue goes on with the owner's next call
		}
		seq = last
	}
	s.pump(t, 4, 1000, [2]dpdk.Port{a, b})
}

func testRefused(t *testing.T, a, b dpdk.Port) {
	n := send(t, a, 0, 8*a.Info().Ring)
	var f [1]dpdk.Frame
	if a.AllocBurst(f[:]) != 1 {
		t.Skip("the port gives no frame while its ring is full")
	}
	fill(&f[0], n, 200)
	if a.TxBurst(f[:]) != 0 {
		t.Skip("the port had room again")
	}
	receive(t, b, 0, n)
	if a.TxBurst(f[:]) != 1 {
		t.Fatal("a drained ring refuses a frame")
	}
	receive(t, b, n, 1)
}

func (s suite) testNoLeak(t *testing.T, a, b dpdk.Port) {
	frames := make([]dpdk.Frame, 64)
	for i := range 2000 {
		n := a.AllocBurst(frames)
		if n == 0 {
			t.Fatalf("no frame left after %d rounds of alloc and free", i)
		}
		a.FreeBurst(frames[:n])
	}
	s.pump(t, 3, 1000, [2]dpdk.Port{b, a})
}

func testEmpty(t *testing.T, a, b dpdk.Port) {
	rx := make([]dpdk.Frame, 8)
	for range 100 {
		if n := a.RxBurst(rx); n != 0 {
			t.Fatalf("received %d frames that nobody sent", n)
		}
	}
	if a.AllocBurst(nil) != 0 || a.TxBurst(nil) != 0 || b.RxBurst(nil) != 0 {
		t.Fatal("an empty burst moved frames")
	}
	a.FreeBurst(nil)
}

func testPeerCloses(t *testing.T, a, b dpdk.Port) {
	sent := send(t, a, 0, 4)
	receive(t, b, 0, sent)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	rx := make([]dpdk.Frame, 8)
	deadline := time.Now().Add(patience)
	for s, ok := a.(dpdk.LinkState); ok && s.Up(); {
		a.FreeBurst(rx[:a.RxBurst(rx)])
		send(t, a, 0, 4)
		if time.Now().After(deadline) {
			t.Fatal("the port still counts as up after its peer closed")
		}
	}
	for range 100 {
		send(t, a, 0, 4)
		a.FreeBurst(rx[:a.RxBurst(rx)])
	}
}

// SendsOn shows that TxBurst takes frames that RxBurst gave, as they are, for longer than
// the pool lasts: for all ports but memif's, each of whose rings has buffers of its own.
// newPair is Conform's.
func SendsOn(t *testing.T, newPair func(t *testing.T) (a, b dpdk.Port)) {
	a, b := newPair(t)
	waitUp(t, a, b)
	const size = 200
	total, seq, back := 20*a.Info().Ring, 0, 0
	frames := make([]dpdk.Frame, 16)
	quiet := time.Now() // since something came back
	for deadline := quiet.Add(patience); back < total; {
		if seq-back < a.Info().Ring/2 || time.Since(quiet) > 10*time.Millisecond { // then they were lost
			n := a.AllocBurst(frames)
			for i := range n {
				fill(&frames[i], seq+i, size)
			}
			took := a.TxBurst(frames[:n])
			a.FreeBurst(frames[took:n])
			seq += took
		}
		n := b.RxBurst(frames)
		b.FreeBurst(frames[b.TxBurst(frames[:n]):n])
		n = a.RxBurst(frames)
		for i := range n {
			got := int(binary.BigEndian.Uint32(frames[i].Data[14:]))
			if got < back || got >= seq {
				t.Fatalf("frame %d came back after %d; %d were sent", got, back-1, seq)
			}
			check(t, frames[i], got, size)
			back, quiet = got+1, time.Now()
		}
		a.FreeBurst(frames[:n])
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %d of %d frames came back", patience, back, total)
		}
	}
}
