package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/role"
)

const (
	// readyTimeout bounds starting a process and setting up its devices and
	// connections.
	readyTimeout = 20 * time.Second
	// overrun is how much longer than planned a measurement may take.
	overrun = 15 * time.Second
	// spinSlackNanos is the timer slack of processes that spin.
	spinSlackNanos = 5_000_000
)

// part is one process of a measurement.
type part struct {
	name  string // client, proxy, broker
	spec  role.Spec
	place role.Place
	// stores: it gets an empty directory for each measurement.
	stores bool
}

// sample is what one measurement found.
type sample struct {
	result        role.Result
	device, label string
	reason        string             // why it runs on that device, where that was not what was asked for
	cpuPerMessage map[string]float64 // µs: machine and parts
	busyShare     map[string]float64
	sendRT        *measure.Quantiles
}

// askedFor is a netpoll.Transport's reason where there was no fall-back.
const askedFor = "asked for"

// runsOn takes over what a part says that its connection runs on.
func (s *sample) runsOn(e *role.Event) {
	if e.Device == "" {
		return
	}
	s.device, s.label, s.reason = e.Device, e.Label, e.Reason
	if s.reason == askedFor {
		s.reason = ""
	}
}

// errTooShort is wrapped where a measurement ended before its first message.
var errTooShort = errors.New("not one message was answered in")

// longest bounds how far a measurement is prolonged that had too little time.
const longest = 8 * time.Second

// measureRow is measureOnce, with twice the time as often as that was too little.
func measureRow(ctx context.Context, l *role.Launcher, servers []part, client part, verify bool) (*sample, error) {
	for {
		s, err := measureOnce(ctx, l, servers, client, verify)
		if !errors.Is(err, errTooShort) || client.spec.Duration >= longest {
			return s, err
		}
		client.spec.Duration *= 2
	}
}

// measureOnce starts servers, each of which gets the address of the one before
// as its upstream, then the client, and measures.
func measureOnce(ctx context.Context, l *role.Launcher, servers []part, client part, verify bool) (*sample, error) {
	var procs []*role.Process
	var dir string
	defer func() {
		for i := len(procs) - 1; i >= 0; i-- {
			procs[i].Kill()
		}
		if dir != "" {
			_ = os.RemoveAll(dir) // what stays goes with the run's directory
		}
	}()
	found := &sample{busyShare: map[string]float64{}}
	address := ""
	for _, s := range servers {
		s.spec.Upstream = address
		if s.stores {
			var err error
			if dir, err = os.MkdirTemp(l.TempDir, "data-"); err != nil {
				return nil, err
			}
			s.spec.DataDir = dir
		}
		p, err := l.Start(s.name, s.spec, s.place)
		if err != nil {
			return nil, err
		}
		procs = append(procs, p)
		e, err := p.Await(ctx, readyTimeout, role.Ready)
		if err != nil {
			return nil, err
		}
		address = e.URL
		found.runsOn(&e)
	}
	client.spec.URL = address
	cl, err := l.Start(client.name, client.spec, client.place)
	if err != nil {
		return nil, err
	}
	procs = append(procs, cl)
	ready, err := cl.Await(ctx, readyTimeout, role.Ready)
	if err != nil {
		return nil, err
	}
	found.runsOn(&ready)
	if err := cl.Tell(role.Start); err != nil {
		return nil, err
	}
	if _, err := cl.Await(ctx, client.spec.Warmup+overrun, role.Measuring); err != nil {
		return nil, err
	}
	before, err := snapshot(procs)
	if err != nil {
		return nil, err
	}
	if _, err := mark(ctx, procs[:len(servers)]); err != nil {
		return nil, err
	}
	measured, err := cl.Await(ctx, client.spec.Duration+overrun, role.Measured)
	if err != nil {
		return nil, err
	}
	after, err := snapshot(procs)
	if err != nil {
		return nil, err
	}
	stretches, err := mark(ctx, procs[:len(servers)])
	if err != nil {
		return nil, err
	}
	found.result, found.sendRT = *measured.Result, measured.Result.SendRT
	if found.result.Messages == 0 {
		return nil, fmt.Errorf("%w %v: the machine has no time for it, or --duration and --rate are too low", errTooShort, found.result.Elapsed)
	}
	found.cpuPerMessage = perMessage(before, after, &found.result)
	if b := found.result.BusyShare; b != nil {
		found.busyShare[client.name] = *b
	}
	for i, e := range stretches {
		if e.BusyShare != nil {
			found.busyShare[servers[i].name] = *e.BusyShare
		}
		if e.SendRT != nil {
			found.sendRT = e.SendRT
		}
	}
	if verify {
		if err := cl.Tell(role.Verify); err != nil {
			return nil, err
		}
		v, err := cl.Await(ctx, verifyTimeout, role.Verified)
		if err != nil {
			return nil, err
		}
		found.result.Lost, found.result.Duplicated = v.Result.Lost, v.Result.Duplicated
	}
	for i := len(procs) - 1; i >= 0; i-- {
		if _, err := procs[i].Stop(ctx); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// mark ends a stretch of every server and begins the next.
func mark(ctx context.Context, servers []*role.Process) ([]role.Event, error) {
	var stretches []role.Event
	for _, p := range servers {
		if err := p.Tell(role.Mark); err != nil {
			return nil, err
		}
		e, err := p.Await(ctx, overrun, role.Marked)
		if err != nil {
			return nil, err
		}
		stretches = append(stretches, e)
	}
	return stretches, nil
}

// verifyTimeout bounds reading everything back.
const verifyTimeout = 60 * time.Second

// cpuTimes are CPU clocks at one moment.
type cpuTimes struct {
	at      time.Time
	machine time.Duration
	parts   map[string]time.Duration
}

func snapshot(procs []*role.Process) (cpuTimes, error) {
	c := cpuTimes{at: time.Now(), parts: map[string]time.Duration{}}
	var err error
	if c.machine, err = measure.MachineCPU(); err != nil {
		return c, err
	}
	for _, p := range procs {
		d, err := p.CPU()
		if err != nil {
			return c, fmt.Errorf("%s process: %w", p.Name, err)
		}
		c.parts[p.Name] += d
	}
	return c, nil
}

// perMessage divides the CPU time between two snapshots by the messages of that
// time. The snapshots lie around the client's own window, not on its edges, so
// the message rate links the two.
func perMessage(a, b cpuTimes, r *role.Result) map[string]float64 {
	if r.Messages == 0 || r.Elapsed <= 0 {
		return nil
	}
	messages := float64(r.Messages) / r.Elapsed.Seconds() * b.at.Sub(a.at).Seconds()
	out := map[string]float64{"machine": micros(b.machine-a.machine) / messages}
	for name, d := range b.parts {
		out[name] = micros(d-a.parts[name]) / messages
	}
	return out
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
