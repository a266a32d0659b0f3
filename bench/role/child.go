package role

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Func is a role: it runs until ctx ends or its work is done.
type Func func(ctx context.Context, spec Spec, c *Control) error

// Control is a role's line to the parent.
type Control struct {
	commands chan Command
	mu       sync.Mutex
	enc      *json.Encoder
}

// Commands delivers the parent's commands; it is closed when the parent is gone.
func (c *Control) Commands() <-chan Command { return c.commands }

// Emit tells the parent something. Any goroutine.
func (c *Control) Emit(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A parent that does not listen any more is noticed on the input.
	_ = c.enc.Encode(e)
}

// Expect waits for one command; the parent's end is an error.
func (c *Control) Expect(ctx context.Context, want Command) error {
	select {
	case got, ok := <-c.commands:
		if !ok {
			return errors.New("the parent is gone")
		}
		if got != want {
			return fmt.Errorf("command %q where %q was due", got, want)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// BusyMeter measures the share of time that found work since Mark. A nil meter
// measures nothing. One goroutine.
type BusyMeter struct {
	// OnMark, if set, adds to what the parent is told of the stretch that a Mark ends.
	OnMark func(e *Event)

	busy func() time.Duration // total so far
	from time.Time
	base time.Duration
}

// NewBusyMeter measures by busy from now on.
func NewBusyMeter(busy func() time.Duration) *BusyMeter {
	m := &BusyMeter{busy: busy}
	m.Mark()
	return m
}

// Mark begins anew.
func (m *BusyMeter) Mark() {
	if m != nil {
		m.from, m.base = time.Now(), m.busy()
	}
}

// Share is the fraction of the time since Mark that was busy; nil of a nil meter.
func (m *BusyMeter) Share() *float64 {
	if m == nil {
		return nil
	}
	share := float64(m.busy()-m.base) / float64(time.Since(m.from))
	return &share
}

// stretch is what the parent is told at a Mark: of the time since the last one.
func (m *BusyMeter) stretch() Event {
	e := Event{Kind: Marked, BusyShare: m.Share()}
	if m != nil && m.OnMark != nil {
		m.OnMark(&e)
	}
	m.Mark()
	return e
}

// ServeUntilStop answers Mark and Stop, as every server role does, until the
// parent says Stop or is gone or fail delivers an error; then stop runs, and what
// it returns is told to the parent.
func (c *Control) ServeUntilStop(ctx context.Context, m *BusyMeter, fail <-chan error, stop func() Event) error {
	for {
		select {
		case err := <-fail:
			if err == nil {
				err = errors.New("ended too early")
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		case cmd, ok := <-c.commands:
			switch {
			case !ok:
				return errors.New("the parent is gone")
			case cmd == Mark:
				c.Emit(m.stretch())
			case cmd == Stop:
				e := stop()
				e.Kind = Stopped
				c.Emit(e)
				return nil
			default:
				return fmt.Errorf("unexpected command %q", cmd)
			}
		}
	}
}

// Serve runs the role that the first line of in asks for and returns the exit
// status. It returns when the role is done or in ends.
func Serve(in io.Reader, out io.Writer, roles map[string]Func) int {
	c := &Control{commands: make(chan Command, 4), enc: json.NewEncoder(out)}
	s := bufio.NewScanner(in)
	s.Buffer(nil, maxEventBytes)
	fail := func(err error) int {
		c.Emit(Event{Kind: Failed, Error: err.Error()})
		return 1
	}
	if !s.Scan() {
		return fail(errors.New("no specification on standard input: this command is for `millrace bench` itself"))
	}
	var spec Spec
	if err := json.Unmarshal(s.Bytes(), &spec); err != nil {
		return fail(fmt.Errorf("specification %q: %w", s.Text(), err))
	}
	run, ok := roles[spec.Role]
	if !ok {
		return fail(fmt.Errorf("no role %q", spec.Role))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer close(c.commands)
		defer cancel()
		for s.Scan() {
			var cmd Command
			if json.Unmarshal(s.Bytes(), &cmd) != nil {
				return
			}
			c.commands <- cmd
		}
	}()
	err := run(ctx, spec, c)
	if u := (*Unavailable)(nil); errors.As(err, &u) {
		c.Emit(Event{Kind: NotHere, Error: u.Reason, Fix: u.Fix})
		return 0
	}
	if err != nil {
		return fail(err)
	}
	return 0
}

// Unavailable is the error of a role that makes no sense here, or not with these
// messages, which is no failure.
type Unavailable struct{ Reason, Fix string }

func (u *Unavailable) Error() string { return u.Reason }
