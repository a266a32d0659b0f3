package porttest

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/url"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
)

// floodBurst is that of dpdk-testpmd.
const floodBurst = 32

// flood sends a burst of small frames as far as they fit and takes a burst of those
// that came; it returns how many. Every frame is written and read.
func flood(p dpdk.Port, f []dpdk.Frame, sum *uint64) int {
	n := p.AllocBurst(f)
	for i := range n {
		f[i].Len = 64
		binary.LittleEndian.PutUint64(f[i].Data, *sum)
	}
	if took := p.TxBurst(f[:n]); took < n {
		p.FreeBurst(f[took:n])
	}
	n = p.RxBurst(f)
	for i := range n {
		*sum += binary.LittleEndian.Uint64(f[i].Data)
	}
	p.FreeBurst(f[:n])
	return n
}

// forward sends back a burst of those that came, as they are; a port whose frames can be
// sent from where they were received has nothing to copy then.
func forward(p dpdk.Port, f []dpdk.Frame, _ *uint64) int {
	n := p.RxBurst(f)
	if took := p.TxBurst(f[:n]); took < n {
		p.FreeBurst(f[took:n])
	}
	return n
}

// forwarded is how many frames are under way in BenchmarkForward, as in BenchmarkTestpmd.
const forwarded = 8 * floodBurst

func pinTo(cpu int) error {
	runtime.LockOSThread()
	runtime.GOMAXPROCS(1)
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// floodMain is the peer of BenchmarkBothWays and BenchmarkForward.
func floodMain(role string, pairs dpdk.Pairs, link string) error {
	q, err := url.ParseQuery(link)
	if err != nil {
		return err
	}
	params := map[string]string{}
	for name := range q {
		params[name] = q.Get(name)
	}
	p, err := pairs.Join(context.Background(), params)
	if err != nil {
		return err
	}
	if err := pinTo(1); err != nil {
		return err
	}
	fmt.Println("up")
	move := flood
	if role == "forward" {
		move = forward
	}
	f, sum := make([]dpdk.Frame, floodBurst), uint64(0)
	for up := p.(dpdk.LinkState); up.Up(); {
		for range 1 << 12 {
			move(p, f, &sum)
		}
	}
	return p.Close()
}

// BenchmarkBothWays has two processes, each on a CPU of its own, send 64-byte frames
// to each other as fast as they can. One operation is one frame received here, and
// so about one sent as well.
func BenchmarkBothWays(b *testing.B, pairs dpdk.Pairs, kind string) {
	bothWays(b, pairs, kind, "flood", flood)
}

// BenchmarkForward is BenchmarkBothWays with 256 frames that both ends send back, as
// testpmd does in forward mode io. For ports that take a received frame for TxBurst.
func BenchmarkForward(b *testing.B, pairs dpdk.Pairs, kind string) {
	bothWays(b, pairs, kind, "forward", forward)
}

func bothWays(b *testing.B, pairs dpdk.Pairs, kind, role string, move func(dpdk.Port, []dpdk.Frame, *uint64) int) {
	if runtime.NumCPU() < 2 {
		b.Skip("needs two CPUs")
	}
	p, link, err := pairs.Serve(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer pairs.Close()
	defer p.Close()
	q := url.Values{}
	for name, v := range link {
		q.Set(name, v)
	}
	startPeer(b, peerTemp(b), role, kind, q.Encode())
	var was unix.CPUSet
	procs := runtime.GOMAXPROCS(0)
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		b.Fatal(err)
	}
	if err := pinTo(0); err != nil {
		b.Fatal(err)
	}
	defer func() {
		runtime.GOMAXPROCS(procs)
		if unix.SchedSetaffinity(0, &was) == nil {
			runtime.UnlockOSThread()
		}
	}()
	f, sum := make([]dpdk.Frame, floodBurst), uint64(0)
	deadline := time.Now().Add(time.Minute)
	if role == "forward" {
		for sent := 0; sent < forwarded && time.Now().Before(deadline); {
			n := p.AllocBurst(f[:min(len(f), forwarded-sent)])
			for i := range n {
				f[i].Len = 64
			}
			took := p.TxBurst(f[:n])
			p.FreeBurst(f[took:n])
			sent += took
		}
	}
	for got := 0; got < 100_000; got += move(p, f, &sum) { // until both are warm
	}
	b.ResetTimer()
	for got, empty := 0, 0; got < b.N; {
		n := move(p, f, &sum)
		if got += n; n > 0 {
			empty = 0
		} else if empty++; empty%(1<<20) == 0 && time.Now().After(deadline) {
			b.Fatal("frames stopped coming")
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpps-each-way")
}
