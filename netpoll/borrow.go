package netpoll

// lender is a Wire whose Send and Flush may run while another goroutine has borrowed
// the loop: they hand bytes to the transport and report to Endpoint.Sent at most. An
// error stays for the loop to find: Loop.faulty says that there was one.
type lender interface{ lends() }

// Lends reports whether Send may be called within Loop.Borrow.
func (c *Conn) Lends() bool {
	_, ok := c.wire.(lender)
	return ok && c.state == connOpen
}

// Borrow runs fn on the calling goroutine in the loop's place, if the loop is blocked
// and nobody else has borrowed it, sends what fn queued on connections that lend, and
// returns what fn returned. Otherwise it does nothing and returns false. It never waits.
// It spares a wake-up: that of a loop that would do no more than send. now is Clock's.
//
// fn may do what a handler may, with these limits: it sends only on a Conn that Lends,
// and closes none. No handler runs before Borrow returns; what calls for one, and timers
// that fn sets, wake the loop. Hooks do not run: what fn changes of their deadlines calls
// for a Submit. Any goroutine but the loop's.
func (l *Loop) Borrow(fn func(now int64) bool) bool {
	if !l.wake.sleeping.Load() || !l.owner.TryLock() {
		return false
	}
	defer l.owner.Unlock()
	// The loop gives its lock up only to block. If it has been woken by now, it does
	// this itself.
	if !l.wake.sleeping.Load() || l.stopping.Load() {
		return false
	}
	deadline := l.nextDeadline()
	l.lent = true
	l.usedAt = l.Clock()
	done := fn(l.usedAt)
	l.flushLent()
	l.lent = false
	l.counts.lent++
	if d := l.nextDeadline(); len(l.dirty) > 0 || len(l.writable) > 0 || l.hooksOwe || d != 0 && (deadline == 0 || d < deadline) {
		l.wake.notify()
	}
	return done
}

// flushLent is flush without handlers. What met an error stays for the loop.
func (l *Loop) flushLent() {
	rest := 0
	for _, c := range l.dirty {
		c.dirty = false
		if c.state == connClosed {
			continue
		}
		c.wire.Flush()
		if l.faulty {
			l.faulty, c.dirty = false, true
			l.dirty[rest] = c
			rest++
		}
	}
	clear(l.dirty[rest:])
	l.dirty = l.dirty[:rest]
}
