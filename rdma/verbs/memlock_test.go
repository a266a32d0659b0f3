package verbs_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma/verbs"
)

// memlockChild makes the test binary the child of TestMemlockLimit.
const memlockChild = "MILLRACE_VERBS_MEMLOCK_CHILD"

// A process that may lock a mebibyte and registers four learns which limit it met
// and how to raise it.
func TestMemlockLimit(t *testing.T) {
	if os.Getenv(memlockChild) != "" {
		registerBeyondLimit(t)
		return
	}
	needDevice(t)
	// By this name also a user can start it who has no right to its folder.
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestMemlockLimit$", "-test.v")
	cmd.Env = append(os.Environ(), memlockChild+"=1")
	cmd.Dir = "/"
	if os.Getuid() == 0 { // root has CAP_IPC_LOCK, which lifts the limit
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func registerBeyondLimit(t *testing.T) {
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	dev := openDevice(t, verbs.Choice{})
	defer dev.Close()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 4 << 20, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	pd, err := dev.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	_, err = pd.RegisterMR(arena, 0)
	var e *verbs.Error
	if !errors.As(err, &e) || !errors.Is(err, unix.ENOMEM) || !strings.Contains(e.Error(), "RLIMIT_MEMLOCK is 1024 KiB") || !strings.Contains(e.Fix, "ulimit -l") {
		t.Fatalf("the limit is not explained: %v", err)
	}
	t.Log(err)
}
