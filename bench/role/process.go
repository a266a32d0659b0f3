package role

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/bench/measure"
)

// Launcher starts children.
type Launcher struct {
	// Command is the program and its arguments that end in Serve.
	Command []string
	// TempDir is where the children put their temporary files; empty: where the
	// caller does.
	TempDir string
	// Log takes what the children write to standard error; nil: only kept for
	// error messages.
	Log io.Writer
}

// Process is a running child. One goroutine.
type Process struct {
	Name  string // client, proxy, broker
	Place Place

	cmd    *exec.Cmd
	stdin  io.WriteCloser
	events chan Event
	exited chan struct{}
	stderr *tail
}

// maxEventBytes bounds one line of a child.
const maxEventBytes = 1 << 20

// Start starts a child and sends it its spec.
func (l *Launcher) Start(name string, spec Spec, place Place) (*Process, error) {
	cmd := exec.Command(l.Command[0], l.Command[1:]...)
	// The CPUs decide how many threads run Go code, not the caller's environment.
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GOMAXPROCS=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	if l.TempDir != "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+l.TempDir) // the last one counts
	}
	p := &Process{Name: name, Place: place, cmd: cmd, events: make(chan Event, 16), exited: make(chan struct{}), stderr: &tail{also: l.Log}}
	cmd.Stderr = p.stderr
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := startAt(cmd, place); err != nil {
		return nil, fmt.Errorf("starting the %s process (%s): %w", name, place, err)
	}
	go p.read(stdout)
	if err := p.write(spec); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

func (p *Process) read(stdout io.Reader) {
	defer close(p.exited)
	s := bufio.NewScanner(stdout)
	s.Buffer(nil, maxEventBytes)
	for s.Scan() {
		var e Event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			e = Event{Kind: Failed, Error: fmt.Sprintf("unexpected output %q", s.Text())}
		}
		p.events <- e
	}
	close(p.events)
	_, _ = io.Copy(io.Discard, stdout)
	_ = p.cmd.Wait()
}

func (p *Process) write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := p.stdin.Write(append(b, '\n')); err != nil {
		return p.fault(fmt.Errorf("it takes no commands: %w", err))
	}
	return nil
}

// Tell sends a command.
func (p *Process) Tell(c Command) error { return p.write(c) }

// Await waits for an event of that kind; others before it are an error, NotHere an
// *Unavailable.
func (p *Process) Await(ctx context.Context, timeout time.Duration, kind string) (Event, error) {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case e, ok := <-p.events:
		switch {
		case !ok:
			return e, p.fault(errors.New("it ended unexpectedly"))
		case e.Kind == Failed:
			return e, p.fault(errors.New(e.Error))
		case e.Kind == NotHere:
			return e, &Unavailable{Reason: e.Error, Fix: e.Fix}
		case e.Kind != kind:
			return e, p.fault(fmt.Errorf("it said %q where %q was due", e.Kind, kind))
		}
		return e, nil
	case <-t.C:
		return Event{}, p.fault(fmt.Errorf("no %q within %v", kind, timeout))
	case <-ctx.Done():
		return Event{}, ctx.Err()
	}
}

func (p *Process) fault(err error) error {
	err = fmt.Errorf("%s process (%s): %w", p.Name, p.Place, err)
	if s := p.stderr.String(); s != "" {
		err = fmt.Errorf("%w; it wrote: %s", err, s)
	}
	return err
}

// CPU is the CPU time that the child has used.
func (p *Process) CPU() (time.Duration, error) { return measure.ProcessCPU(p.cmd.Process.Pid) }

// stopTimeout bounds an orderly end.
const stopTimeout = 5 * time.Second

// Stop ends the child in order and returns its last words; one that does not end
// within five seconds is killed.
func (p *Process) Stop(ctx context.Context) (Event, error) {
	defer p.Kill()
	if err := p.Tell(Stop); err != nil {
		return Event{}, err
	}
	e, err := p.Await(ctx, stopTimeout, Stopped)
	if err != nil {
		return e, err
	}
	if e.Error != "" {
		return e, p.fault(fmt.Errorf("it did not end in order: %s", e.Error))
	}
	_ = p.stdin.Close()
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		return e, p.fault(fmt.Errorf("it did not end within %v and was killed", stopTimeout))
	}
	return e, nil
}

// Kill ends the child at once and waits for it. Any number of times.
func (p *Process) Kill() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Kill()
	for range p.events { // lets read come to its end
	}
	<-p.exited
}

// tail keeps the last bytes written to it. Any goroutine.
type tail struct {
	mu   sync.Mutex
	buf  []byte
	also io.Writer
}

const tailBytes = 2 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if n := len(t.buf) - tailBytes; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	if t.also != nil {
		return t.also.Write(b)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
