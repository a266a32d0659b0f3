package hugepages

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What huge pages buy: the same work in arenas of each backing. One that the
// machine does not have is skipped with its reason; for 512 MiB of explicit ones:
// echo 256 > /proc/sys/vm/nr_hugepages.

const benchArenaBytes = 512 << 20 // far more than the TLB's reach with small pages

func benchArena(b *testing.B, want Backing, bytes int) *Arena {
	b.Helper()
	a, err := NewArena(ArenaOptions{Bytes: bytes, Backing: want, Prefault: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := a.Close(); err != nil {
			b.Error(err)
		}
	})
	if r := a.Report(); r.Backing != want {
		b.Skip(r)
	}
	return a
}

func eachBacking(b *testing.B, f func(b *testing.B, want Backing)) {
	for _, want := range []Backing{HugeTLB1G, HugeTLB2M, TransparentHuge, Ordinary} {
		b.Run(want.String(), func(b *testing.B) { f(b, want) })
	}
}

// One load after another at random places: the latency of a cache miss, with the
// page walk.
func BenchmarkRandomRead(b *testing.B) {
	eachBacking(b, func(b *testing.B, want Backing) {
		mem := benchArena(b, want, benchArenaBytes).Bytes()[:benchArenaBytes]
		lines := make([]uint32, benchArenaBytes/64) // one cycle through all of them
		for i := range lines {
			lines[i] = uint32(i)
		}
		r := rand.New(rand.NewPCG(1, 2))
		for i := len(lines) - 1; i > 0; i-- { // Sattolo
			j := r.IntN(i)
			lines[i], lines[j] = lines[j], lines[i]
		}
		for i, next := range lines {
			binary.LittleEndian.PutUint32(mem[i*64:], next)
		}
		at := uint32(0)
		for b.Loop() {
			at = binary.LittleEndian.Uint32(mem[int(at)*64:])
		}
	})
}

// Messages of 128 B copied to random places, as a busy server's buffers lie.
func BenchmarkRandomCopy(b *testing.B) {
	eachBacking(b, func(b *testing.B, want Backing) {
		mem := benchArena(b, want, benchArenaBytes).Bytes()[:benchArenaBytes]
		var msg [128]byte
		x := uint64(88172645463325252)
		b.SetBytes(int64(len(msg)))
		for b.Loop() {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			copy(mem[x%(benchArenaBytes/128)*128:], msg[:])
		}
	})
}

// Pinning 64 MiB for a device, as registering memory does: here as the UMEM of an
// AF_XDP socket, which needs no device.
func BenchmarkRegister(b *testing.B) {
	const bytes = 64 << 20
	eachBacking(b, func(b *testing.B, want Backing) {
		mem := benchArena(b, want, bytes).Bytes()
		reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))), Len: bytes, Size: 4096}
		for b.Loop() {
			s, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0)
			if err != nil {
				b.Skipf("AF_XDP socket: %v", err)
			}
			_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(s), unix.SOL_XDP, unix.XDP_UMEM_REG,
				uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
			if e != 0 {
				_ = unix.Close(s)
				b.Skipf("XDP_UMEM_REG: %v", e)
			}
			if err := unix.Close(s); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			time.Sleep(time.Millisecond) // the kernel unpins in the background
			b.StartTimer()
		}
	})
}

// First use of 64 MiB: what Prefault takes off the data path.
func BenchmarkPopulate(b *testing.B) {
	const bytes = 64 << 20
	eachBacking(b, func(b *testing.B, want Backing) {
		benchArena(b, want, bytes) // or skipped
		for b.Loop() {
			a, err := NewArena(ArenaOptions{Bytes: bytes, Backing: want, Prefault: true})
			if err != nil {
				b.Fatal(err)
			}
			if err := a.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A pool for each loop against one that loops share: two goroutines that Get and
// Release, in bursts as a loop does.
func BenchmarkPoolPerLoop(b *testing.B) {
	for _, shared := range []bool{false, true} {
		b.Run(fmt.Sprintf("shared=%v", shared), func(b *testing.B) {
			a := benchArena(b, Ordinary, 64<<20)
			one := NewPool(a)
			b.RunParallel(func(pb *testing.PB) {
				p := one
				if !shared {
					p = NewPool(a)
				}
				var burst [16]*Buf
				for n := 0; pb.Next(); n++ {
					i := n % len(burst)
					if burst[i] != nil {
						burst[i].Release()
					}
					var err error
					if burst[i], err = p.Get(1024, Send); err != nil {
						b.Error(err)
						return
					}
				}
				for _, x := range burst {
					if x != nil {
						x.Release()
					}
				}
			})
		})
	}
}
