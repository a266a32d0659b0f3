//go:build dpdk && cgo

package eal

// #cgo pkg-config: libdpdk
// #include <stdlib.h>
// #include <rte_version.h>
// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk/internal/rundir"
)

// Available says whether this binary has libdpdk in it.
const Available = true

// eal is the process's one environment abstraction layer. mu also serializes all
// control calls into libdpdk.
var eal struct {
	mu   sync.Mutex
	done bool
	args []string
	err  error
	open []*port // in the order of their opening
	// closed is what the ports did that are closed.
	closed Stats
}

// Init starts libdpdk in this process, once. args go to rte_eal_init (--allow
// 0000:01:00.0, --vdev …) after defaults for what they leave open: one lcore that
// is not pinned, huge pages where there are free ones and ordinary memory
// elsewhere, no telemetry, no PCI scan unless a device is allowed, no files left
// behind. Later calls with the same arguments, or none, return the first result.
func Init(args ...string) error {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	return initLocked(args)
}

func initLocked(args []string) error {
	if eal.done {
		if len(args) > 0 && !slices.Equal(args, eal.args) {
			return fmt.Errorf("dpdk/eal: libdpdk runs already with arguments %q and cannot take %q: start it once per process with all arguments", eal.args, args)
		}
		return eal.err
	}
	full, private := initArgs(args, allowedCPUs(), freeHugepages())
	// libdpdk makes a run-time directory (/var/run/dpdk/rte) even where it will
	// put nothing into it.
	var runtimeDir *C.char
	if private {
		dir, err := rundir.Make("eal")
		if err != nil {
			return fmt.Errorf("dpdk/eal: %w", err)
		}
		defer dir.Remove()
		runtimeDir = C.CString(dir.Path)
		defer C.free(unsafe.Pointer(runtimeDir))
	}
	// rte_eal_init sets the affinity of its thread. A goroutine that ends locked
	// takes its thread with it.
	ret := make(chan C.int)
	go func() {
		runtime.LockOSThread()
		argv := make([]*C.char, len(full)+1)
		for i, a := range full {
			argv[i] = C.CString(a) // libdpdk keeps pointers into them
		}
		mem := (*[1 << 16]*C.char)(C.calloc(C.size_t(len(argv)), C.size_t(unsafe.Sizeof(argv[0]))))
		copy(mem[:len(argv)], argv)
		ret <- C.mr_eal_init(C.int(len(full)), &mem[0], runtimeDir)
	}()
	eal.done, eal.args = true, slices.Clone(args)
	if rc := <-ret; rc != 0 {
		eal.err = &Error{Op: "rte_eal_init " + strings.Join(full[1:], " "), Err: cerror(rc), Log: Log()}
	}
	return eal.err
}

// Version of libdpdk that this binary was built against, for instance 22.11.11.
func Version() string {
	return fmt.Sprintf("%d.%02d.%d", C.RTE_VER_YEAR, C.RTE_VER_MONTH, C.RTE_VER_MINOR)
}

// Log returns what libdpdk logged since the last call, at most its newest 16 KiB,
// in one line.
func Log() string {
	var buf [16384]byte
	n := C.mr_log((*C.char)(unsafe.Pointer(&buf[0])), C.uint32_t(len(buf)))
	return oneLine(string(buf[:n]))
}

// HeapBytes is how much is allocated from libdpdk's heaps: ports, their pools and
// what libdpdk needs itself. 0 before Init. Any goroutine.
func HeapBytes() uint64 {
	eal.mu.Lock()
	defer eal.mu.Unlock()
	if !eal.done || eal.err != nil {
		return 0
	}
	return uint64(C.mr_heap_bytes())
}

// cerror turns a negative return value of libdpdk into an error.
func cerror(rc C.int) error {
	if rc == -1 {
		return errors.New("it failed") // most of libdpdk's -1 are not EPERM
	}
	if rc > -4096 && rc < 0 {
		if errno := unix.Errno(-rc); unix.ErrnoName(errno) != "" {
			return errno
		}
	}
	return errors.New(C.GoString(C.mr_strerror(-rc)))
}

func allowedCPUs() []int {
	var set unix.CPUSet
	var cpus []int
	if unix.SchedGetaffinity(os.Getpid(), &set) == nil {
		for i := 0; i < len(set)*64; i++ {
			if set.IsSet(i) {
				cpus = append(cpus, i)
			}
		}
	}
	if len(cpus) == 0 {
		return []int{0}
	}
	return cpus
}

// freeHugepages says whether a pool of huge pages has at least 64 MiB to give,
// enough for a few ports.
func freeHugepages() bool {
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, d := range dirs {
		var kB, free int
		if _, err := fmt.Sscanf(filepath.Base(d), "hugepages-%dkB", &kB); err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(d, "free_hugepages"))
		if err != nil {
			continue
		}
		if _, err := fmt.Sscan(string(text), &free); err == nil && kB*free >= 64<<10 {
			return true
		}
	}
	return false
}
