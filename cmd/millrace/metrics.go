package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// metrics are a server's counters for Prometheus. All but the histogram are read
// when they are asked for: the data path only counts.
type metrics struct{ registry *prometheus.Registry }

func newMetrics(mem *memory) *metrics {
	m := &metrics{prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(newMemoryCollector(mem), newPortCollector())
	return m
}

const namespace = "millrace"

func (m *metrics) gauge(name, help string, labels prometheus.Labels, get func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help, ConstLabels: labels}, get))
}

func (m *metrics) counter(name, help string, get func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, get))
}

// polls counts the polls of a backend that found work (valid) or nothing (empty).
func (m *metrics) polls(transport, found string, get func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: "loop_polls_total",
		Help: "Polls of a transport: valid ones found work.", ConstLabels: prometheus.Labels{"transport": transport, "found": found}}, get))
}

func (m *metrics) watchLoop(l *netpoll.Loop) {
	stat := func(get func(netpoll.Stats) float64) func() float64 { return func() float64 { return get(l.Stats()) } }
	m.counter("loop_cycles_total", "Duty cycles.", stat(func(s netpoll.Stats) float64 { return float64(s.Cycles) }))
	m.counter("loop_busy_cycles_total", "Duty cycles that found work.", stat(func(s netpoll.Stats) float64 { return float64(s.BusyCycles) }))
	m.counter("loop_busy_seconds_total", "Time in duty cycles that found work.", stat(func(s netpoll.Stats) float64 { return s.Busy.Seconds() }))
	m.counter("loop_parks_total", "Times the loop blocked.", stat(func(s netpoll.Stats) float64 { return float64(s.Parks) }))
	m.counter("loop_naps_total", "Times the loop slept to let work gather.", stat(func(s netpoll.Stats) float64 { return float64(s.Naps) }))
	m.counter("loop_asleep_seconds_total", "Time that the loop slept or was blocked.", stat(func(s netpoll.Stats) float64 { return s.Asleep.Seconds() }))
	m.gauge("loop_wake_up_seconds", "What waking the loop takes, as it measured.", nil, stat(func(s netpoll.Stats) float64 { return s.WakeUp.Seconds() }))
	m.gauge("loop_spin_seconds", "How long the loop spins now before it blocks.", nil, stat(func(s netpoll.Stats) float64 { return s.Spin.Seconds() }))
	for i, b := range l.Stats().Backends {
		m.polls(b.Scheme, "valid", func() float64 { return float64(l.Stats().Backends[i].ValidPolls) })
		m.polls(b.Scheme, "empty", func() float64 { return float64(l.Stats().Backends[i].EmptyPolls) })
	}
	m.counter("loop_stalls_total", "Duty cycles longer than 10 ms.", stat(func(s netpoll.Stats) float64 { return float64(s.Stalls) }))
	m.gauge("loop_longest_cycle_seconds", "The longest duty cycle.", nil, stat(func(s netpoll.Stats) float64 { return s.MaxCycle.Seconds() }))
	m.gauge("connections", "Open connections.", nil, stat(func(s netpoll.Stats) float64 { return float64(s.Connections) }))
}

// watchRDMA shows what the backends that carry messages over queue pairs do.
func (m *metrics) watchRDMA(backends []netpoll.Backend) {
	for scheme, stats := range transports.RDMAStats(backends) {
		for _, c := range []struct {
			name, help string
			get        func(*rdma.Stats) uint64
		}{
			{"rdma_fallbacks_total", "Connections that stayed on TCP.", func(s *rdma.Stats) uint64 { return s.Fallbacks }},
			{"rdma_refused_total", "Connections that were refused before they opened.", func(s *rdma.Stats) uint64 { return s.Refused }},
			{"rdma_lone_messages_total", "Messages sent at once into memory that the peer shares, with no acknowledgement.", func(s *rdma.Stats) uint64 { return s.LoneMessages }},
			{"rdma_credit_messages_total", "Messages that carried nothing but credits.", func(s *rdma.Stats) uint64 { return s.CreditMessages }},
			{"rdma_copied_messages_total", "Messages copied because their memory is not registered.", func(s *rdma.Stats) uint64 { return s.CopiedMessages }},
			{"rdma_starved_total", "Times that no buffer was free for a receive.", func(s *rdma.Stats) uint64 { return s.Starved }},
		} {
			m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: namespace, Name: c.name, Help: c.help, ConstLabels: prometheus.Labels{"transport": scheme},
			}, func() float64 { s := stats(); return float64(c.get(&s)) }))
		}
		m.gauge("rdma_receive_buffers", "Receive buffers posted.", prometheus.Labels{"transport": scheme}, func() float64 { return float64(stats().Receives) })
		m.gauge("rdma_registered_bytes", "Memory registered with devices; real ones and the kernel's Soft-RoCE keep it pinned.", prometheus.Labels{"transport": scheme}, func() float64 { return float64(stats().Registered) })
	}
}

