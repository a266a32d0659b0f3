// Package ticks is a clock for hot paths.
package ticks

import (
	"os"
	"strings"
	"sync"
	"time"
)

// Clock reads the kernel's monotonic clock through the CPU's own counter: it asks the
// kernel once in trustNanos and counts from there, which takes a third of the time. What
// it says never goes back, and is off by less than a microsecond. One goroutine.
//
// Without a counter that the kernel itself trusts, it asks the kernel each time.
type Clock struct {
	start time.Time
	last  int64 // the latest answer

	at, tick uint64 // an answer of the kernel's, and the counter then
	scale    uint64 // nanoseconds per tick × 2^32; 0 while it is not known
	trust    uint64 // ticks after which the kernel is asked again

	fromAt, fromTick uint64 // since when scale is measured
	counts           bool   // there is a counter
}

const (
	trustNanos = uint64(time.Millisecond)
	// The scale is measured over at least the first time, later over at least the
	// second; anew after the third, which keeps products within 64 bits.
	firstMeasure = uint64(time.Millisecond)
	shortMeasure = uint64(100 * time.Millisecond)
	longMeasure  = uint64(2 * time.Second)
	// tightNanos is how far apart the counter may be read before and after the kernel's
	// clock: above that this thread was off its CPU in between. tightTicks is the same
	// while the scale is not known.
	tightNanos = uint64(8 * time.Microsecond)
	tightTicks = uint64(1 << 14)
)

// counterTrusted tells whether the kernel keeps its time with the CPU's counter, that is:
// whether it runs at one speed, always, and alike on all CPUs.
var counterTrusted = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	source := strings.TrimSpace(string(b))
	return err == nil && (source == "tsc" || source == "arch_sys_counter") && ticks() != 0
})

// New returns a clock that says 0 at start, which lies in the past.
func New(start time.Time) Clock {
	return Clock{start: start, counts: counterTrusted()}
}

// Read is the nanoseconds since start.
func (c *Clock) Read() int64 {
	if c.scale != 0 {
		if d := ticks() - c.tick; d < c.trust { // also false where the counter went back
			c.last = max(c.last, int64(c.at+d*c.scale>>32))
			return c.last
		}
	}
	return c.ask()
}

// ask is Read by the kernel's clock.
func (c *Clock) ask() int64 {
	before := ticks()
	at := uint64(time.Since(c.start))
	tick := ticks()
	c.last = max(c.last, int64(at))
	if c.counts {
		tight := tightTicks
		if c.scale != 0 {
			tight = tightNanos << 32 / c.scale
		}
		if tick-before < tight {
			c.measure(at, tick)
			c.at, c.tick = at, tick
		} else {
			c.trust = 0 // ask again
		}
	}
	return c.last
}

// measure learns how long a tick is from the kernel's answer at, which came at tick.
func (c *Clock) measure(at, tick uint64) {
	since, counted := at-c.fromAt, tick-c.fromTick
	switch {
	case c.fromTick == 0 || since > longMeasure:
		c.fromAt, c.fromTick = at, tick
	case counted == 0 || counted > 1<<40: // it stands still, or went back: another machine now
		c.fromAt, c.fromTick, c.scale = at, tick, 0
	case since >= shortMeasure || c.scale == 0 && since >= firstMeasure:
		scale := since << 32 / counted
		if c.scale != 0 && (scale > c.scale+c.scale/256 || scale < c.scale-c.scale/256) {
			c.fromAt, c.fromTick, scale = at, tick, 0 // likewise
		}
		c.scale = scale
	}
	if c.trust = 0; c.scale != 0 {
		c.trust = trustNanos << 32 / c.scale
	}
}
