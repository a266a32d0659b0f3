package verbs

import (
	"io/fs"
	"net/netip"
)

// Condition is a port and why it cannot be used.
type Condition struct {
	Port Port
	Err  error // nil: it can; else an *Error with the fix
}

// Inspect is List for the machine whose root directory and kernel release these
// are, with a verdict on each port. err says why there is no port at all; it wraps
// ErrNoDevice where that is so. open tries a file for reading and writing; nil: the
// machine is this one.
func Inspect(root fs.FS, release string, open func(name string) error) (ports []Condition, err error) {
	h := host{root: root, release: release, open: open}
	if open == nil {
		h.open = thisHost().open
	}
	all, err := list(root)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, h.noDevice()
	}
	for _, p := range all {
		c := Condition{Port: p}
		if _, e := p.choose(netip.Addr{}, true); e != nil {
			c.Err = e
		} else {
			c.Err = h.deviceFile(&p)
		}
		ports = append(ports, c)
	}
	return ports, nil
}
