//go:build soak

package scripts

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// guest is a run of guest.sh.
type guest struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, err bytes.Buffer
}

func startGuest(t *testing.T, args ...string) *guest {
	t.Helper()
	g := &guest{t: t, cmd: exec.Command("./guest.sh", args...)}
	g.cmd.Stdout, g.cmd.Stderr = &g.out, &g.err
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return g
}

// wait returns the exit status, and fails if anything of the run is left.
func (g *guest) wait() int {
	g.t.Helper()
	err := g.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.t.Fatal(err)
	}
	run := fmt.Sprintf("/runs/%d.", g.cmd.Process.Pid)
	if left, _ := filepath.Glob("../../.cache/guest" + run + "*"); len(left) > 0 {
		g.t.Errorf("files are left: %q", left)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lines {
		if b, _ := os.ReadFile(f); bytes.Contains(b, []byte(run)) {
			g.t.Errorf("a process is left: %s", bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		}
	}
	return g.cmd.ProcessState.ExitCode()
}

// What comes out of a guest: both outputs, the exit status, files, an end in time; and
// nothing stays behind, however it ends.
func TestGuest(t *testing.T) {
	if out, err := exec.Command("./guest.sh", "--prepare").CombinedOutput(); err != nil {
		t.Skipf("no guest here: %s", out)
	}
	t.Setenv("MILLRACE_TOLD", "it's told")
	t.Run("outputs", func(t *testing.T) {
		dir := t.TempDir()
		g := startGuest(t, "--out", dir, "--", "sh", "-c", `echo "$MILLRACE_TOLD"; echo bad >&2; pwd >$OUT/where; echo x >here; exit 7`)
		status := g.wait()
		if status != 7 || g.out.String() != "it's told\n" || g.err.String() != "bad\n" {
			t.Errorf("status %d, output %q, errors %q", status, g.out.String(), g.err.String())
		}
		here, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "where")); err != nil || strings.TrimSpace(string(got)) != here {
			t.Errorf("it ran in %q, %v", got, err)
		}
		if _, err := os.Stat("here"); err == nil {
			t.Error("it wrote to this machine's files")
		}
	})
	t.Run("time limit", func(t *testing.T) {
		g := startGuest(t, "--timeout", "5", "--", "sleep", "600")
		if status := g.wait(); status != 124 || !strings.Contains(g.err.String(), "--timeout") {
			t.Errorf("status %d, errors %q", status, g.err.String())
		}
	})
	t.Run("a signal", func(t *testing.T) {
		g := startGuest(t, "--", "sleep", "600")
		time.Sleep(2 * time.Second)
		if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := g.wait(); status != 143 {
			t.Errorf("status %d, errors %q", status, g.err.String())
		}
	})
	t.Run("no kernel", func(t *testing.T) {
		g := startGuest(t, "--memory", "16", "--", "true")
		if status := g.wait(); status != 125 || g.err.Len() == 0 {
			t.Errorf("status %d, errors %q", status, g.err.String())
		}
	})
}
