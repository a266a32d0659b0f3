package netpoll

import (
	"fmt"
	"time"
)

// IdlePolicy decides what a loop does between messages: poll on, sleep a little,
// or block until something happens. It is a value; each loop keeps its own copy
// and its own estimates.
//
// Blocking saves CPU and makes the next message wait for a wake-up: 5 µs on bare
// metal, 40–60 µs on many virtual machines. The loop measures what a wake-up takes
// where it runs; see Stats.WakeUp.
type IdlePolicy struct {
	Name string
	// Spin is the longest time that empty cycles go on before the loop blocks.
	// 0: it blocks as soon as nothing is left to do.
	Spin time.Duration
	// Adaptive makes Spin a limit. The loop then spins for as long as a wake-up
	// takes, and only while recent messages came soon enough that a wake-up would
	// have been dearer than the spin; otherwise it blocks at once.
	Adaptive bool
	// Gulp lets work gather: while the loop would else be woken at least twice in this
	// time, it sleeps, once nothing is left to do, until Gulp after its last busy cycle
	// began, and nothing but a timer ends that sleep early. So a message waits at most
	// Gulp and one wake-up longer, and so do functions given to Submit. When less comes,
	// or what comes has gathered on its way already, the loop blocks, and the next message
	// is taken at once. 0: never.
	Gulp time.Duration
	// Park allows the loop to block. Without it one CPU is always busy, and the
	// other fields mean nothing.
	Park bool
}

// Latency never blocks: lowest latency, one CPU always busy.
func Latency() IdlePolicy { return IdlePolicy{Name: "latency"} }

// Balanced spins while messages follow each other faster than a wake-up takes, at
// most 100 µs, and blocks otherwise. The default.
func Balanced() IdlePolicy {
	return IdlePolicy{Name: "balanced", Spin: maxSpin, Adaptive: true, Park: true}
}

// Efficient never spins, and takes the messages of a busy connection in gulps: at
// most 100 µs and one wake-up of latency for fewer wake-ups and system calls.
func Efficient() IdlePolicy { return IdlePolicy{Name: "efficient", Gulp: defaultGulp, Park: true} }

const (
	// maxSpin bounds the spin of Balanced: twice the dearest wake-up that was
	// measured on a virtual machine that was not overbooked.
	maxSpin = 100 * time.Microsecond
	// defaultGulp is where a wake-up costs less than the work of a gulp at the
	// message rates that one loop takes.
	defaultGulp = 100 * time.Microsecond
	// minWake keeps a spin worth its name: the best wake-ups that were measured.
	minWake = int64(2 * time.Microsecond)
	// firstWake is what a wake-up is taken to cost before one was measured.
	firstWake = int64(50 * time.Microsecond)
	// probeEvery is how many gaps a loop that does not spin lets pass until it
	// spins for probeGaps of them, or for two in vain, each twice as long as a
	// wake-up. Two balanced loops that answer each other would otherwise sleep for
	// ever: each sees the other's wake-up in its gaps. The first few gaps of a probe
	// make the other end probe too, and then both find out.
	probeEvery = 2048
	probeGaps  = 16
	// hintsWorth is how many gaps in succession that may be a peer's prompt answers
	// bring the next probe forward.
	hintsWorth    = 4
	firstPatience = 16
	// maxPause bounds what one pause adds to the average time between busy cycles.
	maxPause = int64(400 * time.Microsecond)
	// gulpWorth is how many wake-ups a gulp must be expected to replace.
	gulpWorth = 2
	// gulpProbe is one in how many gulps is left out, to see how often the loop is woken
	// without them.
	gulpProbe = 8
)

// ParseIdlePolicy returns the policy of that name: latency, balanced, efficient.
func ParseIdlePolicy(name string) (IdlePolicy, error) {
	switch name {
	case "latency":
		return Latency(), nil
	case "balanced":
		return Balanced(), nil
	case "efficient":
		return Efficient(), nil
	}
	return IdlePolicy{}, fmt.Errorf("unknown idle policy %q: use latency, balanced or efficient", name)
}

