package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// status runs the program and returns what it wrote and its exit status.
func status(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	rerr := cmd.Run()
	var exit *exec.ExitError
	if rerr != nil && !errors.As(rerr, &exit) {
		t.Fatal(rerr)
	}
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

// Wrong flags are told in one line, before anything is measured.
func TestBenchUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--transports infiniband", "use tcp, rdma, dpdk"},
		{"--transports=", "names none"},
		{"--workload all,rtt", "unknown workload"},
		{"--topology lan", "use local or netns"},
		{"--size 0", "--size must be at least 1"},
		{"--rate 0", "--rate must be above 0"},
		{"--rate NaN", "--rate must be above 0"},
		{"--connections 0", "--connections must be at least 1"},
		{"--duration 0s", "--duration must be above 0"},
		{"--idle never", "never"},
		{"--input /nowhere", "/nowhere"},
		{"--baseline /nowhere", "--baseline: open /nowhere"},
		{"--sizes 3", "--help lists the flags"},
		{"rtt", "unexpected argument"},
		{"diff one.json", "takes two files"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			_, stderr, code := status(t, command(t, append([]string{"bench"}, strings.Fields(tt.args)...)...))
			if code != exitUsage || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("status %d, want %d and one line with %q:\n%s", code, exitUsage, tt.want, stderr)
			}
		})
	}
}

// With --json - standard output is JSON alone; a page and a difference come out of
// the same results.
func TestBenchOutputs(t *testing.T) {
	dir := t.TempDir()
	page, file := filepath.Join(dir, "page.html"), filepath.Join(dir, "a.json")
	stdout, stderr, code := status(t, command(t, "bench", "--quick", "--workload", "serialize", "--duration", "20ms", "--json", "-", "--html", page))
	if code != 0 {
		t.Fatalf("status %d: %s", code, stderr)
	}
	var rep struct{ Results []map[string]any }
	if err := json.Unmarshal([]byte(stdout), &rep); err != nil || len(rep.Results) == 0 {
		t.Fatalf("%v: %s", err, stdout)
	}
	if !strings.Contains(stderr, "records/s") || !strings.Contains(stderr, "[1/") {
		t.Errorf("no table or no progress on standard error:\n%s", stderr)
	}
	html, err := os.ReadFile(page)
	if err != nil || !bytes.Contains(html, []byte("</html>")) || bytes.Contains(html, []byte("ZgotmplZ")) {
		t.Errorf("page: %v\n%s", err, html)
	}
	if err := os.WriteFile(file, []byte(stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code = status(t, command(t, "bench", "diff", file, file))
	if code != 0 || !strings.Contains(stdout, "+0.0 %") {
		t.Errorf("diff: status %d\n%s%s", code, stdout, stderr)
	}
	stdout, stderr, code = status(t, command(t, "bench", "--quick", "--workload", "serialize", "--duration", "20ms", "--baseline", file))
	if code != 0 || !strings.Contains(stdout, "against "+file) || !strings.Contains(stdout, "records/s") {
		t.Errorf("baseline: status %d\n%s%s", code, stdout, stderr)
	}
	if _, stderr, code = status(t, command(t, "bench", "diff", file, page)); code != exitFailed || !strings.Contains(stderr, "not a report") {
		t.Errorf("diff with something else: status %d\n%s", code, stderr)
	}
}

// A row that is worse than a baseline by more than the spreads ends with status 4.
func TestBenchWorse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.json")
	args := []string{"bench", "--workload", "rtt", "--transports", "tcp", "--idle", "balanced", "--duration", "20ms"}
	if _, stderr, code := status(t, command(t, append(args, "--json", file)...)); code != 0 {
		t.Fatalf("status %d: %s", code, stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A baseline of a hundred thousandth of any real round trip.
	text = regexp.MustCompile(`"p50": [0-9.]+`).ReplaceAll(text, []byte(`"p50": 0.0001`))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := status(t, command(t, append(args, "--baseline", file)...))
	if code != exitWorse || !strings.Contains(stdout, "WORSE") || !strings.Contains(stderr, "became worse") {
		t.Errorf("status %d, want %d\n%s%s", code, exitWorse, stdout, stderr)
	}
}

// A topology that is impossible here is skipped with its reason, status 3.
func TestBenchSkips(t *testing.T) {
	cmd := command(t, "bench", "--quick", "--workload", "rtt", "--transports", "tcp", "--topology", "netns", "--json", "-")
	cmd.Env = append(cmd.Env, "PATH=")
	stdout, stderr, code := status(t, cmd)
	var rep struct {
		Skipped []struct{ Reason, Fix string }
	}
	if err := json.Unmarshal([]byte(stdout), &rep); err != nil || code != exitSkipped || len(rep.Skipped) != 1 || rep.Skipped[0].Reason == "" || rep.Skipped[0].Fix == "" {
		t.Errorf("%v, status %d, want %d: %s%s", err, code, exitSkipped, stdout, stderr)
	}
}
