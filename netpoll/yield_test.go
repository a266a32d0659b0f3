package netpoll

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// busyBackend finds work in every poll.
type busyBackend struct {
	quietBackend
	cycles atomic.Int64
}

func (b *busyBackend) Poll(int) int { b.cycles.Add(1); return 1 }

// On a process's only P, a loop that other goroutines use gives them a turn after each
// busy cycle, and one that only its handlers use goes on.
func TestYieldOnlyToThoseWhoUseTheLoop(t *testing.T) {
	procs := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(procs)
	b := &busyBackend{}
	l := startLoop(t, Options{Idle: Latency(), Backends: []Backend{b}})
	const turns = 200
	// cyclesOf is how many cycles pass while this goroutine has its turns.
	cyclesOf := func(use bool) int64 {
		before := b.cycles.Load()
		for range turns {
			if use {
				if err := l.Submit(func() {}); err != nil {
					t.Fatal(err)
				}
			}
			runtime.Gosched()
		}
		return b.cycles.Load() - before
	}
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	if n := cyclesOf(true); n > 2*turns {
		t.Errorf("a loop in use made %d busy cycles while others had %d turns", n, turns)
	}
	time.Sleep(time.Duration(2 * sharedNanos))
	if n := cyclesOf(false); n < 4*turns {
		t.Errorf("a loop that nobody uses made %d busy cycles while others had %d turns", n, turns)
	}
}
