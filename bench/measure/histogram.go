// Package measure takes the figures of a benchmark: latencies, CPU time of
// processes and of the machine, and what the machine is.
package measure

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histogram collects latencies from 1 ns to one minute with three significant
// digits. It allocates only when made. One goroutine.
type Histogram struct{ h *hdrhistogram.Histogram }

// maxLatency bounds what is recorded; longer ones count as this long.
const maxLatency = time.Minute

// NewHistogram makes an empty histogram.
func NewHistogram() *Histogram {
	return &Histogram{hdrhistogram.New(1, int64(maxLatency), 3)}
}

// Record adds a latency.
func (h *Histogram) Record(d time.Duration) {
	// In range after the clamp, so it cannot fail.
	_ = h.h.RecordValue(int64(min(max(d, 1), maxLatency)))
}

// RecordN adds a latency n times.
func (h *Histogram) RecordN(d time.Duration, n int64) {
	_ = h.h.RecordValues(int64(min(max(d, 1), maxLatency)), n)
}

// Merge adds what other holds.
func (h *Histogram) Merge(other *Histogram) { h.h.Merge(other.h) }

// Count is how many latencies were recorded.
func (h *Histogram) Count() int64 { return h.h.TotalCount() }

// Reset empties the histogram.
func (h *Histogram) Reset() { h.h.Reset() }

// Quantiles summarises the histogram; nil if it is empty.
func (h *Histogram) Quantiles() *Quantiles {
	if h.h.TotalCount() == 0 {
		return nil
	}
	at := func(q float64) float64 { return float64(h.h.ValueAtQuantile(q)) / 1e3 }
	return &Quantiles{P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: float64(h.h.Max()) / 1e3}
}

// Quantiles of latencies, microseconds.
type Quantiles struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// MedianQuantiles is the median of each quantile over several runs; nil entries
// are left out, and the result is nil if nothing is left.
func MedianQuantiles(qs []*Quantiles) *Quantiles {
	var p50, p90, p99, p999, worst []float64
	for _, q := range qs {
		if q != nil {
			p50, p90, p99 = append(p50, q.P50), append(p90, q.P90), append(p99, q.P99)
			p999, worst = append(p999, q.P999), append(worst, q.Max)
		}
	}
	if len(p50) == 0 {
		return nil
	}
	return &Quantiles{P50: Median(p50), P90: Median(p90), P99: Median(p99), P999: Median(p999), Max: Median(worst)}
}
