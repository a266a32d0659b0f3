package eal

import (
	"errors"
	"strings"
	"syscall"
)

// Error is a failed call of libdpdk.
type Error struct {
	Op  string // function of libdpdk, with its arguments where they may be the cause
	Dev string // device, if any
	Err error  // what the return value means
	Log string // what libdpdk logged meanwhile
}

// Error says what failed, why, and how to mend it where that is known.
func (e *Error) Error() string {
	s := "dpdk/eal: " + e.Op
	if e.Dev != "" {
		s += " " + e.Dev
	}
	s += ": " + e.Err.Error()
	if e.Log != "" {
		s += " (libdpdk: " + e.Log + ")"
	}
	if fix := e.fix(); fix != "" {
		s += ": " + fix
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// fix reads libdpdk's own words: its return values say little.
func (e *Error) fix() string {
	text := strings.ToLower(e.Err.Error() + " " + e.Log)
	says := func(any ...string) bool {
		for _, a := range any {
			if strings.Contains(text, a) {
				return true
			}
		}
		return false
	}
	name, _, _ := strings.Cut(e.Dev, ",")
	start, attach := strings.HasPrefix(e.Op, "rte_eal_init"), e.Op == "rte_eal_hotplug_add"
	switch {
	case start && says("hugepage", "huge page"):
		return "millrace doctor --fix reserves huge pages; eal=--no-huge does without, for virtual devices"
	case start && says("command line", "invalid parameter"):
		return "correct eal= of the address (its options: dpdk-testpmd --help)"
	case attach && says("failed to parse device", "no driver name"):
		return "libdpdk has no such driver, or it is not installed: millrace doctor lists what is there"
	case attach && errors.Is(e.Err, syscall.EEXIST):
		return "this process has a device of that name: give this one another number"
	case says("no such device") && attach:
		return "correct the arguments of the driver, after the comma in port="
	case says("not permitted", "permission denied", "could not open af_packet socket"):
		return "run as root, or with CAP_NET_RAW and CAP_NET_ADMIN (for cards also access to /dev/vfio)"
	case e.Op == "rte_eth_dev_get_port_by_name" && isPCI(name):
		return "libdpdk does not have the card: bind it (dpdk-devbind.py --bind=vfio-pci " + name + ") and keep --no-pci out of eal=; millrace doctor shows who holds it"
	case e.Op == "rte_eth_dev_get_port_by_name":
		return "no --vdev in eal= has that name"
	case says("max frame size"):
		return "give the address a smaller mtu="
	case errors.Is(e.Err, syscall.ENOMEM) || says("cannot allocate memory"):
		return "libdpdk's memory is used up: raise -m in eal=, or reserve more huge pages (millrace doctor)"
	case attach:
		return "correct the arguments of the driver, after the comma in port="
	}
	return ""
}
