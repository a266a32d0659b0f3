//go:build soak

package scripts

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	files, processes := g.left()
	if len(files) > 0 {
		g.t.Errorf("files are left: %q", files)
	}
	if len(processes) > 0 {
		g.t.Errorf("processes are left: %q", processes)
	}
	return g.cmd.ProcessState.ExitCode()
}

// left is what the run has left behind so far.
func (g *guest) left() (files, processes []string) {
	run := fmt.Sprintf("/runs/%d.", g.cmd.Process.Pid)
	files, _ = filepath.Glob("../../.cache/guest" + run + "*")
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lines {
		if b, _ := os.ReadFile(f); bytes.Contains(b, []byte(run)) {
			processes = append(processes, string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return files, processes
}

// running waits until all processes of the run are there: the guest, two that pass its
// outputs on, one that keeps the time.
func (g *guest) running() {
	g.t.Helper()
	pid := g.cmd.Process.Pid
	var names []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		names = nil
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for _, child := range strings.Fields(string(children)) {
			name, _ := os.ReadFile("/proc/" + child + "/comm")
			names = append(names, strings.TrimSpace(string(name)))
		}
		slices.Sort(names)
		if slices.Equal(names, []string{"qemu-system-x86", "sleep", "tail", "tail"}) {
			return
		}
	}
	g.t.Fatalf("the run's processes are %q", names)
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
	for sig, want := range map[syscall.Signal]int{syscall.SIGHUP: 129, syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		t.Run(sig.String(), func(t *testing.T) {
			g := startGuest(t, "--", "sleep", "600")
			g.running()
			if err := g.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if status := g.wait(); status != want {
				t.Errorf("status %d, errors %q", status, g.err.String())
			}
		})
	}
	t.Run("killed", func(t *testing.T) {
		g := startGuest(t, "--", "sleep", "600")
		g.running()
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			_, processes := g.left()
			if len(processes) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("processes are left: %q", processes)
			}
		}
		if status := startGuest(t, "--", "true").wait(); status != 0 {
			t.Errorf("the next run: status %d", status)
		}
		if files, _ := g.left(); len(files) > 0 {
			t.Errorf("files are left after the next run: %q", files)
		}
	})
	t.Run("no kernel", func(t *testing.T) {
		g := startGuest(t, "--memory", "16", "--", "true")
		if status := g.wait(); status != 125 || g.err.Len() == 0 {
			t.Errorf("status %d, errors %q", status, g.err.String())
		}
	})
}

// A guest that is fetched, made and run installs nothing: packages, their lists, kernels
// and modules of this machine are what they were.
func TestGuestInstallsNothing(t *testing.T) {
	t.Setenv("MILLRACE_GUEST_CACHE", t.TempDir())
	machine := func() string {
		var all strings.Builder
		for _, dir := range []string{"/boot", "/lib/modules", "/usr/lib/modules", "/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/etc/apt", "/etc/modprobe.d", "/etc/modules-load.d"} {
			_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
				if err != nil {
					return nil // there is none, or not for this user
				}
				if i, err := e.Info(); err == nil && !e.IsDir() {
					fmt.Fprintln(&all, path, i.Size(), i.ModTime())
				}
				return nil
			})
		}
		return all.String()
	}
	before := machine()
	if out, err := exec.Command("./guest.sh", "--prepare").CombinedOutput(); err != nil {
		t.Skipf("no guest here: %s", out)
	}
	out, err := exec.Command("./guest.sh", "--", "sh", "-c", "mkdir -p /boot; echo >/boot/x; echo >/usr/share/x; uname -s").CombinedOutput()
	if err != nil || string(out) != "Linux\n" {
		t.Fatalf("%v: %s", err, out)
	}
	if after := machine(); after != before {
		t.Errorf("the machine has changed. Before:\n%s\nafter:\n%s", before, after)
	}
}
