//go:build dpdk && cgo

package eal

import (
	"runtime"
	"testing"

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

// One round trip of a 128-byte frame per operation.
func pingPong(b *testing.B, p dpdk.Port, other func()) {
	var tx, rx [32]dpdk.Frame
	b.ReportAllocs()
	for range b.N {
		for p.AllocBurst(tx[:1]) == 0 {
		}
		tx[0].Len = 128
		for p.TxBurst(tx[:1]) == 0 { // until the client has polled once
			other()
		}
		for {
			other()
			if n := p.RxBurst(rx[:]); n > 0 {
				p.FreeBurst(rx[:n])
				break
			}
		}
	}
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
	if runtime.NumCPU() < 2 {
		b.Skip("needs two CPUs")
	}
	p, where, err := NewMemif(b.Context(), MemifConfig{Role: Server})
	if err != nil {
		b.Fatal(err)
	}
	defer closeIfOpen(b, p)
	cmd := startPeer(b, peerConfig{What: "echo", Memif: where, CPU: 1})
	defer cmd.Wait()
	defer cmd.Process.Kill()
	mustUp(b, p)
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
	for n := 0; n < b.N; {
		m := p.AllocBurst(tx[:])
		for i := range m {
			tx[i].Len = 128
		}
		p.FreeBurst(tx[p.TxBurst(tx[:m]):m])
		k := q.RxBurst(rx[:])
		q.FreeBurst(rx[:k])
		n += k
	}
}
