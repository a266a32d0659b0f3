package rdma

import "slices"

// reap takes about budget completions of receives and lists the connections they
// concern.
func (el *EventLoop) reap(budget int) int {
	work := 0
	el.drained = true
	for _, d := range el.active {
		for _, g := range d.groups {
			for g.conns > 0 || d.srq != nil {
				n := g.recv.Poll(el.wcs[:])
				for i := range n {
					wc := &el.wcs[i]
					if c := d.lookup(wc.QPN); c != nil {
						if wc.Status == FlushError && c.failure == nil {
							el.reapSends() // what ended the pair may be a send's failure
						}
						c.complete(wc)
					} else if wc.Op == WCRecv && d.srq != nil { // of a pair that is closed
						d.srq.put(d.srq.take(wc.ID))
					}
				}
				work += n
				if n < len(el.wcs) {
					break
				}
				if work >= budget {
					el.drained = false
					break
				}
			}
		}
	}
	return work
}

// await notes that c has sends under way.
func (c *conn) await() {
	el := c.el
	if !c.awaiting {
		c.awaiting = true
		el.awaiting = append(el.awaiting, c)
	}
	if el.reapAt == 0 {
		el.reapAt = el.loop.Now() + int64(reapAfter)
	}
}

// reapSends takes the completions of sends. They free buffers and tell that the peer
// has them, for which nobody waits as a rule: they may gather, and need not wake the
// loop. Whoever does wait is found by patient, or sets stalled.
func (el *EventLoop) reapSends() (n int) {
	el.stalled, el.reapAt = false, 0
	if len(el.awaiting) == 0 {
		return 0
	}
	wcs := &el.sendWCs
	for _, d := range el.active {
		for _, g := range d.groups {
			for k := len(wcs); g.conns > 0 && k == len(wcs); n += k {
				k = g.send.Poll(wcs[:])
				for i := range k {
					if c := d.lookup(wcs[i].QPN); c != nil {
						c.complete(&wcs[i])
					}
				}
			}
		}
	}
	keep := el.awaiting[:0]
	for _, c := range el.awaiting {
		if c.awaiting = !c.shut && c.postedWRs != c.doneWRs; c.awaiting {
			el.stalled = el.stalled || c.stalls()
			keep = append(keep, c)
		}
	}
	clear(el.awaiting[len(keep):])
	el.awaiting = keep
	if len(keep) > 0 {
		el.reapAt = el.loop.Now() + int64(reapAfter)
	}
	return n
}

// patient tells whether nobody waits for the completions of c's sends, and they hold
// little memory.
func (c *conn) patient() bool {
	return c.ep != nil && c.ep.Roomy() && c.ep.Conn().QueuedBytes() <= patientBytes && c.unposted == c.sendq.count && c.broken == nil
}

// patient tells it of all of them.
func (el *EventLoop) patient() bool {
	return len(el.starved) == 0 && !slices.ContainsFunc(el.awaiting, func(c *conn) bool { return !c.shut && !c.patient() })
}
