//go:build dpdk && cgo

package eal

import (
	"io"
	"runtime"
	"runtime/pprof"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
)

// Crossings are Go code to the scheduler: collections, profiles and preemption go on
// around them, stacks may move between them, and every frame comes through.
func TestCrossingsAmidCollections(t *testing.T) {
	p, q := pair(t, Options{})
	mustUp(t, p)
	mustUp(t, q)
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Logf("without a profile: %v", err)
	} else {
		defer pprof.StopCPUProfile()
	}
	const collections = 30
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for range collections {
			runtime.GC()
			_ = unix.Kill(unix.Getpid(), unix.SIGURG) // as the runtime preempts
			_ = unix.Kill(unix.Getpid(), unix.SIGPROF)
		}
		close(stop)
	})
	defer others.Wait()
	sent, received := 0, 0
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		deep(64, func() {
			var tx, rx [32]dpdk.Frame
			n := p.AllocBurst(tx[:])
			for i := range n {
				tx[i].Len = 128
				tx[i].Data[0] = byte(sent + i)
			}
			k := p.TxBurst(tx[:n])
			p.FreeBurst(tx[k:n])
			sent += k
			n = q.RxBurst(rx[:])
			for i := range n {
				if got := rx[i].Data[0]; got != byte(received+i) || rx[i].Len != 128 {
					t.Errorf("frame %d has %d bytes and number %d", received+i, rx[i].Len, got)
				}
			}
			q.FreeBurst(rx[:n])
			received += n
		})
	}
	if received == 0 {
		t.Errorf("%d frames sent, none received", sent)
	}
}

// deep calls fn with a stack that has grown by n frames, and shrinks afterwards.
func deep(n int, fn func()) {
	var room [256]byte
	if n > 0 {
		deep(n-1, fn)
	} else {
		fn()
	}
	runtime.KeepAlive(&room)
}
