package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// repair is a change that is safe and can be undone.
type repair struct {
	command, undo string
	// do says what else is to be known of a change that was made, and fails where
	// nothing was changed.
	do   func(context.Context) (note string, err error)
	back func(context.Context) error
}

// Repair is what --fix did, or would do.
type Repair struct {
	Check   string `json:"check"`
	Command string `json:"command"`
	Undo    string `json:"undo"`
	Done    bool   `json:"done"`
	Why     string `json:"why,omitempty"` // not done; where Done, not wholly
}

// repairPatience bounds one repair: modprobe may wait for a device.
const repairPatience = 20 * time.Second

// Fix does what the checks of r can do by themselves and returns a new report with
// what was done. Without root it does nothing and says what it would run.
func Fix(ctx context.Context, h *Host, r *Report) *Report {
	var done []Repair
	for _, c := range r.Checks {
		if c.repair == nil {
			continue
		}
		p := Repair{Check: c.Name, Command: c.repair.command, Undo: c.repair.undo}
		if h.UID != 0 {
			p.Why = "not root; to do it: sudo " + strings.ReplaceAll(p.Command, " && ", " && sudo ")
		} else {
			o := <-bounded(ctx, repairPatience, func(ctx context.Context) outcome {
				note, err := c.repair.do(ctx)
				if err != nil {
					return outcome{why: err.Error()}
				}
				return outcome{done: true, why: note}
			}, func(why string) outcome { return outcome{why: why + "; it may still be under way"} })
			p.Done, p.Why = o.done, o.why
		}
		done = append(done, p)
	}
	if h.UID == 0 && len(done) > 0 {
		r = Examine(ctx, h)
	}
	r.Repairs = done
	return r
}

type outcome struct {
	done bool
	why  string
}

// and is both, in order, or none.
func (p *repair) and(q *repair) *repair {
	return &repair{
		command: p.command + " && " + q.command, undo: q.undo + " && " + p.undo,
		do: func(ctx context.Context) (string, error) {
			one, err := p.do(ctx)
			if err != nil {
				return "", err
			}
			two, err := q.do(ctx)
			if err != nil {
				return "", errors.Join(err, p.back(ctx))
			}
			return strings.Trim(one+"; "+two, "; "), nil
		},
		back: func(ctx context.Context) error { return errors.Join(q.back(ctx), p.back(ctx)) },
	}
}

// sysctl changes a number of the kernel, named as sysctl(8) does.
func sysctl(h *Host, name string, from, to int) *repair {
	file := "proc/sys/" + strings.ReplaceAll(name, ".", "/")
	return &repair{
		command: fmt.Sprintf("sysctl -w %s=%d", name, to), undo: fmt.Sprintf("sysctl -w %s=%d", name, from),
		do:   func(context.Context) (string, error) { return h.set(file, to) },
		back: func(context.Context) error { return h.Write(file, fmt.Sprint(from)) },
	}
}

// knob changes a number in a file of sysfs.
func knob(h *Host, file string, from, to int) *repair {
	return &repair{
		command: fmt.Sprintf("sh -c 'echo %d > /%s'", to, file), undo: fmt.Sprintf("sh -c 'echo %d > /%s'", from, file),
		do:   func(context.Context) (string, error) { return h.set(file, to) },
		back: func(context.Context) error { return h.Write(file, fmt.Sprint(from)) },
	}
}

// set writes a number and looks what the kernel made of it: it gives fewer huge
// pages than asked for without an error.
func (h *Host) set(file string, to int) (note string, err error) {
	if err := h.Write(file, fmt.Sprint(to)); err != nil {
		return "", fmt.Errorf("%w (in a container: do it on the host)", err)
	}
	if got, ok := h.number(file); ok && got != to {
		return fmt.Sprintf("the kernel gave %d of %d", got, to), nil
	}
	return "", nil
}

func modprobe(h *Host, modules []string) *repair {
	return &repair{
		command: "modprobe -a " + strings.Join(modules, " "), undo: "modprobe -r -a " + strings.Join(modules, " "),
		do: func(ctx context.Context) (string, error) {
			return "", h.Run(ctx, append([]string{"modprobe", "-a"}, modules...)...)
		},
	}
}
