// Package timerslack lets a process start with a timer slack that suits a server.
//
// While any goroutine runs, the Go runtime's monitor thread sleeps 20 µs at a time to see
// what blocks in the kernel. In a process that wakes up, sends and sleeps again, those
// sleeps cost as much as its work. A thread's timer slack is how late the kernel may end its
// sleeps, so that it can end several together; the monitor inherits that of the thread
// that starts the runtime, hence it must be set before.
package timerslack

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Server is the slack of servers: their event loops ask for punctuality when it
// matters, and where a thread blocks in the kernel the monitor still takes
// its place in the scheduler away a thousand times a second.
const Server = time.Millisecond

// Current is the slack of the calling thread.
func Current() (time.Duration, error) {
	n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0, fmt.Errorf("prctl(PR_GET_TIMERSLACK): %w", err)
	}
	return time.Duration(n), nil
}

// StartWith starts this program again in the same process, with the same arguments and a
// slack of at least d, unless it has that already. It returns if so, or with an error where
// that is impossible; the program then goes on as it is. Call it first of all.
func StartWith(d time.Duration) error {
	runtime.LockOSThread() // execve makes the calling thread's slack the process's
	defer runtime.UnlockOSThread()
	before, err := Current()
	if err != nil || before >= d {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_TIMERSLACK): %w", err)
	}
	// Threads of real-time policies have none, whatever they ask for; without this look
	// such a process would start itself for ever.
	if now, err := Current(); err != nil || now < d {
		return err
	}
	self, err := os.Executable()
	if err == nil {
		err = unix.Exec(self, os.Args, os.Environ())
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0)
	return fmt.Errorf("starting with a timer slack of %v: %w", d, err)
}
