package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

// job is one row to be: its conditions and how to measure it once.
type job struct {
	row  report.Row
	once func(ctx context.Context) (*sample, error)
	// atRate measures a message path once under another rate.
	atRate func(ctx context.Context, messagesPerSecond float64) (*sample, error)
	// primary is the figure whose spread is reported.
	primary func(*report.Row) float64
	samples []*sample
	err     error
}

// runner is one run of the benchmark.
type runner struct {
	o    Options
	topo *topology
	cpus []int
	emul bool
	// devices that can run, by transport; a transport without any is not there.
	devices map[string][]transports.Device
	rep     *report.Report
}

// ErrSkipped says that a transport which was asked for by name could not run; the
// report has the reason and the fix.
var ErrSkipped = errors.New("a transport that was asked for could not run")

// ErrFailed is wrapped by what a measurement failed with.
var ErrFailed = errors.New("measurement failed")

// Run measures. The report is never nil and holds what was found, also where an
// error is returned: ErrSkipped, or the measurements that failed.
func Run(ctx context.Context, o Options) (*report.Report, error) {
	rep := &report.Report{}
	if err := o.validate(); err != nil {
		return rep, err
	}
	cpus, err := role.AllowedCPUs()
	if err != nil {
		return rep, err
	}
	rep.Machine = measure.ThisMachine(o.Version)
	r := &runner{o: o, cpus: cpus, rep: rep, emul: rep.Machine.Emulated()}
	if _, err := messages.Load(o.Input, o.Size); err != nil { // before anything is started
		return rep, usage("%v", err)
	}
	tmp, err := makeTempDir()
	if err != nil {
		return rep, err
	}
	defer os.RemoveAll(tmp)
	r.o.Launcher.TempDir = tmp
	skipped, err := r.probe(ctx)
	if err != nil {
		return rep, err
	}
	if r.topo, err = r.makeTopology(); err != nil {
		rep.Skipped = append(rep.Skipped, report.Skip{Transport: "all", Reason: "topology netns: " + err.Error(), Fix: "use --topology local, or see the reason"})
		return rep, errors.Join(skipped, ErrSkipped)
	}
	defer r.topo.remove()
	return rep, errors.Join(r.measureAll(ctx), skipped)
}

func (r *runner) makeTopology() (*topology, error) {
	t := localTopology()
	if r.o.Topology == "netns" {
		var err error
		if t, err = netnsTopology(); err != nil {
			return nil, err
		}
	}
	t.place(r.cpus)
	return t, nil
}

// probe finds out which transports can run, and over which devices. skipped is
// ErrSkipped if one that was named cannot.
func (r *runner) probe(ctx context.Context) (skipped, err error) {
	named := len(r.o.Transports) > 0
	r.devices = map[string][]transports.Device{}
	for _, t := range transports.All() {
		only, wanted := r.o.wanted(t.Scheme)
		if !wanted {
			continue
		}
		known := make([]bool, len(only))
		var names []string
		for _, d := range r.devicesOf(&t) {
			names = append(names, d.Name)
			chosen := len(only) == 0
			for i, name := range only {
				if name == d.Name || name == d.Also {
					known[i], chosen = true, true
				}
			}
			if !chosen {
				continue
			}
			un, err := r.probeDevice(ctx, &t, &d)
			if err != nil {
				return nil, err
			}
			if un != nil {
				r.rep.Skipped = append(r.rep.Skipped, report.Skip{Transport: t.Scheme, Reason: d.Name + ": " + un.Reason, Fix: un.Fix})
				if len(only) > 0 {
					skipped = ErrSkipped
				}
				continue
			}
			r.devices[t.Scheme] = append(r.devices[t.Scheme], d)
		}
		for i, name := range only {
			if !known[i] {
				r.rep.Skipped = append(r.rep.Skipped, report.Skip{Transport: t.Scheme, Reason: name + ": there is no such device", Fix: "name one of " + strings.Join(names, ", ") + "; millrace doctor tells more"})
				skipped = ErrSkipped
			}
		}
		if named && !r.has(t.Scheme) {
			skipped = ErrSkipped
		}
	}
	return skipped, nil
}

