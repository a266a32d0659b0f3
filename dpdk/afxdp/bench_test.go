package afxdp

import (
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
)

// BenchmarkPingPong is one round trip of a 128-byte frame per operation, over a veth pair,
// between two threads that spin on a CPU each.
func BenchmarkPingPong(b *testing.B) {
	if runtime.NumCPU() < 2 {
		b.Skip("needs two CPUs")
	}
	veth(b, 1500, func(x0, x1 string) {
		here, there := open(b, x0, Config{}), open(b, x1, Config{})
		b.Log(here.Info().Driver)
		var stop atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			pin(b, 1)
			var f [8]dpdk.Frame
			for !stop.Load() {
				// A received frame may be sent as it is.
				n := there.RxBurst(f[:])
				there.FreeBurst(f[there.TxBurst(f[:n]):n])
			}
		}()
		pin(b, 0)
		var f [8]dpdk.Frame
		b.ResetTimer()
		for range b.N {
			for here.AllocBurst(f[:1]) == 0 {
			}
			copy(f[0].Data, "\x02aaaaa\x02bbbbb\x88\xb5")
			f[0].Len = 128
			for here.TxBurst(f[:1]) == 0 {
			}
			n := 0
			for n == 0 {
				n = here.RxBurst(f[:])
			}
			here.FreeBurst(f[:n])
		}
		b.StopTimer()
		stop.Store(true)
		<-done
	})
}

// pin locks the goroutine to its thread, which ends with it, and the thread to a CPU.
func pin(b *testing.B, cpu int) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		b.Error(err)
	}
}
