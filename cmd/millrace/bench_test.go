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

// tcpBench is a benchmark of a few moments: three rows. Its repetitions are what makes
// rows comparable.
func tcpBench(t *testing.T, flags ...string) *exec.Cmd {
	return command(t, append([]string{"bench", "--workload", "rtt", "--transports", "tcp", "--idle", "balanced", "--duration", "10ms"}, flags...)...)
}

// With --json - standard output is JSON alone; a page, a difference and a judgement come
// out of the same results: a row that is worse than a baseline by more than the spreads
// ends with status 4.
func TestBenchOutputs(t *testing.T) {
	dir := t.TempDir()
	page, file := filepath.Join(dir, "page.html"), filepath.Join(dir, "a.json")
	stdout, stderr, code := status(t, tcpBench(t, "--json", "-", "--html", page))
	if code != 0 {
		t.Fatalf("status %d: %s", code, stderr)
	}
	var rep struct{ Results []map[string]any }
	if err := json.Unmarshal([]byte(stdout), &rep); err != nil || len(rep.Results) == 0 {
		t.Fatalf("%v: %s", err, stdout)
	}
	if !strings.Contains(stderr, "messages/s") || !strings.Contains(stderr, "[1/") {
		t.Errorf("no table or no progress on standard error:\n%s", stderr)
	}
	html, err := os.ReadFile(page)
	if err != nil || !bytes.Contains(html, []byte("</html>")) || bytes.Contains(html, []byte("ZgotmplZ")) {
		t.Errorf("page: %v\n%s", err, html)
	}
	// baseline is the same report with other round trips.
	baseline := func(p50 string) {
		t.Helper()
		text := regexp.MustCompile(`"p50": [0-9.]+`).ReplaceAllString(stdout, `"p50": `+p50)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	baseline("1000000000") // a quarter of an hour: whatever comes is better
	out, errs, code := status(t, command(t, "bench", "diff", file, file))
	if code != 0 || !strings.Contains(out, "+0.0 %") {
		t.Errorf("diff: status %d\n%s%s", code, out, errs)
	}
	if _, errs, code = status(t, command(t, "bench", "diff", file, page)); code != exitFailed || !strings.Contains(errs, "not a report") {
		t.Errorf("diff with something else: status %d\n%s", code, errs)
	}
	out, errs, code = status(t, tcpBench(t, "--quick", "--baseline", file))
	if code != 0 || !strings.Contains(out, "against "+file) || !strings.Contains(out, "messages/s") {
		t.Errorf("baseline: status %d\n%s%s", code, out, errs)
	}
	baseline("0.0001") // a hundred thousandth of any real round trip
	out, errs, code = status(t, tcpBench(t, "--baseline", file))
	if code != exitWorse || !strings.Contains(out, "WORSE") || !strings.Contains(errs, "became worse") {
		t.Errorf("status %d, want %d\n%s%s", code, exitWorse, out, errs)
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
