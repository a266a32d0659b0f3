package timerslack

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

const asProgram = "MILLRACE_TEST_TIMERSLACK"

// As a program it starts with a slack, and tells that of its threads and its arguments.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "" {
		os.Exit(m.Run())
	}
	if err := StartWith(Server); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	d, err := Current()
	fmt.Println(os.Getpid(), d, err, os.Args[1:])
	os.Exit(0)
}

func TestStartWith(t *testing.T) {
	cmd := exec.Command(os.Args[0], "one", "two words")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprint(cmd.Process.Pid, " ", Server, " <nil> [one two words]"); err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}

// A process that has such a slack is left alone.
func TestStartWithEnough(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	d, err := Current()
	if err != nil || d <= 0 {
		t.Skip("this thread has no timer slack: ", d, err)
	}
	if err := StartWith(d); err != nil {
		t.Error(err)
	}
	if now, err := Current(); err != nil || now != d || d > time.Hour {
		t.Errorf("slack %v, %v; it was %v", now, err, d)
	}
}
