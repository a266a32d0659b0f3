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
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	if n := b.cyclesIn(turns, func() { _ = l.Submit(func() {}) }); n > 2*turns {
		t.Errorf("a loop in use made %d busy cycles while others had %d turns", n, turns)
	}
	time.Sleep(time.Duration(2 * sharedNanos))
	if n := b.cyclesIn(turns, func() {}); n < 4*turns {
		t.Errorf("a loop that nobody uses made %d busy cycles while others had %d turns", n, turns)
	}
}

// Two loops that talked to each other on one P waited 100 µs for each other's answers.
func TestYieldToOtherLoops(t *testing.T) {
	procs := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(procs)
	b := &busyBackend{}
	startLoop(t, Options{Idle: Latency(), Backends: []Backend{b}})
	other := startLoop(t, Options{Idle: Latency(), Backends: []Backend{&quietBackend{}}})
	if err := other.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Duration(2 * sharedNanos))
	if n := b.cyclesIn(turns, func() {}); n > 2*turns {
		t.Errorf("a loop beside another made %d busy cycles while others had %d turns", n, turns)
	}
}

const turns = 200

// cyclesIn is how many cycles pass while this goroutine has n turns.
func (b *busyBackend) cyclesIn(n int, use func()) int64 {
	before := b.cycles.Load()
	for range n {
		use()
		runtime.Gosched()
	}
	return b.cycles.Load() - before
}