// devicesOf lists what may carry t; dpdk:// on AF_XDP as well, for which the
// topology netns has a wire.
func (r *runner) devicesOf(t *transports.Transport) []transports.Device {
	devices := t.Devices()
	if t.Scheme == "dpdk" {
		devices = append(devices, t.Other(xdpDevice))
	}
	return devices
}

// xdpDevice is the kernel's own end of the wire, at both ends.
const xdpDevice = "afxdp:" + netnsVeth

func (r *runner) probeDevice(ctx context.Context, t *transports.Transport, d *transports.Device) (*role.Unavailable, error) {
	if d.HostOnly && r.o.Topology == "netns" {
		return &role.Unavailable{Reason: "the kernel's RDMA devices work in the machine's first network namespace only", Fix: "use --topology local"}, nil
	}
	if d.Name == xdpDevice && r.o.Topology != "netns" {
		return &role.Unavailable{Reason: "AF_XDP takes a network device at each end", Fix: "use --topology netns (root), which makes a veth pair"}, nil
	}
	err := func() error {
		p, err := r.o.Launcher.Start("probe", role.Spec{Role: "probe", URL: t.Scheme + "://127.0.0.1:0", Device: d.Name}, role.Place{})
		if err != nil {
			return err
		}
		defer p.Kill()
		_, err = p.Await(ctx, readyTimeout, role.Ready)
		return err
	}()
	var un *role.Unavailable
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &un):
		return un, nil
	case err != nil: // a library that ends the process is as good as none
		return &role.Unavailable{Reason: err.Error(), Fix: "millrace doctor tells more"}, nil
	}
	return nil, nil
}

func (r *runner) has(scheme string) bool { return len(r.devices[scheme]) > 0 }

// measureAll runs the jobs of each workload, repetitions interleaved (A B C A B
// C …), so that a machine that slows down does so for all.
func (r *runner) measureAll(ctx context.Context) error {
	reps := repetitions
	if r.o.Quick {
		reps = 1
	}
	var plan [][]*job
	steps := 0
	for _, w := range Workloads {
		if slices.Contains(r.o.Workloads, w) {
			jobs := r.jobs(w)
			plan = append(plan, jobs)
			steps += len(jobs) * reps
		}
	}
	r.o.Progress.Begin(steps)
	defer r.o.Progress.End()
	var failures []error
	for _, jobs := range plan {
		for range reps {
			for _, j := range jobs {
				r.o.Progress.Step(j.row.Condition())
				if j.err != nil {
					continue
				}
				s, err := j.once(ctx)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					j.err = fmt.Errorf("%w: %s: %w", ErrFailed, j.row.Condition(), err)
					continue
				}
				j.samples = append(j.samples, s)
			}
		}
		for _, j := range jobs {
			if un := (*role.Unavailable)(nil); errors.As(j.err, &un) {
				r.rep.Skipped = append(r.rep.Skipped, report.Skip{Transport: j.row.Transport, Reason: j.row.Condition() + ": " + un.Reason, Fix: un.Fix})
				continue
			}
			if j.err != nil {
				failures = append(failures, j.err)
				r.rep.Skipped = append(r.rep.Skipped, report.Skip{Transport: cmp.Or(j.row.Transport, j.row.Workload), Reason: "failed: " + j.err.Error(), Fix: "a failure is a defect of this program or of the machine: report it with this text and `millrace doctor --json`"})
				continue
			}
			r.rep.Results = append(r.rep.Results, j.finish())
		}
	}
	return errors.Join(failures...)
}

