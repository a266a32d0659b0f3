//go:build dpdk && cgo

package eal

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
)

func threadCPUs() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return 0
	}
	return set.Count()
}

// patience is how long a ping-pong waits for one frame. Two processes that have to
// share a CPU need milliseconds.
const patience = 5 * time.Second

// One round trip of a 128-byte frame per operation. A frame that does not come
// back, or a peer that is gone, ends the benchmark.
func pingPong(b *testing.B, p Port, other func()) {
	var tx, rx [32]dpdk.Frame
	var seq uint64
	idle, since := 0, time.Time{}
	wait := func(what string) {
		other()
		if idle++; idle%(1<<16) != 0 {
			return
		}
		switch {
		case !p.Up():
			b.Fatalf("the link went down while frame %d was to be %s", seq, what)
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > patience:
			b.Fatalf("frame %d was not %s within %v, and the link is up", seq, what, patience)
		}
	}
	moved := func() { idle, since = 0, time.Time{} }
	b.ReportAllocs()
	for range b.N {
		seq++
		for p.AllocBurst(tx[:1]) == 0 {
			wait("allocated")
		}
		tx[0].Len = 128
		binary.LittleEndian.PutUint64(tx[0].Data, seq)
		for p.TxBurst(tx[:1]) == 0 { // until the client has polled once
			wait("sent")
		}
		moved()
		for {
			wait("returned")
			n := p.RxBurst(rx[:])
			if n == 0 {
				continue
			}
			if got := binary.LittleEndian.Uint64(rx[0].Data); n != 1 || rx[0].Len != 128 || got != seq {
				b.Fatalf("%d frames came, the first of %d bytes with number %d; want number %d", n, rx[0].Len, got, seq)
			}
			p.FreeBurst(rx[:n])
			break
		}
		moved()
	}
}

// pin keeps this goroutine on one CPU until the benchmark ends.
func pin(b *testing.B, cpu int) {
	b.Helper()
	var was, set unix.CPUSet
	runtime.LockOSThread()
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		b.Fatal(err)
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &was); err == nil {
			runtime.UnlockOSThread()
		}
	})
}

func BenchmarkPingPongOneGoroutine(b *testing.B) {
	p, q := pair(b, Options{})
	mustUp(b, p)
	mustUp(b, q)
	b.ResetTimer()
	pingPong(b, p, func() { echo(q) })
}

func BenchmarkPingPongTwoProcesses(b *testing.B) {
	start(b)
	cpus := allowedCPUs()
	if len(cpus) < 2 {
		b.Skip("needs two CPUs")
	}
	p, where, err := NewMemif(b.Context(), MemifConfig{Role: Server})
	if err != nil {
		b.Fatal(err)
	}
	defer closeIfOpen(b, p)
	startPeer(b, peerConfig{What: "echo", Memif: where, CPU: cpus[1]})
	mustUp(b, p)
	pin(b, cpus[0])
	b.ResetTimer()
	pingPong(b, p, func() {})
}

func BenchmarkEmptyPoll(b *testing.B) {
	p, q := pair(b, Options{})
	mustUp(b, p)
	mustUp(b, q)
	var rx [32]dpdk.Frame
	b.ResetTimer()
	for range b.N {
		p.RxBurst(rx[:])
	}
}

func BenchmarkBurst32(b *testing.B) {
	p, q := pair(b, Options{})
	mustUp(b, p)
	mustUp(b, q)
	var tx, rx [32]dpdk.Frame
	b.ResetTimer()
	for n, empty := 0, 0; n < b.N; {
		m := p.AllocBurst(tx[:])
		for i := range m {
			tx[i].Len = 128
		}
		p.FreeBurst(tx[p.TxBurst(tx[:m]):m])
		k := q.RxBurst(rx[:])
		q.FreeBurst(rx[:k])
		if n += k; k > 0 {
			empty = 0
		} else if empty++; empty == 1<<20 {
			b.Fatalf("frames stopped coming after %d; links up: %v, %v", n, p.Up(), q.Up())
		}
	}
}
