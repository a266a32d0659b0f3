package netpoll

import (
	"sync/atomic"
	"time"
)

// Watched is a word of memory, which another process or a device writes, and the value
// that it has as long as nothing has arrived.
type Watched struct {
	Word  *uint32
	Value uint32
}

// Watcher is implemented by a Poller that can say what changes when something arrives,
// so that a spinning loop looks there and not through all of Poll. That is not only
// quicker: a CPU that waits for one word leaves more of the core to the hardware thread
// beside it, which may be the one that is waited for.
type Watcher interface {
	// Watch appends the words to ws. ok is false if only Poll can tell whether there is
	// something to do; worked says that the last Poll found work, after which Poll may have
	// more to do although nothing arrives. The words stay readable until the next call of a
	// method.
	Watch(ws []Watched, worked bool) (_ []Watched, ok bool)
}

const (
	// watchNanos is how long a loop looks at nothing but watched words: timers, submitted
	// functions and other backends wait for it.
	watchNanos = int64(500 * time.Nanosecond)
	// maxWatched bounds the words that one look reads.
	maxWatched = 8
)

// spinner watches words between duty cycles.
type spinner struct {
	words []Watched
	// What a look with its pause takes, averaged. So the clock needs no reading where a
	// look was successful.
	lookNanos int64
}

// spin is what the loop does until the next cycle, after one that found nothing, or found
// work and left nothing.
func (l *Loop) spin(worked bool) {
	s := &l.watch
	ok := true
	s.words = s.words[:0]
	for i := range l.backends {
		b := &l.backends[i]
		if b.watcher != nil {
			var watches bool
			s.words, watches = b.watcher.Watch(s.words, worked)
			ok = ok && watches
		} else {
			ok = ok && l.now < b.notBefore // it would not be asked anyway
		}
	}
	if n := len(s.words); !ok || n == 0 || n > maxWatched {
		if !worked {
			pause()
		}
		return
	}
	looks := watchNanos / max(s.lookNanos, watchNanos/64)
	for i := range looks {
		pause()
		for _, w := range s.words {
			if atomic.LoadUint32(w.Word) != w.Value {
				l.now += i * s.lookNanos
				return
			}
		}
	}
	now := l.ticks.Read()
	s.lookNanos += (min((now-l.now)/looks, watchNanos) - s.lookNanos) / 4
	l.now = now
}
