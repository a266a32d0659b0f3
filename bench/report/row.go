// Package report holds what a benchmark run found, and writes it: as JSON for
// programs, as a table and as a page for people, and as the difference of two runs.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/millrace/millrace/bench/measure"
)

// Row is one line of results: one workload over one transport under one set of
// conditions; with several repetitions each figure is their median. Fields that
// make no sense for a workload are absent from the JSON. Latencies are in
// microseconds.
type Row struct {
	Workload  string `json:"workload"`
	Transport string `json:"transport,omitempty"` // tcp, rdma, dpdk
	Topology  string `json:"topology,omitempty"`  // local, netns
	Device    string `json:"device,omitempty"`    // net, epoll, softroce+udp, memif, …
	Label     string `json:"label,omitempty"`     // rnic, soft-roce, user-space, kernel
	Reason    string `json:"reason,omitempty"`    // why it ran on that device, where that was not what was asked for
	Emulated  bool   `json:"emulated,omitempty"`
	Layer     string `json:"layer,omitempty"` // message, port
	Idle      string `json:"idle,omitempty"`  // latency, balanced, efficient, blocking

	Batched         *bool             `json:"batched,omitempty"`
	FlushPerMessage *bool             `json:"flushPerMessage,omitempty"`
	Connections     int               `json:"connections,omitempty"`
	Placement       map[string]string `json:"placement,omitempty"` // role: where it ran
	Direct          bool              `json:"direct,omitempty"`    // no proxy between client and broker
	Durability      string            `json:"durability,omitempty"`
	Sustained       *bool             `json:"sustained,omitempty"`

	MessageBytes      float64 `json:"messageBytes,omitempty"` // mean
	OfferedRate       float64 `json:"offeredRate,omitempty"`  // messages per second
	Share             float64 `json:"share,omitempty"`        // offered rate as a share of TCP's maximum
	Messages          int64   `json:"messages,omitempty"`
	Seconds           float64 `json:"seconds,omitempty"`
	MessagesPerSecond float64 `json:"messagesPerSecond,omitempty"`
	BytesPerSecond    float64 `json:"bytesPerSecond,omitempty"`
	Lost              *int64  `json:"lost,omitempty"`
	Duplicated        *int64  `json:"duplicated,omitempty"`

	RTMicros     *measure.Quantiles `json:"rtMicros,omitempty"`
	SendRTMicros *measure.Quantiles `json:"sendRtMicros,omitempty"` // proxy → broker → proxy, or client → broker → client

	CPUMicrosPerMessage map[string]float64 `json:"cpuMicrosPerMessage,omitempty"` // machine and roles
	BusyShare           map[string]float64 `json:"busyShare,omitempty"`           // roles
	Spread              *float64           `json:"spread,omitempty"`              // of the repetitions

	Codec                  string  `json:"codec,omitempty"`
	Operation              string  `json:"operation,omitempty"` // encode, visit
	CRC                    *bool   `json:"crc,omitempty"`
	Workers                int     `json:"workers,omitempty"`
	BatchRecords           int     `json:"batchRecords,omitempty"`
	Compression            string  `json:"compression,omitempty"`
	RecordsPerSecond       float64 `json:"recordsPerSecond,omitempty"`
	OverheadBytesPerRecord float64 `json:"overheadBytesPerRecord,omitempty"`
}

// Skip says which transport did not run, why, and what to do about it.
type Skip struct {
	Transport string `json:"transport"`
	Reason    string `json:"reason"`
	Fix       string `json:"fix"`
}

// Report is a whole run.
type Report struct {
	Machine measure.Machine `json:"machine"`
	Results []Row           `json:"results"`
	Skipped []Skip          `json:"skipped"`
}

// sized tells whether rows of the same workload differ in the size of messages.
func (r *Row) sized() bool { return r.Workload == "stream" || r.Workload == "matched" }

// Condition names what a row measured, without its figures: two rows of two runs
// with the same condition can be compared.
func (r *Row) Condition() string {
	s := r.Workload
	for _, part := range []string{r.Transport, r.Topology, r.Device, r.Layer, r.Idle, r.Codec, r.Operation, r.Compression} {
		if part != "" {
			s += " " + part
		}
	}
	if r.Batched != nil && *r.Batched {
		s += " batched"
	}
	if r.FlushPerMessage != nil && *r.FlushPerMessage {
		s += " flush-per-message"
	}
	if r.Direct {
		s += " direct"
	}
	if r.sized() {
		s += fmt.Sprintf(" %.0fB", r.MessageBytes)
	}
	if r.Share > 0 {
		s += fmt.Sprintf(" share=%g", r.Share)
	}
	if r.CRC != nil && !*r.CRC {
		s += " no-crc"
	}
	for _, n := range []struct {
		name  string
		value int
	}{{"connections", r.Connections}, {"workers", r.Workers}, {"records", r.BatchRecords}} {
		if n.value > 1 {
			s += fmt.Sprintf(" %s=%d", n.name, n.value)
		}
	}
	return s
}

// WriteJSON writes the report; lists are never null.
func (rep *Report) WriteJSON(w io.Writer) error {
	out := *rep
	if out.Results == nil {
		out.Results = []Row{}
	}
	if out.Skipped == nil {
		out.Skipped = []Skip{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(out)
}

// maxReportBytes bounds what Read takes in.
const maxReportBytes = 64 << 20

// Read reads a report that WriteJSON wrote.
func Read(file string) (*Report, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r Report
	if err := json.NewDecoder(io.LimitReader(f, maxReportBytes)).Decode(&r); err != nil {
		return nil, fmt.Errorf("%s is not a report of `millrace bench --json`: %w", file, err)
	}
	if len(r.Results) == 0 && r.Machine.CPUModel == "" {
		return nil, fmt.Errorf("%s is not a report of `millrace bench --json`: %w", file, errors.New("it has neither machine nor results"))
	}
	return &r, nil
}
