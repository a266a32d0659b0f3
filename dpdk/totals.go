package dpdk

import "sync/atomic"

// totals are the counters of all links that this process has had, as far as their
// owners have published them.
var totals struct {
	rxFrames, answered, unresolved, passed, overrun atomic.Uint64
	dropped                                         [numDrops]atomic.Uint64
}

// publishEvery is how many calls of Rx pass until a busy link publishes what it counted.
const publishEvery = 256

// Totals is the sum over all links that this process has had. A link adds to it every
// few hundred polls, before its loop sleeps, and at its end. Any goroutine.
func Totals() LinkStats {
	t := &totals
	s := LinkStats{
		RxFrames: t.rxFrames.Load(), Dropped: make(map[Drop]uint64), Answered: t.answered.Load(), Unresolved: t.unresolved.Load(),
		Passed: t.passed.Load(), Overrun: t.overrun.Load(),
	}
	for d := range t.dropped {
		if n := t.dropped[d].Load(); n > 0 {
			s.Dropped[Drop(d)] = n
		}
	}
	return s
}

// linkCounts are a link's own.
type linkCounts struct {
	rxFrames, answered, unresolved, passed, overrun uint64
	dropped                                         [numDrops]uint64
}

func (l *Link) publish() {
	now, was := l.counts, &l.published
	if l.set != nil {
		now.passed, now.overrun = l.set.stats[l.index].passed, l.set.stats[l.index].overrun
	}
	if now == *was {
		return
	}
	totals.rxFrames.Add(now.rxFrames - was.rxFrames)
	totals.answered.Add(now.answered - was.answered)
	totals.unresolved.Add(now.unresolved - was.unresolved)
	totals.passed.Add(now.passed - was.passed)
	totals.overrun.Add(now.overrun - was.overrun)
	for d := range now.dropped {
		totals.dropped[d].Add(now.dropped[d] - was.dropped[d])
	}
	*was = now
}
