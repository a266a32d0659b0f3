package netpoll

// LendingWire is implemented by a Wire whose Send and Flush may run on another goroutine
// while that has borrowed the loop: they hand bytes to the transport, report to
// Endpoint.Sent at most, and run no handler. An error stays for the loop to find.
type LendingWire interface {
	// Lends reports whether a message sent now would leave at Flush, and nothing else
	// would have to be done: whether borrowing the loop for it is worth while. cheap: it
	// would take no system call, unless the peer sleeps.
	Lends() (ok, cheap bool)
}

// Lender is implemented by a Backend with wires that lend, and work of its own besides
// what they send.
type Lender interface {
	// Lent is called after others borrowed the loop. As Arm does, it tells what Poll is
	// needed for: idle is false if there is work now, deadline is when there will be.
	Lent() (deadline int64, idle bool)
}

// Lends reports whether Send may be called within Loop.Borrow. cheap: it costs little
// there, so that messages that follow each other may as well leave one by one.
func (c *Conn) Lends() (ok, cheap bool) {
	if w, is := c.wire.(LendingWire); is && c.state == connOpen {
		return w.Lends()
	}
	return false, false
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
	defer func() { // also where fn panics
		l.lent = false
		l.owner.Unlock()
	}()
	// The loop gives its lock up only to block. If it has been woken by now, it does
	// this itself.
	if !l.wake.sleeping.Load() || l.stopping.Load() {
		return false
	}
	l.now = l.ticks.Read()
	l.usedAt, l.lentAt = l.now, l.now
	l.lent = true
	done := fn(l.now)
	l.flushLent()
	if done {
		l.counts.lent++
	}
	deadline, idle := l.nextDeadline(), !l.leftOver()
	for i := range l.backends {
		if b := l.backends[i].lender; b != nil && idle {
			var d int64
			d, idle = b.Lent()
			deadline = earlier(deadline, d)
		}
	}
	switch {
	case !idle:
		l.wake.notify()
	case deadline != 0 && (l.until == 0 || deadline < l.until):
		l.lentFor = deadline - l.now
		l.wake.notify()
	}
	return done
}

// lentBound is when a loop that blocks now shall look again because it may be borrowed
// meanwhile: what others send then, a timer for its retransmission above all, would wake
// it as soon as it calls for an earlier end of its sleep. 0: that is not to be expected.
func (l *Loop) lentBound() int64 {
	if l.lentFor <= 0 || l.now-l.lentAt >= l.lentFor {
		return 0
	}
	return l.now + l.lentFor
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
