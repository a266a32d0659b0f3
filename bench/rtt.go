package bench

import (
	"context"
	"time"

	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

// rttJobs are the ping-pongs between two processes: of raw sockets and ports
// (the floor), and through the whole message path.
func (r *runner) rttJobs() []*job {
	spin := len(r.cpus) > 1 // two processes that spin on one CPU measure its scheduler
	idle := r.idleOr(netpoll.Latency())
	if !spin {
		idle = r.idleOr(netpoll.Balanced())
	}
	var jobs []*job
	if r.has("tcp") {
		jobs = append(jobs, r.rttJob("tcp", "net", "message", "blocking", "net"))
		if spin {
			jobs = append(jobs, r.rttJob("tcp", "epoll", "port", "latency", "tcp"))
		}
		jobs = append(jobs, r.rttJob("tcp", "epoll", "message", idle, "loop"))
	}
	for _, d := range r.devices["rdma"] {
		if spin && d.Name == transports.SoftRoCEUDP {
			jobs = append(jobs, r.rttJob("rdma", d.Name, "port", "latency", "udp"))
		}
		jobs = append(jobs, r.rttJob("rdma", d.Name, "message", idle, "loop"))
	}
	for _, d := range r.devices["dpdk"] {
		if spin && d.Name != xdpDevice { // ports that are a pair
			jobs = append(jobs, r.rttJob("dpdk", d.Name, "port", "latency", "port"))
		}
		jobs = append(jobs, r.rttJob("dpdk", d.Name, "message", idle, "loop"))
	}
	return jobs
}

// rttJob measures roles kind-echo and kind-ping.
func (r *runner) rttJob(transport, device, layer, idle, kind string) *job {
	size := r.o.Size
	if size == 0 && r.o.Input == "" {
		size = defaultTransportSize
	}
	spec := role.Spec{Device: device, Idle: idle, Input: r.o.Input, Size: size, Warmup: r.warmup(), Duration: r.o.Duration, Connections: 1}
	if layer == "message" {
		spec.Connections = r.o.Connections
	}
	slack := 0
	if idle == "latency" {
		slack = spinSlackNanos
	}
	server := part{"broker", spec, role.Place{CPUs: r.topo.farCPU, Netns: r.topo.farNS, TimerSlackNanos: slack}, false}
	server.spec.Role, server.spec.URL = kind+"-echo", transport+"://"+r.topo.farIP+":0"
	client := part{"client", spec, role.Place{CPUs: r.topo.nearCPU, Netns: r.topo.nearNS, TimerSlackNanos: slack}, false}
	client.spec.Role = kind + "-ping"
	return &job{
		row: report.Row{
			Workload: "rtt", Transport: transport, Topology: r.topo.name, Device: device, Layer: layer, Idle: idle, Emulated: r.emul,
			Connections: spec.Connections, Placement: placement(client, server),
		},
		once: func(ctx context.Context) (*sample, error) {
			return measureRow(ctx, &r.o.Launcher, []part{server}, client, false)
		},
		primary: rtP50,
	}
}

// warmup is part of every measurement and not counted.
func (r *runner) warmup() time.Duration {
	return max(r.o.Duration/5, min(r.o.Duration, 100*time.Millisecond))
}
