package roles

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// maxNap bounds how long a sleeper does not see that its context ended.
const maxNap = 10 * time.Millisecond

// sleepUntil sleeps until at, as precisely as the machine allows, and returns the time.
// It asks for that each time, for it may be on another thread. Go's own timers come up to a millisecond
// late in a process that is idle: its poller sleeps in whole milliseconds
// (runtime/netpoll_epoll.go), which would be most of what is measured here.
func sleepUntil(ctx context.Context, at time.Time) time.Time {
	for {
		now := time.Now()
		d := min(at.Sub(now), maxNap)
		if d <= 0 || ctx.Err() != nil {
			return now
		}
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil) // EINTR: the runtime's preemption signal
	}
}
