// Package transports is the table of what this program can carry messages over:
// for each URL scheme, how to make its netpoll.Backend, and whether it can run on
// this machine.
package transports

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/millrace/millrace/netpoll"
)

// Unavailable says why a transport cannot run here and what to do about it.
type Unavailable struct {
	Transport, Reason, Fix string
}

func (u *Unavailable) Error() string {
	return fmt.Sprintf("%s cannot run here: %s; fix: %s", u.Transport, u.Reason, u.Fix)
}

// Transport is one URL scheme.
type Transport struct {
	Scheme string
	// Probe tells whether it can run here; nil: it can. It is quick and leaves
	// nothing behind.
	Probe func() *Unavailable
	// New makes the backend for one loop that will listen at u or dial it.
	New func(u *url.URL) (netpoll.Backend, error)
}

func available() *Unavailable { return nil }

var tcp = Transport{
	Scheme: "tcp",
	Probe:  available,
	New:    func(*url.URL) (netpoll.Backend, error) { return netpoll.NewTCP(), nil },
}

// All lists the transports in the order in which they are reported.
func All() []Transport { return []Transport{tcp, rdmaUDP, dpdkMemif} }

// Schemes lists their names.
func Schemes() []string {
	var s []string
	for _, t := range All() {
		s = append(s, t.Scheme)
	}
	return s
}

// ByScheme returns the transport of a URL scheme.
func ByScheme(scheme string) (Transport, error) {
	for _, t := range All() {
		if t.Scheme == scheme {
			return t, nil
		}
	}
	return Transport{}, fmt.Errorf("no transport %q: use %s", scheme, strings.Join(Schemes(), ", "))
}

// Backends makes the backends that a loop needs for urls, one for each scheme.
// It fails with an *Unavailable where one cannot run here.
func Backends(urls ...string) ([]netpoll.Backend, error) {
	var schemes []string
	first := map[string]*url.URL{}
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme == "" || u.Host == "" {
			return nil, fmt.Errorf("%q is not an address: one looks like tcp://127.0.0.1:7000", raw)
		}
		if !slices.Contains(schemes, u.Scheme) {
			schemes = append(schemes, u.Scheme)
			first[u.Scheme] = u
		}
	}
	var out []netpoll.Backend
	for _, s := range schemes {
		t, err := ByScheme(s)
		if err != nil {
			return nil, err
		}
		if un := t.Probe(); un != nil {
			return nil, un
		}
		b, err := t.New(first[s])
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}
