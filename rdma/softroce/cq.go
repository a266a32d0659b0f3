package softroce

import (
	"fmt"
	"math/bits"

	"github.com/millrace/millrace/rdma"
)

// completionQueue is a ring of completions. A full one blocks its queue pairs,
// which keep what they cannot report (see queuePair.drain) and answer messages
// with "receiver not ready": nothing is lost.
type completionQueue struct {
	dev        *Device
	ring       []rdma.WC
	head, tail uint32 // free running
	qps        int    // queue pairs that complete here; a pair counts twice if both its queues do
}

func newCQ(d *Device, depth int) *completionQueue {
	return &completionQueue{dev: d, ring: make([]rdma.WC, ringSize(depth))}
}

// ringSize is the smallest power of two of at least n.
func ringSize(n int) int { return 1 << bits.Len(uint(n-1)) }

func (c *completionQueue) full() bool { return int(c.tail-c.head) == len(c.ring) }

func (c *completionQueue) push(wc rdma.WC) {
	c.ring[int(c.tail)&(len(c.ring)-1)] = wc
	c.tail++
}

// Poll implements rdma.CQ.
func (c *completionQueue) Poll(wcs []rdma.WC) int {
	n := min(len(wcs), int(c.tail-c.head))
	if n == 0 {
		return 0
	}
	at := int(c.head) & (len(c.ring) - 1)
	k := copy(wcs[:n], c.ring[at:])
	copy(wcs[k:n], c.ring)
	c.head += uint32(n)
	return n
}

// Arm implements rdma.CQ. Completions come from Progress alone, so what wakes the
// owner is the link's descriptor. Whoever arms is about to sleep: acknowledgements
// must not wait longer.
func (c *completionQueue) Arm() error {
	c.dev.flush = true
	if a, ok := c.dev.link.(Armer); ok {
		c.dev.restless = !a.Arm()
	}
	return nil
}

// Close implements rdma.CQ.
func (c *completionQueue) Close() error {
	if c.qps > 0 {
		return fmt.Errorf("softroce: the completion queue still serves %d work queues; close their queue pairs first", c.qps)
	}
	return nil
}
