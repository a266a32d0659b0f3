package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/memif"
)

// portCollector shows what the poll-mode ports of the process have done.
type portCollector struct {
	frames, dropped, answered, unresolved, passed, overrun    *prometheus.Desc
	memifFrames, memifBursts, kicks, badDescriptors, peerLies *prometheus.Desc
}

func newPortCollector() *portCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &portCollector{
		frames:         desc("port_frames_total", "Frames received from poll-mode ports, dropped ones included."),
		dropped:        desc("port_dropped_frames_total", "Frames dropped because they were not RoCEv2 for this end.", "reason"),
		answered:       desc("port_answered_total", "ARP, neighbour discovery and echo requests answered."),
		unresolved:     desc("port_unresolved_frames_total", "Frames lost because their neighbour's MAC address was not known yet."),
		passed:         desc("port_passed_frames_total", "Frames handed over to the link of another queue."),
		overrun:        desc("port_overrun_frames_total", "Frames lost because the link of another queue did not keep up."),
		memifFrames:    desc("memif_frames_total", "Frames of memif ports.", "direction"),
		memifBursts:    desc("memif_bursts_total", "Bursts of memif ports that moved frames.", "direction"),
		kicks:          desc("memif_kicks_total", "System calls to wake the peer of a memif port."),
		badDescriptors: desc("memif_bad_descriptors_total", "Received descriptors that pointed nowhere and were dropped."),
		peerLies:       desc("memif_peer_lies_total", "Indices or buffers of a peer outside of its rings or regions; its port is no longer used."),
	}
}

// Describe implements prometheus.Collector.
func (c *portCollector) Describe(d chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, d) }

// Collect implements prometheus.Collector.
func (c *portCollector) Collect(out chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	links, ports := dpdk.Totals(), memif.Totals()
	count(c.frames, links.RxFrames)
	count(c.answered, links.Answered)
	count(c.unresolved, links.Unresolved)
	count(c.passed, links.Passed)
	count(c.overrun, links.Overrun)
	for why, n := range links.Dropped {
		count(c.dropped, n, why.String())
	}
	count(c.memifFrames, ports.RxFrames, "received")
	count(c.memifFrames, ports.TxFrames, "sent")
	count(c.memifBursts, ports.RxBursts, "received")
	count(c.memifBursts, ports.TxBursts, "sent")
	count(c.kicks, ports.Kicks)
	count(c.badDescriptors, ports.BadDescriptors)
	count(c.peerLies, ports.PeerLies)
}
