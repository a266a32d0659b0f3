package netpoll

import (
	"testing"
	"time"
)

const us = int64(time.Microsecond)

// gaps feeds an idler messages that come every gap, each handled in a
// microsecond, and returns the time that it last spun in a gap and how often it
// blocked. A loop that blocks takes the next message a wake-up late.
func gaps(i *idler, n int, now *int64, gap func() int64) (spun int64, blocked int) {
	for range n {
		due := *now + gap()
		start := due
		if i.policy.Park && i.since+i.spin < due {
			spun = i.spin
			if !i.mayPark(i.since + i.spin) {
				panic("does not park when it said")
			}
			i.slept = true
			blocked++
			start += i.wake
		} else {
			spun = due - i.since
		}
		*now = start + us
		i.worked(start, *now)
	}
	return spun, blocked
}

func every(d int64) func() int64 { return func() int64 { return d } }

func TestBalancedSpinsWhileItPays(t *testing.T) {
	i := newIdler(Balanced())
	now := int64(0)
	if _, blocked := gaps(&i, 100, &now, every(5*us)); blocked > 0 {
		t.Errorf("messages every 5 µs: blocked %d times of 100", blocked)
	}
	if _, blocked := gaps(&i, 100, &now, every(5*us)); blocked > 0 {
		t.Errorf("messages every 5 µs, going on: blocked %d times of 100", blocked)
	}
	gaps(&i, 20, &now, every(1000*us))
	if _, blocked := gaps(&i, 100, &now, every(1000*us)); blocked != 100 || i.spin != 0 {
		t.Errorf("messages every ms: blocked %d times of 100, spins %d ns", blocked, i.spin)
	}
	// One long pause does not change what is known of a busy connection.
	gaps(&i, 100, &now, every(5*us))
	gaps(&i, 1, &now, every(int64(time.Hour)))
	if spun, _ := gaps(&i, 1, &now, every(5*us)); spun == 0 {
		t.Error("one pause ended the spinning")
	}
	// Bursts of which most messages follow at once are worth the spin, and its
	// waste at their end.
	k := 0
	burst := func() int64 {
		if k++; k%10 == 0 {
			return 1000 * us
		}
		return 5 * us
	}
	gaps(&i, 100, &now, burst)
	if _, blocked := gaps(&i, 100, &now, burst); blocked > 12 {
		t.Errorf("bursts of ten: blocked %d times of 100", blocked)
	}
}

// Messages by the clock, a little further apart than a wake-up takes: a sleeper
// sees gaps shorter by its own wake-up, and must not take that for a reason to spin.
func TestBalancedSleepsBetweenTicks(t *testing.T) {
	i := newIdler(Balanced())
	due, now := int64(0), int64(0)
	spun, n := int64(0), 10_000
	for k := range n {
		due += 100 * us
		start := max(due, now)
		if i.since+i.spin < due {
			i.slept = true
			start = due + i.wake
		}
		if k >= n/2 {
			spun += min(i.spin, due-i.since)
		}
		now = start + us
		i.worked(start, now)
	}
	if mean := spun / int64(n/2); mean > 2*us {
		t.Errorf("one message every 100 µs: spins %d ns for each", mean)
	}
}

// Two loops that answer each other: while both sleep each sees the other's
// wake-up. They must find out that they need not.
func TestBalancedLeavesMutualSleep(t *testing.T) {
	a, b := newIdler(Balanced()), newIdler(Balanced())
	const handling = 2
	now := int64(1000)
	pair := [2]*idler{&a, &b}
	for _, i := range pair {
		i.gain = -i.wake
		i.begin(now)
	}
	trips := int64(0)
	for n := 0; ; n++ {
		i := pair[n%2]
		start := now + us // the message's way
		if start > i.since+i.spin {
			i.slept = true
			start += i.wake
		}
		end := start + handling*us
		i.worked(start, end)
		trips++
		now = end
		if n > 100 && a.spin > 0 && b.spin > 0 && !a.slept && !b.slept && a.gain > 0 && b.gain > 0 {
			return
		}
		if n > 5*probeEvery {
			t.Fatalf("after %d messages they sleep still: gains %d and %d", trips, a.gain, b.gain)
		}
	}
}

