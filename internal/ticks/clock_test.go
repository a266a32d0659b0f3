package ticks

import (
	"runtime"
	"testing"
	"time"
)

// The clock of ticks follows the kernel's, through sleeps and being taken off its CPU.
func TestClock(t *testing.T) {
	c := New(time.Now())
	counted := 0
	for last := int64(0); c.last < int64(30*time.Millisecond); {
		before := int64(time.Since(c.start))
		now := c.Read()
		after := int64(time.Since(c.start))
		if now < last {
			t.Fatalf("it went back from %d to %d", last, now)
		}
		const slack = int64(20 * time.Microsecond)
		if now < before-slack || now > after+slack {
			t.Fatalf("says %d ns between %d and %d; at %d tick %d scale %d", now, before, after, c.at, c.tick, c.scale)
		}
		last = now
		if c.scale != 0 && int64(c.at) < before {
			counted++
		}
		if counted%1000 == 999 {
			time.Sleep(100 * time.Microsecond)
			runtime.GC()
		}
	}
	t.Logf("a counter: %v; answers without the kernel: %d", c.counts, counted)
}

// A counter that changes its speed, stands still or goes back is not believed for long.
func TestClockOfAnotherMachine(t *testing.T) {
	const ms = uint64(time.Millisecond)
	for name, change := range map[string]func(tick uint64) uint64{
		"twice as fast": func(k uint64) uint64 { return 3*400*ms + 2*(k-3*400*ms) },
		"stands still":  func(uint64) uint64 { return 3 * 400 * ms },
		"went back":     func(k uint64) uint64 { return k - 3*300*ms },
	} {
		c := Clock{counts: true}
		at := ms
		for ; at <= 400*ms; at += ms {
			c.measure(at, 3*at)
		}
		if c.scale != 1<<32/3 || c.trust/3 < ms-1 || c.trust/3 > ms+1 {
			t.Fatalf("three ticks in a nanosecond: scale %d, trusted for %d ticks", c.scale, c.trust)
		}
		var unbelieved uint64
		for ; at <= 3000*ms; at += ms {
			if c.measure(at, change(3*at)); c.scale == 0 {
				unbelieved = at
				break
			}
		}
		if unbelieved == 0 || unbelieved > 400*ms+2*longMeasure {
			t.Errorf("%s: scale %d at the end", name, c.scale)
		}
	}
}

func BenchmarkClock(b *testing.B) {
	c := New(time.Now())
	b.Run("ticks", func(b *testing.B) {
		for b.Loop() {
			c.Read()
		}
	})
	b.Run("kernel", func(b *testing.B) {
		for b.Loop() {
			_ = int64(time.Since(c.start))
		}
	})
}
