package main

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/hugepages"
)

// memoryCollector shows what the pool of a server holds, from one snapshot for
// each reading.
type memoryCollector struct {
	mem *memory

	limit, backed, undivided, inUse, peak, exhausted, slots, free *prometheus.Desc
}

func newMemoryCollector(mem *memory) *memoryCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &memoryCollector{
		mem:       mem,
		limit:     desc("memory_bytes", "The most memory that messages may take, by what backs it.", "backing"),
		backed:    desc("memory_backed_bytes", "Memory of messages that was taken from the system."),
		undivided: desc("memory_undivided_bytes", "Memory of messages that is not cut into buffers."),
		inUse:     desc("buffer_bytes", "Buffers in use.", "purpose"),
		peak:      desc("buffer_peak_bytes", "The most buffers that were in use.", "purpose"),
		exhausted: desc("buffer_exhausted_total", "Requests for a buffer that found none."),
		slots:     desc("buffer_slots", "Buffers that were cut, by their size.", "bytes"),
		free:      desc("buffer_free_slots", "Of these, those not in use.", "bytes"),
	}
}

// Describe implements prometheus.Collector.
func (c *memoryCollector) Describe(d chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, d) }

// Collect implements prometheus.Collector.
func (c *memoryCollector) Collect(out chan<- prometheus.Metric) {
	s := c.mem.pool.Stats()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	gauge(c.limit, s.ArenaBytes, c.mem.arena.Report().Backing.String())
	gauge(c.backed, s.BackedBytes)
	gauge(c.undivided, s.UndividedBytes)
	for p, u := range s.Purposes {
		gauge(c.inUse, u.Bytes, hugepages.Purpose(p).String())
		gauge(c.peak, u.PeakBytes, hugepages.Purpose(p).String())
	}
	for _, k := range s.Classes {
		gauge(c.slots, k.Slots, strconv.Itoa(k.PayloadBytes))
		gauge(c.free, k.Free, strconv.Itoa(k.PayloadBytes))
	}
	out <- prometheus.MustNewConstMetric(c.exhausted, prometheus.CounterValue, float64(s.Exhausted))
}
