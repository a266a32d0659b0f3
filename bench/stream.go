package bench

import (
	"context"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/netpoll"
)

// streamSizes are the message sizes of the stream workload, unless one is asked for.
var streamSizes = []int{256, 1 << 10, 64 << 10}

const (
	// streamQueueBytes bounds what the sending end queues: enough to keep every
	// transport busy, little enough to stay in a CPU's cache.
	streamQueueBytes = 1 << 20
	// alwaysFlushed is the size from which a message leaves by itself in any case.
	alwaysFlushed = 32 << 10
)

// streamJobs: one connection without a broker, one way, as fast as it goes. Messages
// are sent one by one; a transport may gather those of a duty cycle, or each is
// flushed.
func (r *runner) streamJobs() []*job {
	sizes := streamSizes
	if r.o.Size > 0 || r.o.Input != "" {
		sizes = []int{r.o.Size}
	}
	var jobs []*job
	for _, size := range sizes {
		for _, flush := range []bool{false, true} {
			if flush && size >= alwaysFlushed {
				continue
			}
			r.eachLoopDevice(func(transport, device string) {
				jobs = append(jobs, r.streamJob(transport, device, size, flush))
			})
		}
	}
	return jobs
}

func (r *runner) streamJob(transport, device string, size int, flush bool) *job {
	idle := r.idleOr(netpoll.Balanced())
	spec := role.Spec{
		Device: device, Idle: idle, Input: r.o.Input, Size: size, FlushEach: flush, QueueBytes: streamQueueBytes, Connections: 1,
		Warmup: r.warmup() / 2, Duration: r.o.Duration / 2,
	}
	server := part{"broker", spec, role.Place{CPUs: r.topo.farCPU, Netns: r.topo.farNS}, false}
	server.spec.Role, server.spec.URL = "stream-sink", transport+"://"+r.topo.farIP+":0"
	client := part{"client", spec, role.Place{CPUs: r.topo.nearCPU, Netns: r.topo.nearNS}, false}
	client.spec.Role = "stream"
	return &job{
		row: report.Row{
			Workload: "stream", Transport: transport, Topology: r.topo.name, Device: device, Layer: "message", Idle: idle, Emulated: r.emul,
			FlushPerMessage: &flush, Connections: 1, MessageBytes: r.meanBytes(size), Placement: placement(client, server),
		},
		once: func(ctx context.Context) (*sample, error) {
			return measureRow(ctx, &r.o.Launcher, []part{server}, client, false)
		},
		primary: messageRate,
	}
}

// meanBytes is the size of the messages of a workload: part of what its rows are
// told apart by.
func (r *runner) meanBytes(size int) float64 {
	ms, err := messages.Load(r.o.Input, size)
	if err != nil { // the run began with a look at them
		return float64(size)
	}
	total := 0
	for _, m := range ms {
		total += len(m)
	}
	return float64(total) / float64(max(1, len(ms)))
}
