package netpoll

import (
	"fmt"
	"time"
)

// IdlePolicy decides what a loop does when a duty cycle found no work. It is a
// value: each loop keeps its own copy and feeds it the work count.
//
// Since work was last found the loop spins for Spin, and then parks: it blocks
// until a descriptor, a timer or a submission wakes it. With Park unset it
// never blocks.
type IdlePolicy struct {
	Name string
	// Spin is how long empty cycles go on before the loop parks. It should be
	// near the cost of a wake-up (40–60 µs measured on a virtual machine): less
	// pays the wake-up too often, more burns CPU that buys nothing.
	Spin time.Duration
	// Park allows the loop to block. Without it one CPU is always busy.
	Park bool

	idleSince int64
}

// Latency never blocks: lowest latency, one CPU always busy.
func Latency() IdlePolicy { return IdlePolicy{Name: "latency"} }

// Balanced spins about as long as a wake-up costs, then blocks. The default.
func Balanced() IdlePolicy {
	return IdlePolicy{Name: "balanced", Spin: 50 * time.Microsecond, Park: true}
}

// Efficient blocks as soon as a cycle finds nothing.
func Efficient() IdlePolicy { return IdlePolicy{Name: "efficient", Park: true} }

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

// step is fed the work count of one duty cycle and the time; it reports whether
// the loop should try to park now.
func (p *IdlePolicy) step(work int, now int64) (park bool) {
	if work > 0 {
		p.idleSince = 0
		return false
	}
	if !p.Park {
		return false
	}
	if p.idleSince == 0 {
		p.idleSince = now
	}
	return now-p.idleSince >= int64(p.Spin)
}
