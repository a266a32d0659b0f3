package netpoll

import (
	"container/heap"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSubmitOrderAndBound(t *testing.T) {
	l, err := NewLoop(Options{Pool: testPool(t, 8<<20), SubmitQueue: 8})
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for i := range 8 {
		if err := l.Submit(func() { got = append(got, i) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Submit(func() {}); !errors.Is(err, ErrBackpressure) {
		t.Fatalf("ninth of eight: %v", err)
	}
	run := make(chan error, 1)
	go func() { run <- l.Run() }()
	if err := l.Do(func() {}); err != nil {
		t.Fatal(err)
	}
	l.Stop()
	if err := <-run; err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if v != i {
			t.Fatalf("order %v", got)
		}
	}
}

// Every function whose Submit succeeded runs, also when the loop sleeps between
// them and when it stops in the middle.
func TestSubmitNeverLost(t *testing.T) {
	for _, idle := range []IdlePolicy{Latency(), Balanced(), Efficient()} {
		l, err := NewLoop(Options{Pool: testPool(t, 8<<20), Idle: idle, SubmitQueue: 64})
		if err != nil {
			t.Fatal(err)
		}
		run := make(chan error, 1)
		go func() { run <- l.Run() }()
		var accepted, ran atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range 2000 {
					if i == 1500 {
						l.Stop()
					}
					if l.Submit(func() { ran.Add(1) }) == nil {
						accepted.Add(1)
					}
					if i%64 == 0 {
						time.Sleep(20 * time.Microsecond)
					}
				}
			}()
		}
		wg.Wait()
		if err := <-run; err != nil {
			t.Fatal(err)
		}
		if accepted.Load() != ran.Load() {
			t.Errorf("%s: accepted %d, ran %d", idle.Name, accepted.Load(), ran.Load())
		}
	}
}

func TestTimers(t *testing.T) {
	var h timerHeap
	l := &Loop{}
	var got []int
	arm := func(at int64, id int) *Timer { return l.At(at, func() { got = append(got, id) }) }
	arm(30, 3)
	arm(10, 1)
	stopped := arm(15, 99)
	arm(20, 2)
	moved := arm(5, 4)
	if !stopped.Stop() || stopped.Stop() {
		t.Error("Stop: want true, then false")
	}
	moved.Reset(40)
	if n := l.timers.next(); n != 10 {
		t.Errorf("next = %d", n)
	}
	if n := l.timers.run(20); n != 2 {
		t.Errorf("ran %d", n)
	}
	l.timers.run(100)
	if want := []int{1, 2, 3, 4}; len(got) != 4 || got[0] != want[0] || got[3] != want[3] {
		t.Errorf("order %v", got)
	}
	if h.next() != 0 || h.run(1) != 0 {
		t.Error("an empty heap has no deadline and runs nothing")
	}
	// A timer that arms itself for now must not keep the cycle from ending.
	runs := 0
	var again func()
	again = func() { runs++; l.At(0, again) }
	l.At(0, again)
	l.timers.run(1)
	if runs != 1 {
		t.Errorf("ran %d times in one cycle", runs)
	}
}

// A timer that another one of its cycle stopped fired nevertheless.
func TestTimerStoppedByOneBefore(t *testing.T) {
	var h timerHeap
	fired := 0
	arm := func(at int64, fn func()) *Timer {
		tm := &Timer{at: at, fn: fn, heap: &h}
		heap.Push(&h, tm)
		return tm
	}
	var stopped, again *Timer
	arm(1, func() {
		if !stopped.Stop() || stopped.Stop() {
			t.Error("Stop of a timer that is due, twice")
		}
		again.Reset(5)
		again.Stop()
	})
	stopped, again = arm(2, func() { fired++ }), arm(2, func() { fired++ })
	h.run(3)
	h.run(6)
	if fired != 0 {
		t.Errorf("%d stopped timers fired", fired)
	}
	again.Reset(7)
	if h.run(7); fired != 1 || again.Stop() {
		t.Errorf("%d fired, armed again", fired)
	}
}

func TestTimerWakesSleepingLoop(t *testing.T) {
	l := startLoop(t, Options{Idle: Efficient()})
	fired := make(chan int64, 1)
	if err := l.Do(func() { l.After(3*time.Millisecond, func() { fired <- l.Now() }) }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-fired:
	case <-time.After(5 * time.Second):
		t.Fatal("the loop slept through its timer")
	}
	for deadline := time.Now().Add(5 * time.Second); l.Stats().Parks == 0; time.Sleep(time.Millisecond) { // it is shown later
		if time.Now().After(deadline) {
			t.Fatal("an idle loop never blocked")
		}
	}
}

func TestCloseUnattached(t *testing.T) {
	if err := NewTCP().Close(); err != nil {
		t.Error(err)
	}
}

func TestCycleEnd(t *testing.T) {
	l, err := NewLoop(Options{Pool: testPool(t, 8<<20), Idle: Efficient()})
	if err != nil {
		t.Fatal(err)
	}
	worked := false
	var calls []bool // was there work in the cycle?
	woken := make(chan struct{})
	l.AtCycleEnd(func(now int64) int64 {
		calls = append(calls, worked)
		worked = false
		if len(calls) == 1 {
			return now + int64(2*time.Millisecond)
		}
		if len(calls) == 2 {
			close(woken)
		}
		return 0
	})
	run := make(chan error, 1)
	go func() { run <- l.Run() }()
	if err := l.Do(func() { worked = true }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-woken:
	case <-time.After(5 * time.Second):
		t.Fatal("the deadline of a hook did not wake the loop")
	}
	l.Stop()
	if err := <-run; err != nil {
		t.Fatal(err)
	}
	if len(calls) != 2 || !calls[0] || calls[1] {
		t.Errorf("calls %v: want one after work, one at the deadline", calls)
	}
}
