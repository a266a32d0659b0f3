package broker

import (
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// trimmer gives back to the system what a burst took of an elastic arena: while
// more than trimFloor is taken it looks every trimEvery, and trims when at most
// half of it is in use. So memory follows the load within seconds, and a load that
// goes up and down costs at most one round of page faults in each trimEvery. It
// belongs to the loop's goroutine.
//
// A loop that does nothing is woken only while it holds more than trimFloor.
type trimmer struct {
	loop  *netpoll.Loop
	pool  *hugepages.Pool
	armed bool
	own   bool // the cycle under way may be that of its own timer
}

const (
	trimEvery = 5 * time.Second
	// trimFloor is not worth giving back: what a loop's connections take in any case.
	trimFloor = 16 << 20
)

func newTrimmer(l *netpoll.Loop, p *hugepages.Pool) *trimmer {
	return &trimmer{loop: l, pool: p}
}

// cycleEnd arms it after a cycle in which memory may have been taken.
func (t *trimmer) cycleEnd() {
	if !t.armed && !t.own {
		t.arm()
	}
	t.own = false
}

func (t *trimmer) arm() {
	t.armed = true
	t.loop.After(trimEvery, t.look)
}

func (t *trimmer) look() {
	t.armed, t.own = false, true
	arena := t.pool.Arena()
	backed := arena.BackedBytes()
	if backed <= trimFloor || !arena.Elastic() {
		return
	}
	if t.used() <= backed/2 {
		t.pool.Trim()
		if arena.BackedBytes() <= trimFloor {
			return
		}
	}
	t.arm()
}

func (t *trimmer) used() (bytes int) {
	for p := range hugepages.Purpose(hugepages.NumPurposes) {
		bytes += t.pool.Usage(p).Bytes
	}
	return bytes
}