func (m *metrics) watchBroker(stats func() broker.CoreStats) {
	stat := func(get func(broker.CoreStats) int64) func() float64 {
		return func() float64 { return float64(get(stats())) }
	}
	m.gauge("broker_sessions", "Clients and proxies connected.", nil, stat(func(s broker.CoreStats) int64 { return s.Sessions }))
	m.counter("broker_stored_batches_total", "Batches stored and acknowledged.", stat(func(s broker.CoreStats) int64 { return s.Produced }))
	m.counter("broker_stored_bytes_total", "Bytes of the batches stored, as they are.", stat(func(s broker.CoreStats) int64 { return s.StoredBytes }))
	m.counter("broker_stored_plain_bytes_total", "Bytes of the batches stored, uncompressed.", stat(func(s broker.CoreStats) int64 { return s.PlainBytes }))
	m.counter("broker_fetches_total", "Fetches answered with records.", stat(func(s broker.CoreStats) int64 { return s.Fetched }))
	m.counter("broker_fetched_bytes_total", "Bytes of the batches that fetches were answered with.", stat(func(s broker.CoreStats) int64 { return s.FetchedBytes }))
	m.counter("broker_refused_total", "Requests answered with an error.", stat(func(s broker.CoreStats) int64 { return s.Refused }))
}

// watchAggregator shows what the proxy sends to the broker.
func (m *metrics) watchAggregator(stats func() broker.LinkStats) {
	stat := func(get func(broker.LinkStats) int64) func() float64 {
		return func() float64 { return float64(get(stats())) }
	}
	m.counter("aggregator_batches_total", "Batches gathered from clients' records.", stat(func(s broker.LinkStats) int64 { return s.Batches }))
	m.counter("aggregator_records_total", "Records in these batches.", stat(func(s broker.LinkStats) int64 { return s.Records }))
	m.counter("aggregator_plain_bytes_total", "Bytes of these batches before compression.", stat(func(s broker.LinkStats) int64 { return s.PlainBytes }))
	m.counter("aggregator_bytes_total", "Bytes of these batches as they were sent.", stat(func(s broker.LinkStats) int64 { return s.Bytes }))
	m.counter("aggregator_compressed_batches_total", "Of these batches, those that compression made smaller.", stat(func(s broker.LinkStats) int64 { return s.Compressed }))
	m.counter("aggregator_passed_batches_total", "Batches of clients that were passed on as they came.", stat(func(s broker.LinkStats) int64 { return s.Passed }))
}

// watchLink shows what the link to the broker runs on.
func (m *metrics) watchLink(transport func() (netpoll.Transport, bool)) {
	m.registry.MustRegister(linkCollector{transport, prometheus.NewDesc(prometheus.BuildFQName(namespace, "", "link_up"),
		"1 for what the link to the broker runs on; absent while there is none.", []string{"transport", "device", "label", "reason"}, nil)})
}

type linkCollector struct {
	transport func() (netpoll.Transport, bool)
	desc      *prometheus.Desc
}

func (c linkCollector) Describe(d chan<- *prometheus.Desc) { d <- c.desc }

func (c linkCollector) Collect(out chan<- prometheus.Metric) {
	if t, ok := c.transport(); ok {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1, t.Scheme, t.Device, t.Label, t.Reason)
	}
}

// sendRT is told the round trips of batches to the broker, in nanoseconds.
func (m *metrics) sendRT() func(nanos int64) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Name: "proxy_send_rt_seconds", Help: "From the sending of a batch to the broker to its acknowledgement.",
		Buckets: prometheus.ExponentialBuckets(4e-6, 2, 20), // 4 µs to 2 s
	})
	m.registry.MustRegister(h)
	return func(nanos int64) { h.Observe(float64(nanos) / 1e9) }
}

// serve answers GET /metrics at addr until stop is called.
func (m *metrics) serve(addr string, log *slog.Logger) (stop func(), err error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics %s: %w (127.0.0.1:0 takes a free port)", addr, err)
	}
	log.Info("metrics", "url", "http://"+ln.Addr().String()+"/metrics")
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln)
	}()
	return func() { _ = s.Close(); <-done }, nil
}
