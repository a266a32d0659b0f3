package role

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Place is where a child runs.
type Place struct {
	CPUs []int // nil: wherever the parent may
	// Netns is the name of a network namespace below /run/netns; empty: the
	// parent's.
	Netns string
	// TimerSlackNanos is the kernel's freedom to delay the child's timers; 0 keeps
	// the parent's. A spinning process wants a large one: it spares it the Go
	// runtime's monitor thread, which otherwise is its p99.9.
	TimerSlackNanos int
}

func (p Place) String() string {
	var s []string
	if len(p.CPUs) > 0 {
		cpus := make([]string, len(p.CPUs))
		for i, c := range p.CPUs {
			cpus[i] = strconv.Itoa(c)
		}
		s = append(s, "cpu "+strings.Join(cpus, ","))
	}
	if p.Netns != "" {
		s = append(s, "netns "+p.Netns)
	}
	if len(s) == 0 {
		return "anywhere"
	}
	return strings.Join(s, ", ")
}

// AllowedCPUs lists the CPUs that this process may run on.
func AllowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var cpus []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

// startAt starts cmd in place: a child inherits affinity, network namespace and
// timer slack of the thread that forks it.
func startAt(cmd *exec.Cmd, p Place) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, // a terminal's Ctrl-C reaches the parent alone, which ends the children in order
		// The signal comes when the forking thread ends: see the end of this function.
		Pdeathsig: syscall.SIGKILL,
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		restore, err := move(p)
		if err == nil {
			err = cmd.Start()
		}
		if rerr := restore(); rerr != nil && err == nil {
			err = rerr
		}
		// The thread goes back to the runtime only if it is as it was. One that
		// could not be restored ends with this goroutine, and its child with it.
		if err == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// move changes the calling, locked thread; restore, never nil, changes it back.
func move(p Place) (restore func() error, err error) {
	var undo []func() error
	restore = func() error {
		for i := len(undo) - 1; i >= 0; i-- {
			if err := undo[i](); err != nil {
				return err
			}
		}
		return nil
	}
	if p.Netns != "" {
		back, err := enterNetns(p.Netns)
		if err != nil {
			return restore, err
		}
		undo = append(undo, back)
	}
	if len(p.CPUs) > 0 {
		var old, set unix.CPUSet
		if err := unix.SchedGetaffinity(0, &old); err != nil {
			return restore, fmt.Errorf("sched_getaffinity: %w", err)
		}
		for _, c := range p.CPUs {
			set.Set(c)
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return restore, fmt.Errorf("placing a process on CPU %v: %w", p.CPUs, err)
		}
		undo = append(undo, func() error { return unix.SchedSetaffinity(0, &old) })
	}
	if p.TimerSlackNanos > 0 {
		old, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		if err != nil {
			return restore, fmt.Errorf("prctl(PR_GET_TIMERSLACK): %w", err)
		}
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(p.TimerSlackNanos), 0, 0, 0); err != nil {
			return restore, fmt.Errorf("prctl(PR_SET_TIMERSLACK): %w", err)
		}
		undo = append(undo, func() error { return unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(old), 0, 0, 0) })
	}
	return restore, nil
}

// netnsDir is where iproute2 keeps named network namespaces.
const netnsDir = "/run/netns"

func enterNetns(name string) (back func() error, err error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	target, err := os.Open(filepath.Join(netnsDir, name))
	if err != nil {
		_ = own.Close()
		return nil, err
	}
	defer target.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		_ = own.Close()
		return nil, fmt.Errorf("entering network namespace %s: %w", name, err)
	}
	return func() error {
		defer own.Close()
		return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
	}, nil
}
