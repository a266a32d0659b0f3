package verbs_test

import (
	"errors"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/verbs"
)

// disturb calls fn again and again until the end of the test.
func disturb(t *testing.T, fn func()) {
	var running sync.WaitGroup
	stop := make(chan struct{})
	running.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				fn()
			}
		}
	})
	t.Cleanup(func() { close(stop); running.Wait() })
}

// everyVerb makes and ends all kinds of objects, and talks over a pair of queue pairs.
func everyVerb(t *testing.T) {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 1 << 20, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	dev := openDevice(t, verbs.Choice{})
	pd, err := dev.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	mr, err := pd.RegisterMR(arena, allAccess)
	if err != nil {
		t.Fatal(err)
	}
	cq, err := dev.CreateCQ(64)
	if err != nil {
		t.Fatal(err)
	}
	srq, err := pd.CreateSRQ(rdma.SRQConfig{WRs: 16})
	if err != nil {
		t.Fatal(err)
	}
	qp, err := pd.CreateQP(rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: 16, SRQ: srq})
	if err != nil {
		t.Fatal(err)
	}
	a := dev.Attr()
	if err := qp.Connect(rdma.Remote{Addr: a.GID, UDPPort: a.UDPPort, QPN: qp.Num(), StartPSN: qp.StartPSN(), PathMTU: a.PathMTU}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := cq.Arm(); err != nil {
			t.Fatal(err)
		}
		dev.Progress(0)
	}
	for _, c := range []func() error{qp.Close, srq.Close, cq.Close, mr.Close, pd.Close, dev.Close, arena.Close} {
		if err := c(); err != nil {
			t.Fatal(err)
		}
	}
}

// Signals, as those by which Go's scheduler preempts, may interrupt any call: none
// fails for it, and no message suffers.
func TestSignalsInterruptNothing(t *testing.T) {
	needDevice(t)
	sent := 0
	disturb(t, func() {
		// To the process: the kernel picks a thread, and Go's runtime spreads what it gets.
		if err := unix.Kill(unix.Getpid(), unix.SIGURG); err != nil {
			t.Error(err)
		}
		sent++
		time.Sleep(50 * time.Microsecond)
	})
	for range 5 {
		everyVerb(t)
	}
	loopsTalk(t)
	t.Cleanup(func() { t.Logf("%d signals", sent) })
}

// Children that are forked meanwhile, with and without their parent's memory, take
// nothing away from a device that writes into it.
func TestForksWhileDeviceWrites(t *testing.T) {
	needDevice(t)
	disturb(t, func() {
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Error(err)
		}
		cmd := exec.Command("/bin/true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER} // a real fork: syscall.forkAndExecInChild
		if err := cmd.Run(); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	everyVerb(t)
	loopsTalk(t)
}

func loopsTalk(t *testing.T) {
	t.Run("loops", func(t *testing.T) {
		server := startLoop(t, verbsLoop(t, verbs.Choice{}), netpoll.Balanced())
		client := startLoop(t, verbsLoop(t, verbs.Choice{}), netpoll.Balanced())
		roundTrips(t, client, listen(t, server, "rdma://"+deviceAddress(t), echo{}))
	})
}