func TestWakeUpEstimate(t *testing.T) {
	i := newIdler(Balanced())
	for range 200 {
		i.learnWake(7 * us)
	}
	if i.wake < 6*us || i.wake > 8*us {
		t.Errorf("wake-ups of 7 µs estimated at %d ns", i.wake)
	}
	i.learnWake(int64(time.Second))
	if i.wake > 12*us {
		t.Errorf("one wake-up on a busy machine moved the estimate to %d ns", i.wake)
	}
	for range 200 {
		i.learnWake(-5)
	}
	if i.wake < minWake {
		t.Errorf("estimate %d ns", i.wake)
	}
	for range 2000 {
		i.learnWake(int64(time.Millisecond))
	}
	if i.limit() != int64(maxSpin) {
		t.Errorf("with wake-ups of a millisecond it spins %d ns, want the policy's limit", i.limit())
	}
}

func TestEfficientGulps(t *testing.T) {
	i := newIdler(Efficient())
	now := int64(0)
	gulp := int64(defaultGulp)
	feed := func(n int, every int64) {
		for range n {
			now += every
			i.worked(now, now+us)
		}
	}
	feed(50, 10*us)
	if i.napUntil(1) != 0 {
		t.Error("sleeps before it knows that nothing is left to do")
	}
	if until := i.napUntil(0); until != now+gulp {
		t.Errorf("10 messages in a gulp: sleeps until %d, want %d", until, now+gulp)
	}
	if i.napUntil(0) != 0 {
		t.Error("a second sleep after one busy cycle")
	}
	feed(50, 90*us)
	if until := i.napUntil(0); until != 0 {
		t.Errorf("one message in a gulp: sleeps until %d", until)
	}
	if !i.mayPark(now + us) {
		t.Error("must block then")
	}
	b := newIdler(Balanced())
	b.worked(1, 2)
	if b.napUntil(0) != 0 {
		t.Error("balanced takes gulps")
	}
}

// What gulps gather says nothing about how often the loop would be woken without them:
// some are left out, and one that finds nothing counts.
func TestEfficientLearnsBetweenGulps(t *testing.T) {
	i := newIdler(Efficient())
	now, gulp := int64(0), int64(defaultGulp)
	gulps := 0
	// next is a busy cycle after which all is done; the next message comes after every.
	next := func(every int64) {
		i.worked(now, now+us)
		until := i.napUntil(0)
		i.slept = until == 0
		if until != 0 {
			gulps++
			if i.sparse() {
				t.Fatal("it takes gulps, and blocks without having looked for them")
			}
		}
		if i.slept = until < now+every; i.slept {
			now += every
		} else {
			now = until
		}
	}
	for range 800 {
		next(20 * us)
	}
	if gulps < 600 || gulps > 720 {
		t.Errorf("800 busy cycles 20 µs apart: %d gulps, want seven of eight", gulps)
	}
	if i.took > 30*us {
		t.Errorf("messages 20 µs apart come every %d ns", i.took)
	}
	gulps = 0
	for range 100 {
		next(3 * gulp)
	}
	if gulps > 8 {
		t.Errorf("messages 300 µs apart: %d gulps until that was noticed", gulps)
	}
}

func TestIdlePolicies(t *testing.T) {
	lat := newIdler(Latency())
	lat.worked(0, 1)
	if lat.mayPark(1<<60) || lat.napUntil(0) != 0 {
		t.Error("latency sleeps")
	}
	fixed := newIdler(IdlePolicy{Name: "fixed", Spin: 30 * time.Microsecond, Park: true})
	fixed.worked(0, 100)
	if fixed.mayPark(100+30*us-1) || !fixed.mayPark(100+30*us) {
		t.Error("a fixed spin is not kept to")
	}
	for _, name := range []string{"latency", "balanced", "efficient"} {
		if p, err := ParseIdlePolicy(name); err != nil || p.Name != name {
			t.Errorf("%s: %v %v", name, p, err)
		}
	}
	if _, err := ParseIdlePolicy("fast"); err == nil {
		t.Error("unknown policy accepted")
	}
}
