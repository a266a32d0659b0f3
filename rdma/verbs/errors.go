package verbs

import (
	"errors"

	"github.com/millrace/millrace/rdma"
)

// Error says why a device cannot be used, and how to mend it.
type Error struct {
	Op     string // what was tried
	Device string // if it is known
	Err    error
	Fix    string // what to do; empty if nothing is known
}

func (e *Error) Error() string {
	s := "rdma/verbs: " + e.Op
	if e.Device != "" {
		s += " " + e.Device
	}
	s += ": " + e.Err.Error()
	if e.Fix != "" {
		s += "; fix: " + e.Fix
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// notSupported is text that wraps rdma.ErrNotSupported.
type notSupported string

func (s notSupported) Error() string { return string(s) }
func (notSupported) Unwrap() error   { return rdma.ErrNotSupported }

var (
	// ErrNotBuilt says that this binary has no verbs in it.
	ErrNotBuilt error = &Error{
		Op: "open", Err: notSupported("this binary was built without the tag verbs"),
		Fix: "install gcc and libibverbs-dev (Debian's name; rdma-core-devel on Fedora), then make build (CGO_ENABLED=1 go build -tags verbs)",
	}
	// ErrNoDevice is wrapped where no RDMA device can be used at all.
	ErrNoDevice error = notSupported("no RDMA device")
	// ErrAmbiguous is wrapped where several devices fit; the text lists them.
	ErrAmbiguous = errors.New("several RDMA devices fit")
	// ErrNoMatch is wrapped where there are devices but none fits.
	ErrNoMatch = errors.New("no RDMA device fits")
	// ErrGIDType is wrapped where an address has a GID, but none of RoCEv2.
	ErrGIDType = errors.New("no RoCEv2 GID")
	// ErrPortState is wrapped where the port is not active.
	ErrPortState = errors.New("port is not active")
	// ErrClosed refuses operations on a closed device, queue or queue pair.
	ErrClosed = errors.New("rdma/verbs: closed")
)