// idler applies a policy. Times are Loop.Clock values and nanoseconds. A gap is
// the time between two cycles that found work.
type idler struct {
	policy IdlePolicy
	wake   int64 // what a wake-up takes, averaged over about eight
	gain   int64 // what spinning would have saved, less what it would have cost, likewise averaged
	since  int64 // when the present gap began
	spin   int64 // how long to spin in it
	slept  bool  // the loop blocked in it
	calm   int   // gaps since the last probe
	probe  int   // gaps of a probe that are left
	vain   int   // of this probe, those whose spin found nothing
	hints  int   // successive gaps that look like a peer's prompt answers
	// patience is how many gaps must pass between probes for such hints; it doubles
	// with each, until one was right.
	patience int
	took     int64 // time from one busy cycle to the next where no gulp came between, averaged
	began    int64 // start of the last busy cycle
	asked    bool  // and whether a gulp should follow it was asked
	gulped   bool  // and one did
	gulps    int   // of those that were due, left-out ones included
}

func newIdler(p IdlePolicy) idler {
	i := idler{policy: p, wake: firstWake, gain: firstWake} // a new connection's first messages follow each other
	i.begin(0)
	return i
}

// limit is how long a spin is worth trying.
func (i *idler) limit() int64 {
	if i.policy.Adaptive {
		return min(i.wake, int64(i.policy.Spin))
	}
	return int64(i.policy.Spin)
}

// worked ends the present gap: the cycle from start to end found work. The next
// gap begins at end.
func (i *idler) worked(start, end int64) {
	if i.policy.Adaptive {
		i.learnGap(start - i.since)
	}
	if !i.gulped || i.slept { // a gulp that found nothing says that less comes
		// A pause longer than a few gulps says no more than that it was long.
		i.took += (min(start-i.began, maxPause) - i.took) / 8
	}
	i.began, i.asked, i.gulped = start, false, false
	i.begin(end)
}

// learnGap judges the gap that ends: would a spin have paid?
//
// After a sleep that is not plain to see. A peer that answers would have answered a
// wake-up sooner had this end not slept; one that sends by the clock would not. So
// a gap that may have been either is not counted; if it speaks for a peer that
// answers at once, a probe finds out.
func (i *idler) learnGap(gap int64) {
	limit := i.limit()
	vain := i.slept && i.spin >= limit
	if vain && i.probe > 0 {
		if i.vain++; i.vain == 2 {
			i.probe = 0
		}
	}
	sample := -limit
	switch {
	case gap <= limit && !vain:
		sample = i.wake - gap
	case !i.slept || vain || gap-i.wake > limit:
	default:
		if gap-i.wake > limit/2 {
			i.hints = 0
		} else if i.hints++; i.hints >= hintsWorth && i.calm >= i.patience {
			i.patience = min(2*i.patience, probeEvery)
			i.startProbe()
		}
		return
	}
	i.hints = 0
	i.gain += (sample - i.gain) / 8
}

func (i *idler) startProbe() { i.calm, i.hints, i.vain, i.probe = 0, 0, 0, probeGaps }

func (i *idler) begin(now int64) {
	i.since, i.slept = now, false
	i.spin = i.limit()
	switch {
	case !i.policy.Adaptive:
	case i.probe > 0:
		i.probe--
		i.spin = min(2*i.wake, int64(i.policy.Spin))
	case i.gain > 0:
		i.patience = firstPatience
	default:
		i.spin = 0
		if i.calm++; i.calm >= probeEvery {
			i.startProbe()
		}
	}
}

// mayPark reports whether the loop should try to block now.
func (i *idler) mayPark(now int64) bool { return i.policy.Park && now-i.since >= i.spin }

// napUntil is when the loop should look again, having slept without listening; 0
// if it should not. Once for each gap, when a cycle has found nothing: what already
// waits is taken first, or a peer might be held up whose window is full.
func (i *idler) napUntil(work int) int64 {
	if i.policy.Gulp == 0 || i.asked || work > 0 || !i.policy.Park {
		return 0
	}
	i.asked = true
	if !i.gulping() {
		return 0
	}
	if i.gulps++; i.gulps%gulpProbe == 0 {
		return 0
	}
	i.gulped = true
	return i.began + int64(i.policy.Gulp)
}

// gulping reports whether the loop is woken so often that gulps replace wake-ups. How
// many messages come does not matter: those that come together share a wake-up.
func (i *idler) gulping() bool {
	return i.policy.Gulp > 0 && gulpWorth*i.took <= int64(i.policy.Gulp)
}

// sparse reports whether messages come so far apart that looking once more before
// blocking is in vain.
func (i *idler) sparse() bool { return i.took > i.wake && !i.gulping() }

// learnWake takes a measured wake-up into account. One that took far longer than
// usual was no wake-up: the machine was busy with others.
func (i *idler) learnWake(nanos int64) {
	nanos = min(max(nanos, minWake), 4*i.wake)
	i.wake += (nanos - i.wake) / 8
}
