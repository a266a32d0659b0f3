package bench

import (
	"context"
	"fmt"

	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/netpoll"
)

const (
	// matchedBytes is the size of a message of the matched workload, and matchedShare
	// the share of the first transport's maximum that all are offered.
	matchedBytes = 256
	matchedShare = 0.5
)

// matchedJobs: each message a request of its own, as fast as it goes, and then on
// every transport at the same load, half of what the first, TCP, was able to do:
// what a message costs there, and how long its round trip takes.
func (r *runner) matchedJobs() []*job {
	size := r.o.Size
	if size == 0 && r.o.Input == "" {
		size = matchedBytes
	}
	jobOf := func(transport, device string) *job {
		j := r.pathJob("matched", transport, device, role.Spec{Window: singleWindow, FlushEach: true, Size: size, Idle: r.idleOr(netpoll.Efficient())})
		j.row.MessageBytes = r.meanBytes(size)
		j.primary = messageRate
		return j
	}
	var jobs []*job
	r.eachLoopDevice(func(transport, device string) { jobs = append(jobs, jobOf(transport, device)) })
	if len(jobs) == 0 {
		return nil
	}
	first := jobs[0]
	r.eachLoopDevice(func(transport, device string) {
		j := jobOf(transport, device)
		j.row.Share = matchedShare
		j.primary = rtP50
		j.once = func(ctx context.Context) (*sample, error) {
			if len(first.samples) == 0 {
				return nil, &role.Unavailable{Reason: fmt.Sprintf("there is no maximum of %s to take a share of", first.row.Condition()), Fix: "see why that could not be measured"}
			}
			// One rate for all repetitions: the first repetition's.
			fastest := first.samples[0].result
			j.row.OfferedRate = matchedShare * float64(fastest.Messages) / fastest.Elapsed.Seconds()
			return j.atRate(ctx, j.row.OfferedRate)
		}
		jobs = append(jobs, j)
	})
	return jobs
}
