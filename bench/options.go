// Package bench measures this machine: the same workloads over kernel TCP, RDMA
// and DPDK, every role in a process of its own, repetitions interleaved.
package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

// Options say what to measure. Zero values mean the defaults.
type Options struct {
	// Transports to compare, each with all its devices, or as SCHEME:DEVICE with that one
	// (and with others of it that are named in the same way);
	// nil: all, and one that cannot run here is skipped without being an error.
	Transports []string
	// Topology is local (loopback and shared memory) or netns (two network
	// namespaces joined by a veth pair; root only). Default local.
	Topology string
	// Workloads, of those in the list of that name. nil: all.
	Workloads []string
	// Size of every message in bytes, or Input, a file of one message per line.
	// Default: 128 bytes for rtt, several sizes for stream, 256 for matched, the sample
	// of package sample for the others.
	Size  int
	Input string
	// Rate of the produce workload, messages per second. Default defaultRate.
	Rate float64
	// Connections of the client. Default 1.
	Connections int
	// Direct lets clients reach the broker itself, over the transport under test, where a
	// workload otherwise has a proxy between them.
	Direct bool
	// Idle policy of the loops under test. Default: latency for rtt where two CPUs
	// are there, efficient for matched, else balanced. A client that shares its CPU with the proxy is
	// efficient in any case.
	Idle string
	// Duration of one measurement, without its warm-up. Default 0.7 s, quick 0.4 s.
	Duration time.Duration
	// Quick finishes within a minute: one repetition instead of three.
	Quick bool

	Launcher role.Launcher
	Version  string
	Progress Progress
}

// Progress is told about every step.
type Progress interface {
	Begin(steps int)
	Step(what string)
	End()
}

const (
	defaultTransportSize = 128 // bytes of an rtt message, the size of the published floor tables
	repetitions          = 3
	maxRate              = 1e9
)

// Workloads lists the names in the order in which they run.
var Workloads = []string{"rtt", "stream", "produce", "throughput", "matched", "consume", "serialize"}

// HeadlineWorkloads are those that the published claims are about.
var HeadlineWorkloads = []string{"produce", "throughput"}

// UsageError says what is wrong with the Options.
type UsageError struct{ text string }

func (e *UsageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// validate fills in defaults and refuses what makes no sense.
func (o *Options) validate() error {
	if o.Topology == "" {
		o.Topology = "local"
	}
	if o.Topology != "local" && o.Topology != "netns" {
		return usage("unknown topology %q: use local or netns", o.Topology)
	}
	for _, w := range o.Workloads {
		if !slices.Contains(Workloads, w) {
			return usage("unknown workload %q: use %s or all", w, strings.Join(Workloads, ", "))
		}
	}
	if len(o.Workloads) == 0 {
		o.Workloads = Workloads
	}
	for _, t := range o.Transports {
		scheme, _, _ := strings.Cut(t, ":")
		if _, err := transports.ByScheme(scheme); err != nil {
			return usage("%v", err)
		}
	}
	if o.Size < 0 || o.Rate < 0 || o.Connections < 0 || o.Duration < 0 {
		return usage("size, rate, connections and duration cannot be negative")
	}
	if o.Rate > maxRate {
		return usage("a rate of at most %.0f messages/s can be offered", float64(maxRate))
	}
	if o.Size > messages.MaxMessageBytes {
		return usage("messages have at most %d bytes", messages.MaxMessageBytes)
	}
	if o.Size > 0 && o.Input != "" {
		return usage("--size and --input exclude each other: a message has the size it has in the file")
	}
	if o.Idle != "" {
		if _, err := netpoll.ParseIdlePolicy(o.Idle); err != nil {
			return usage("%v", err)
		}
	}
	if o.Connections == 0 {
		o.Connections = 1
	}
	if o.Duration == 0 {
		o.Duration = 700 * time.Millisecond
		if o.Quick {
			o.Duration = 400 * time.Millisecond
		}
	}
	if o.Progress == nil {
		o.Progress = silent{}
	}
	return nil
}

// wanted tells whether a transport was asked for, and which devices of it are to be
// measured; none named: all.
func (o *Options) wanted(scheme string) (devices []string, ok bool) {
	all := len(o.Transports) == 0
	for _, t := range o.Transports {
		s, device, _ := strings.Cut(t, ":")
		switch {
		case s != scheme:
		case device == "":
			all = true
		default:
			devices = append(devices, device)
		}
	}
	if all {
		return nil, true
	}
	return devices, len(devices) > 0
}

type silent struct{}

func (silent) Begin(int)   {}
func (silent) Step(string) {}
func (silent) End()        {}

// lines is a Progress for logs and pipes.
type lines struct {
	w           io.Writer
	step, steps int
}

// NewLines writes one line per step to w.
func NewLines(w io.Writer) Progress { return &lines{w: w} }

func (l *lines) Begin(steps int) { l.steps = steps }
func (l *lines) Step(what string) {
	l.step++
	fmt.Fprintf(l.w, "[%d/%d] %s\n", l.step, l.steps, what)
}
func (l *lines) End() {}