// finish makes the row of a job: medians over its samples.
func (j *job) finish() report.Row {
	row := j.row
	n := len(j.samples)
	pick := func(f func(*sample) float64) []float64 {
		v := make([]float64, n)
		for i, s := range j.samples {
			v[i] = f(s)
		}
		return v
	}
	median := func(f func(*sample) float64) float64 { return measure.Median(pick(f)) }
	last := j.samples[n-1]
	if last.device != "" {
		row.Device, row.Label, row.Reason = last.device, last.label, last.reason
	}
	row.Messages = int64(median(func(s *sample) float64 { return float64(s.result.Messages) }))
	row.Seconds = median(func(s *sample) float64 { return s.result.Elapsed.Seconds() })
	row.MessagesPerSecond = median(func(s *sample) float64 { return float64(s.result.Messages) / s.result.Elapsed.Seconds() })
	if row.MessageBytes == 0 {
		row.MessageBytes = median(func(s *sample) float64 { return float64(s.result.Bytes) / float64(max(1, s.result.Messages)) })
	}
	row.BytesPerSecond = median(func(s *sample) float64 { return float64(s.result.Bytes) / s.result.Elapsed.Seconds() })
	if row.Codec != "" {
		row.RecordsPerSecond, row.MessagesPerSecond = row.MessagesPerSecond, 0
		row.OverheadBytesPerRecord = median(func(s *sample) float64 { return s.result.OverheadBytes })
	}
	var rts, sendRTs []*measure.Quantiles
	for _, s := range j.samples {
		rts, sendRTs = append(rts, s.result.RT), append(sendRTs, s.sendRT)
		if row.Codec == "" {
			row.Lost = addCount(row.Lost, s.result.Lost)
			row.Duplicated = addCount(row.Duplicated, s.result.Duplicated)
		}
		if ok := s.result.Sustained; ok != nil && (row.Sustained == nil || !*ok) {
			row.Sustained = ok
		}
	}
	row.RTMicros, row.SendRTMicros = measure.MedianQuantiles(rts), measure.MedianQuantiles(sendRTs)
	row.CPUMicrosPerMessage = medianMap(j.samples, func(s *sample) map[string]float64 { return s.cpuPerMessage })
	row.BusyShare = medianMap(j.samples, func(s *sample) map[string]float64 { return s.busyShare })
	if n > 1 && j.primary != nil {
		var v []float64
		for _, s := range j.samples {
			one := &job{row: j.row, samples: []*sample{s}}
			r := one.finish()
			v = append(v, j.primary(&r))
		}
		spread := measure.Spread(v)
		row.Spread = &spread
	}
	return row
}

// addCount adds lost or duplicated messages up over repetitions: none may hide
// in a median.
func addCount(sum, n *int64) *int64 {
	if n == nil {
		return sum
	}
	v := *n
	if sum != nil {
		v += *sum
	}
	return &v
}

func medianMap(samples []*sample, of func(*sample) map[string]float64) map[string]float64 {
	values := map[string][]float64{}
	for _, s := range samples {
		for k, v := range of(s) {
			values[k] = append(values[k], v)
		}
	}
	if len(values) == 0 {
		return nil
	}
	out := map[string]float64{}
	for k, v := range values {
		out[k] = measure.Median(v)
	}
	return out
}

func rtP50(r *report.Row) float64 { return r.RTMicros.P50 }

// jobs makes the jobs of a workload.
func (r *runner) jobs(workload string) []*job {
	switch workload {
	case "rtt":
		return r.rttJobs()
	case "produce":
		return r.produceJobs()
	case "stream":
		return r.streamJobs()
	case "matched":
		return r.matchedJobs()
	case "throughput":
		return r.throughputJobs()
	case "consume":
		return r.consumeJobs()
	case "serialize":
		return r.serializeJobs()
	}
	return nil
}

// idleOr is the idle policy that was asked for, else otherwise.
func (r *runner) idleOr(otherwise netpoll.IdlePolicy) string {
	return cmp.Or(r.o.Idle, otherwise.Name)
}

// placement says where the parts run.
func placement(parts ...part) map[string]string {
	m := map[string]string{}
	for _, p := range parts {
		m[p.name] = p.place.String()
	}
	return m
}
