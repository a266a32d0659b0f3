package verbs

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wantDevice names the device that tests must find: without it they skip where
// there is none.
const wantDevice = "MILLRACE_RDMA_DEVICE"

func TestWithoutDeviceSaysWhy(t *testing.T) {
	dev, err := Open(Options{})
	if err == nil {
		_ = dev.Close()
		t.Skip("this machine has an RDMA device")
	}
	if os.Getenv(wantDevice) != "" {
		t.Skip("about machines without a device")
	}
	var e *Error
	if !errors.As(err, &e) || e.Fix == "" {
		t.Errorf("%v has no fix", err)
	}
	if perr := Probe(Choice{}); perr == nil || perr.Error() != err.Error() {
		t.Errorf("Probe says %v, Open %v", perr, err)
	}
	if ports, _ := List(); len(ports) > 0 {
		t.Skipf("a device is there and cannot be opened: %v", err)
	}
	if !errors.Is(err, rdma.ErrNotSupported) {
		t.Errorf("%v is not ErrNotSupported", err)
	}
	t.Log(err)
	if !Available {
		if err != ErrNotBuilt {
			t.Errorf("got %v", err)
		}
		if _, err := NewFabric(Options{}); err != ErrNotBuilt {
			t.Errorf("NewFabric: %v", err)
		}
	}
}

// Device memory that ibv_fork_init marked is absent in a child of fork(2). A child
// of a Go program must not miss it, whether it shares its parent's memory until it
// execs or not.
func TestChildrenCopeWithMemoryMarkedForForks(t *testing.T) {
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	mem := arena.Bytes()
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		t.Fatal(err)
	}
	mem[0], mem[len(mem)-1] = 1, 2
	runChildren(t)
	if mem[0] != 1 || mem[len(mem)-1] != 2 {
		t.Error("the memory changed")
	}
}

// runChildren execs a child that shares memory until then, and one that does not.
func runChildren(t *testing.T) {
	t.Helper()
	if err := exec.Command("/bin/true").Run(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER} // a real fork: syscall.forkAndExecInChild
	if err := cmd.Run(); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		t.Fatal(err)
	}
}
