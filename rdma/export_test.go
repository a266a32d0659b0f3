package rdma

import "time"

// SetBeatInterval changes how often all connections say that they are alive; no
// event loop may exist.
func SetBeatInterval(d time.Duration) (restore func()) {
	old := beatInterval
	beatInterval = d
	return func() { beatInterval = old }
}
