package main

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/dpdk/eal"
)

// watchLibdpdk shows what ports of libdpdk do.
func (m *metrics) watchLibdpdk() { m.registry.MustRegister(ealCollector{}) }

// ealCollector shows what the ports of libdpdk do that are open when it is asked, and,
// as one port that is called so, what the closed ones did: a sum over all ports never falls.
type ealCollector struct{}

var (
	ealFrames = prometheus.NewDesc(prometheus.BuildFQName(namespace, "", "libdpdk_frames_total"),
		"Frames of a port of libdpdk; copied ones were copied by libdpdk's driver.", []string{"port", "queue", "driver", "direction", "copied"}, nil)
	ealDropped = prometheus.NewDesc(prometheus.BuildFQName(namespace, "", "libdpdk_dropped_frames_total"),
		"Received frames dropped because they came in several segments.", []string{"port", "queue"}, nil)
	ealStarved = prometheus.NewDesc(prometheus.BuildFQName(namespace, "", "libdpdk_starved_total"),
		"Times that a port had no empty frame.", []string{"port", "queue"}, nil)
)

// Describe implements prometheus.Collector.
func (ealCollector) Describe(d chan<- *prometheus.Desc) {
	d <- ealFrames
	d <- ealDropped
	d <- ealStarved
}

// Collect implements prometheus.Collector.
func (ealCollector) Collect(out chan<- prometheus.Metric) {
	counter := func(desc *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	show := func(name, queue, driver string, s eal.Stats) {
		for _, c := range []struct {
			direction, copied string
			n                 uint64
		}{{"rx", "yes", s.RxCopied}, {"rx", "no", s.RxFrames - s.RxCopied}, {"tx", "yes", s.TxCopied}, {"tx", "no", s.TxFrames - s.TxCopied}} {
			counter(ealFrames, c.n, name, queue, driver, c.direction, c.copied)
		}
		counter(ealDropped, s.Dropped, name, queue)
		counter(ealStarved, s.Starved, name, queue)
	}
	open, closed := eal.Ports()
	for _, p := range open {
		show(p.Info.Name, strconv.Itoa(p.Queue), p.Info.Driver, p.Stats)
	}
	show("closed", "", "", closed)
}
