package roles

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// maxNap bounds how long a sleeper does not see that its context ended.
const maxNap = 10 * time.Millisecond

// sleepUntil sleeps until at, as precisely as the thread's timer slack and the
// machine allow, and returns the time. Go's own timers come up to a millisecond
// late in a process that is idle: its poller sleeps in whole milliseconds
// (runtime/netpoll_epoll.go), which would be most of what is measured here.
func sleepUntil(ctx context.Context, at time.Time) time.Time {
	for {
		now := time.Now()
		d := min(at.Sub(now), maxNap)
		if d <= 0 || ctx.Err() != nil {
			return now
		}
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil) // EINTR: the runtime's preemption signal
	}
}
