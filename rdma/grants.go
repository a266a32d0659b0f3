package rdma

// yieldIdle gives back the credits of connections that have posted nothing since
// the last look.
func (el *EventLoop) yieldIdle(now int64) {
	el.yieldAt = now + int64(yieldAfter)
	keep := el.holders[:0]
	for _, c := range el.holders {
		switch {
		case c.shut || c.credits <= 1:
			c.holding = false
		case c.sendq.count > 0 || c.postedWRs != c.heldWRs:
			c.heldWRs = c.postedWRs
			keep = append(keep, c)
		default:
			c.yield = true
			c.setDirty()
			keep = append(keep, c)
		}
	}
	clear(el.holders[len(keep):])
	el.holders = keep
}

// holdGrants sets those aside, for one poll, that have nothing but receives to tell of, to
// peers that know of some: at the end of the cycle their handlers may answer, and the grant
// goes along. By itself it would wake a peer that waits for the answer.
//
// What the last look before a sleep delivers is answered in the cycle after it. One that
// sent nothing since the last time, as where messages go one way, is not set aside.
func (el *EventLoop) holdGrants() {
	rest := 0
	for _, c := range el.dirty {
		first := !c.held && c.sends != c.heldFor
		if c.held = (first || c.held && el.before) && c.unposted == c.sendq.count && !c.yield && c.granted > c.untold() && c.ep != nil; c.held {
			if first {
				c.heldFor = c.sends
			}
			el.held = append(el.held, c)
		} else {
			el.dirty[rest] = c
			rest++
		}
	}
	clear(el.dirty[rest:])
	el.dirty = el.dirty[:rest]
}

func (el *EventLoop) releaseGrants() {
	el.dirty = append(el.dirty, el.held...)
	clear(el.held)
	el.held = el.held[:0]
}
