package netpoll

import (
	"sync/atomic"
	"time"
)

// Stats of a loop since it started. They may be 100 µs old.
type Stats struct {
	Cycles      int64         // duty cycles
	BusyCycles  int64         // cycles that found work
	Busy        time.Duration // time spent in cycles that found work
	Parks       int64         // times the loop blocked until something happened
	Naps        int64         // times it slept to let work gather
	Asleep      time.Duration // time spent in both
	Lent        int64         // times that another goroutine had something to do in the place of the blocked loop, and did it; see Borrow
	Stalls      int64         // busy cycles longer than 10 ms
	MaxCycle    time.Duration // longest busy cycle
	WakeUp      time.Duration // what a wake-up takes now, as the loop measured it
	Spin        time.Duration // how long the loop spins now before it blocks
	Connections int64         // open now
	Backends    []BackendStats
}

// BackendStats counts the polls of one backend: high in EmptyPolls means that the
// loop spins, high in ValidPolls that there is work.
type BackendStats struct {
	Scheme     string
	ValidPolls int64 // found work
	EmptyPolls int64 // found nothing
}

// loopCounts are the loop's own; publish makes them visible.
type loopCounts struct {
	cycles, busyCycles, busyNanos, parks, naps, asleep, lent, stalls, maxCycle int64
}

// loopStats are what was published last: stores of the loop, loads of anybody.
type loopStats struct {
	cycles, busyCycles, busyNanos, parks, naps, asleep, lent, stalls, maxCycle, wake, spin, conns atomic.Int64

	polls []pollStats // of each backend
}

type pollStats struct{ valid, empty atomic.Int64 }

// Stats returns the counters. Any goroutine.
func (l *Loop) Stats() Stats {
	s := &l.stats
	out := Stats{
		Cycles: s.cycles.Load(), BusyCycles: s.busyCycles.Load(), Busy: time.Duration(s.busyNanos.Load()),
		Parks: s.parks.Load(), Naps: s.naps.Load(), Asleep: time.Duration(s.asleep.Load()),
		Lent: s.lent.Load(), Stalls: s.stalls.Load(), MaxCycle: time.Duration(s.maxCycle.Load()),
		WakeUp: time.Duration(s.wake.Load()), Spin: time.Duration(s.spin.Load()), Connections: s.conns.Load(),
	}
	for i := range s.polls {
		p := &s.polls[i]
		out.Backends = append(out.Backends, BackendStats{l.backends[i].Scheme(), p.valid.Load(), p.empty.Load()})
	}
	return out
}

// publish shows the counters to others: before each sleep, and every 100 µs
// between sleeps. Atomic stores cost more than a cycle that finds nothing.
func (l *Loop) publish() {
	s, c := &l.stats, &l.counts
	s.cycles.Store(c.cycles)
	s.busyCycles.Store(c.busyCycles)
	s.busyNanos.Store(c.busyNanos)
	s.parks.Store(c.parks)
	s.naps.Store(c.naps)
	s.asleep.Store(c.asleep)
	s.lent.Store(c.lent)
	s.stalls.Store(c.stalls)
	s.maxCycle.Store(c.maxCycle)
	s.wake.Store(l.idle.wake)
	s.spin.Store(l.idle.spin)
	for _, c := range l.uncounted {
		c.publish()
	}
	clear(l.uncounted)
	l.uncounted = l.uncounted[:0]
	for i := range l.backends {
		b := &l.backends[i]
		s.polls[i].valid.Store(b.valid)
		s.polls[i].empty.Store(b.empty)
	}
}

// countBusy counts the present cycle, which found work.
func (l *Loop) countBusy(end int64) {
	took := end - l.now
	c := &l.counts
	c.busyCycles++
	c.busyNanos += took
	c.maxCycle = max(c.maxCycle, took)
	if took > stallNanos {
		c.stalls++
	}
}
