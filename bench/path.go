package bench

import (
	"cmp"
	"context"
	"slices"

	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/internal/timerslack"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

const (
	// defaultRate is what the produce workload offers, messages per second: a load
	// at which no transport is near its limit, so that latencies can be compared.
	defaultRate = 2000
	// batchedWindow and singleWindow are the messages in flight on each connection
	// of the throughput workload, with the aggregator and with each message a
	// request of its own.
	batchedWindow = 4096
	singleWindow  = 64
)

// pathDurability is what the broker's acknowledgements mean.
const pathDurability = seglog.PageCache

// blockingSockets is the device of rows that use Go's sockets as they are.
const blockingSockets = "net"

// eachDevice calls f for every device that can run, in the order of the rows.
func (r *runner) eachDevice(f func(transport, device string)) {
	if r.has("tcp") {
		f("tcp", blockingSockets)
	}
	r.eachLoopDevice(f)
}

// eachLoopDevice is eachDevice without ordinary sockets.
func (r *runner) eachLoopDevice(f func(transport, device string)) {
	for _, t := range transports.Schemes() {
		for _, d := range r.devices[t] {
			f(t, d.Name)
		}
	}
}

// produceJobs: a fixed rate, as a producer has it that does not wait, with the
// aggregator and, at the same rate, with each message a request of its own.
func (r *runner) produceJobs() []*job {
	rate := r.o.Rate
	if rate == 0 {
		rate = defaultRate
	}
	var jobs []*job
	for _, mode := range []role.Spec{{Rate: rate, Batched: true}, {Rate: rate, Window: singleWindow, FlushEach: true}} {
		r.eachDevice(func(transport, device string) {
			j := r.pathJob("produce", transport, device, mode)
			j.row.OfferedRate = rate
			j.primary = rtP50
			jobs = append(jobs, j)
		})
	}
	return jobs
}

// throughputJobs: as much as goes, with a bounded number in flight.
func (r *runner) throughputJobs() []*job {
	var jobs []*job
	for _, mode := range []role.Spec{{Window: batchedWindow, Batched: true}, {Window: singleWindow, FlushEach: true}} {
		r.eachDevice(func(transport, device string) {
			j := r.pathJob("throughput", transport, device, mode)
			j.primary = messageRate
			jobs = append(jobs, j)
		})
	}
	return jobs
}

// consumeMessages is how many messages a topic holds that is read again and again.
const consumeMessages = 200_000

// consumeJobs: reading what is stored, as fast as it goes.
func (r *runner) consumeJobs() []*job {
	var jobs []*job
	r.eachDevice(func(transport, device string) {
		if device == blockingSockets { // its consumer would be the product's own loop
			return
		}
		j := r.pathJob("consume", transport, device, role.Spec{Count: consumeMessages})
		j.row.Batched, j.row.FlushPerMessage = nil, nil
		j.primary = messageRate
		jobs = append(jobs, j)
	})
	return jobs
}

func messageRate(r *report.Row) float64 { return r.MessagesPerSecond }

// pathJob measures client → proxy → broker with the transport between the latter
// two, or client → broker. load says how the client sends.
func (r *runner) pathJob(workload, transport, device string, load role.Spec) *job {
	idle := cmp.Or(load.Idle, r.idleOr(netpoll.Balanced()))
	spec := load
	spec.Idle, spec.Input, spec.Size, spec.Connections = idle, r.o.Input, cmp.Or(load.Size, r.o.Size), r.o.Connections
	spec.Warmup, spec.Duration, spec.Durability = r.warmup(), r.o.Duration, pathDurability.String()

	// As `millrace broker` and `proxy` have it; who sends by the clock asks for punctuality.
	const slack = int(timerslack.Server)
	broker := part{"broker", spec, role.Place{CPUs: r.topo.farCPU, Netns: r.topo.farNS, TimerSlackNanos: slack}, true}
	broker.spec.Role, broker.spec.URL, broker.spec.Device = "broker", transport+"://"+r.topo.farIP+":0", device
	proxy := part{"proxy", spec, role.Place{CPUs: r.topo.proxy, Netns: r.topo.nearNS, TimerSlackNanos: slack}, false}
	proxy.spec.Role, proxy.spec.URL, proxy.spec.Device = "proxy", "tcp://"+r.topo.nearIP+":0", device
	client := part{"client", spec, role.Place{CPUs: r.topo.nearCPU, Netns: r.topo.nearNS, TimerSlackNanos: slack}, false}
	client.spec.Role = "producer"
	verify := workload != "consume" // which compares all that it reads
	if !verify {
		client.spec.Role = "consumer"
	}
	if r.o.Direct {
		client.spec.Device, client.spec.SendRT = device, true
	} else if slices.Equal(client.place.CPUs, proxy.place.CPUs) {
		client.spec.Idle = netpoll.Efficient().Name // a client that spins takes its proxy's time
	}
	if device == blockingSockets {
		idle = "blocking"
		broker.spec.Role, proxy.spec.Role, client.spec.Blocking = "net-broker", "net-proxy", true
	}
	servers := []part{broker, proxy}
	if r.o.Direct {
		servers = servers[:1]
	}

	j := &job{
		row: report.Row{
			Workload: workload, Transport: transport, Topology: r.topo.name, Device: device, Layer: "message", Idle: idle, Emulated: r.emul,
			Batched: &load.Batched, FlushPerMessage: &load.FlushEach, Connections: spec.Connections,
			Placement: placement(append(slices.Clone(servers), client)...), Durability: spec.Durability, Direct: r.o.Direct,
		},
		atRate: func(ctx context.Context, rate float64) (*sample, error) {
			client := client
			client.spec.Rate = rate
			return measureRow(ctx, &r.o.Launcher, servers, client, verify)
		},
	}
	j.once = func(ctx context.Context) (*sample, error) { return j.atRate(ctx, load.Rate) }
	return j
}
