// Package doctor finds out what a machine offers to millrace, what is missing, and
// how to mend it.
//
// A check never fails: what cannot be found out is a finding too. Each runs with a
// time limit, because a file of sysfs may ask a device that does not answer.
package doctor

import (
	"context"
	"fmt"
	"time"
)

// Status of a check.
type Status string

const (
	OK       Status = "ok"
	Degraded Status = "degraded" // it works, slower or for less
	Missing  Status = "missing"  // it cannot be used
)

// Check is one finding. Its names and their meaning are stable.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Wanted: millrace wants it by default, so that Missing makes the report not OK.
	Wanted bool   `json:"wanted"`
	Found  string `json:"found"`
	// Means says what follows from it.
	Means string `json:"means,omitempty"`
	// Fix is a command, or advice where no command does it.
	Fix string `json:"fix,omitempty"`
	// Automatic: --fix does it.
	Automatic bool `json:"automatic,omitempty"`

	repair *repair // what does it; nil unless Automatic
}

// Transport says whether one device of a transport can run.
type Transport struct {
	Transport string `json:"transport"`
	Device    string `json:"device"`
	Default   bool   `json:"default"`
	Runs      bool   `json:"runs"`
	Reason    string `json:"reason,omitempty"`
	Fix       string `json:"fix,omitempty"`
}

// Report is what the doctor found and did.
type Report struct {
	Version    string      `json:"version"`
	OK         bool        `json:"ok"` // all default transports run, nothing wanted is missing
	Checks     []Check     `json:"checks"`
	Transports []Transport `json:"transports"`
	Repairs    []Repair    `json:"repairs,omitempty"` // of --fix
}

const (
	// checkPatience bounds a check that reads files or asks the kernel.
	checkPatience = 3 * time.Second
	// probePatience bounds the start of a library in another process.
	probePatience = 15 * time.Second
)

// check is one line of the table in Examine.
type check struct {
	name string
	run  func(context.Context, *Host) Check
}

// checks in the order of the report. What a function leaves open is OK.
var checks = []check{
	{"kernel", kernel},
	{"cpu features", cpuFeatures},
	{"cpus", cpus},
	{"idle cpus", idleCPUs},
	{"clock", clock},
	{"huge pages", hugePages},
	{"transparent huge pages", transparentHugePages},
	{"locked memory", lockedMemory},
	{"open files", openFiles},
	{"busy polling", busyPolling},
	{"udp buffers", udpBuffers},
	{"network devices", networkDevices},
	{"user-space rdma", userSpaceRDMA},
	{"udp mailboxes", udpMailboxes},
	{"rdma modules", rdmaModules},
	{"rdma devices", rdmaDevices},
	{"libibverbs", libibverbs},
	{"memif", memifPort},
	{"libdpdk", libdpdk},
	{"poll-mode drivers", pollModeDrivers},
	{"port capabilities", portCapabilities},
	{"iommu and vfio", vfio},
	{"network cards", networkCards},
	{"numa", numaNodes},
	{"af_xdp", afXDP},
}

// Examine looks at the machine. It changes nothing.
func Examine(ctx context.Context, h *Host) *Report {
	r := &Report{Version: h.Version}
	results := make([]<-chan Check, len(checks))
	for i, c := range checks {
		results[i] = start(ctx, h, c)
	}
	transports := startProbes(ctx, h)
	for i := range results {
		r.Checks = append(r.Checks, <-results[i])
	}
	for _, t := range transports {
		r.Transports = append(r.Transports, <-t)
	}
	r.OK = true
	for _, c := range r.Checks {
		r.OK = r.OK && !(c.Wanted && c.Status == Missing)
	}
	for _, t := range r.Transports {
		r.OK = r.OK && (t.Runs || !t.Default)
	}
	return r
}

// start runs a check on a goroutine. One that hangs is left behind: what hangs is
// a system call, which nobody can call back.
func start(ctx context.Context, h *Host, c check) <-chan Check {
	limit := checkPatience
	if h.patience != 0 {
		limit = h.patience
	}
	return bounded(ctx, limit, func(ctx context.Context) Check {
		k := c.run(ctx, h)
		k.Name = c.name
		if k.Status == "" {
			k.Status = OK
		}
		k.Automatic = k.repair != nil
		return k
	}, func(why string) Check {
		return Check{Name: c.name, Status: Degraded, Found: "cannot be told: " + why}
	})
}

// bounded calls fn and gives up after limit, or where fn panics.
func bounded[T any](ctx context.Context, limit time.Duration, fn func(context.Context) T, failed func(why string) T) <-chan T {
	done := make(chan T, 1)
	out := make(chan T, 1)
	ctx, cancel := context.WithTimeout(ctx, limit)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- failed(fmt.Sprint("a mistake in this check: ", p))
			}
		}()
		done <- fn(ctx)
	}()
	go func() {
		defer cancel()
		select {
		case v := <-done:
			out <- v
		case <-ctx.Done():
			// Both may be ready.
			select {
			case v := <-done:
				out <- v
			default:
				out <- failed(fmt.Sprintf("no answer within %v", limit))
			}
		}
	}()
	return out
}
