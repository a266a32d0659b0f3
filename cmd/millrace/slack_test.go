package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/millrace/millrace/internal/timerslack"
)

// A server's threads have the slack that keeps the runtime's monitor quiet, and the
// process is the one that was started.
func TestServersStartWithTimerSlack(t *testing.T) {
	cmd := command(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready ") {
		t.Fatalf("it said %q, %v", line, err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("%v, %d threads", err, len(tasks))
	}
	slack := 0
	for _, task := range tasks {
		text, err := os.ReadFile("/proc/" + filepath.Base(task) + "/timerslack_ns")
		if err != nil {
			t.Skip("the slack of other processes cannot be read here: ", err)
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			slack = max(slack, n)
		}
	}
	if slack != int(timerslack.Server) {
		t.Errorf("slack %d ns, want %d", slack, timerslack.Server)
	}
}
