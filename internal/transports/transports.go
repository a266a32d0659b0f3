// Package transports is the table of what this program can carry messages over:
// for each URL scheme its devices, how to make a netpoll.Backend of one, and
// whether it can run on this machine.
package transports

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// Unavailable says why a transport, or one of its devices, cannot run here and
// what to do about it.
type Unavailable struct {
	Transport, Device, Reason, Fix string
}

func (u *Unavailable) Error() string {
	name := u.Transport
	if u.Device != "" {
		name += " (" + u.Device + ")"
	}
	return fmt.Sprintf("%s cannot run here: %s; fix: %s", name, u.Reason, u.Fix)
}

// Transport is one URL scheme.
type Transport struct {
	Scheme string
	// Param is the URL parameter that names the device; empty: there is one only.
	Param string
	// Devices lists what may carry it on this machine, the default first.
	Devices func() []Device
	// Other is a device that is not listed, by its name; nil: there are none.
	Other func(name string) Device
	// OtherNames says what Other takes, for people.
	OtherNames string
}

// Device is one way to carry a transport.
type Device struct {
	// Name as the URL parameter takes it and as connections report it.
	Name string
	// Also is another name that the URL parameter may give; empty: none.
	Also string
	// Default: used where a URL names no device.
	Default bool
	// HostOnly: it works in the machine's first network namespace alone.
	HostOnly bool
	// Probe tells whether it can run here; nil: it can. It may start a library for
	// the rest of the process's life.
	Probe func() *Unavailable
	// New makes the backend for one loop that will listen at u or dial it.
	New func(u *url.URL) (netpoll.Backend, error)
}

func available() *Unavailable { return nil }

var tcp = Transport{
	Scheme: "tcp",
	Devices: func() []Device {
		return []Device{{
			Name: "epoll", Default: true, Probe: available,
			New: func(*url.URL) (netpoll.Backend, error) { return netpoll.NewTCP(), nil },
		}}
	},
}

// All lists the transports in the order in which they are reported.
func All() []Transport { return []Transport{tcp, rdmaTransport, dpdkTransport} }

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

// Device finds the device that u asks for.
func (t *Transport) Device(u *url.URL) (Device, error) {
	want := ""
	if t.Param != "" {
		want = query(u, t.Param)
	}
	var names []string
	for _, d := range t.Devices() {
		if want == "" && d.Default || want != "" && (d.Name == want || d.Also == want) {
			return d, nil
		}
		names = append(names, d.Name)
	}
	if t.Other != nil {
		if d := t.Other(want); d.Name != "" {
			return d, nil
		}
		names = append(names, t.OtherNames)
	}
	return Device{}, fmt.Errorf("%s: no %s %q here: use %s", u, t.Param, want, strings.Join(names, ", "))
}

// query is a parameter of u. Device names hold plus signs, which a query spells as
// %2B and people as +.
func query(u *url.URL, name string) string { return strings.ReplaceAll(u.Query().Get(name), " ", "+") }

// With returns rawURL with the device of that name; a name that is empty, or whose
// scheme has one device only, changes nothing.
func With(rawURL, device string) string {
	u, err := url.Parse(rawURL)
	if err != nil || device == "" {
		return rawURL
	}
	if t, err := ByScheme(u.Scheme); err != nil || t.Param == "" {
		return rawURL
	} else {
		q := u.Query()
		q.Set(t.Param, device)
		u.RawQuery = q.Encode()
	}
	return u.String()
}

// fallbackParam is the URL parameter of rdma.EventLoop.
const fallbackParam = "fallback"

// Backends makes the backends that a loop needs for urls, one for each scheme, and
// TCP's for those that may fall back to it. It fails with an *Unavailable where one
// cannot run here, unless it may fall back. A backend holds nothing that needs closing
// before a loop attaches it.
func Backends(urls ...string) ([]netpoll.Backend, error) {
	var out []netpoll.Backend
	fallback := false
	made := map[string]string{} // device by scheme
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme == "" || u.Host == "" {
			return nil, fmt.Errorf("%q is not an address: one looks like tcp://127.0.0.1:7000", raw)
		}
		if _, err := strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return nil, fmt.Errorf("%s needs a port from 0 to 65535: an address looks like tcp://127.0.0.1:7000", raw)
		}
		t, err := ByScheme(u.Scheme)
		if err != nil {
			return nil, err
		}
		mayFall := u.Scheme != "tcp" && u.Query().Get(fallbackParam) == "tcp"
		fallback = fallback || mayFall
		d, err := t.Device(u)
		if err != nil && !mayFall {
			return nil, err
		}
		if other, ok := made[u.Scheme]; ok {
			if other != d.Name {
				return nil, fmt.Errorf("%s asks for %s, another address of %s:// for %s: all addresses of one scheme share a device", raw, d.Name, u.Scheme, other)
			}
			continue
		}
		made[u.Scheme] = d.Name
		var b netpoll.Backend
		if err == nil {
			b, err = d.backend(u)
		}
		if err != nil && mayFall {
			none := rdma.NewEventLoop(rdma.NoFabric(err), rdma.EventLoopOptions{Scheme: u.Scheme, DeviceParam: t.Param})
			b, err = deviceParam{none, []string{t.Param}}, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	if fallback && made["tcp"] == "" {
		out = append(out, netpoll.NewTCP())
	}
	return out, nil
}

// backend makes the backend for u, unless the device cannot run here.
func (d *Device) backend(u *url.URL) (netpoll.Backend, error) {
	if un := d.Probe(); un != nil {
		return nil, un
	}
	return d.New(without(u, fallbackParam))
}

// without is u without those parameters.
func without(u *url.URL, params ...string) *url.URL {
	v := *u
	q := v.Query()
	for _, name := range params {
		q.Del(name)
	}
	v.RawQuery = q.Encode()
	return &v
}

// deviceParam drops the parameters of the device from the addresses that reach a
// backend, which has been made for it: they are this end's own business, and the
// peer, which gets the address, may use another kind of the same network.
type deviceParam struct {
	*rdma.EventLoop
	names []string
}

// Listen implements netpoll.Backend.
func (d deviceParam) Listen(u *url.URL, h netpoll.Handler) (netpoll.Listener, error) {
	return d.EventLoop.Listen(without(u, d.names...), h)
}

// Dial implements netpoll.Backend.
func (d deviceParam) Dial(u *url.URL, h netpoll.Handler, done func(*netpoll.Conn, error)) {
	d.EventLoop.Dial(without(u, d.names...), h, done)
}

// addressOnly reports parameters of u that mean nothing here.
func addressOnly(u *url.URL, param string) error {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fmt.Errorf("%s: %w", u, err)
	}
	for name := range q {
		if name != param {
			return fmt.Errorf("%s: unknown parameter %q: %s:// takes %s and %s", u, name, u.Scheme, param, fallbackParam)
		}
	}
	return nil
}

// RDMAStats are the counters of those backends that carry messages over queue
// pairs, by scheme. Any goroutine.
func RDMAStats(backends []netpoll.Backend) map[string]func() rdma.Stats {
	out := map[string]func() rdma.Stats{}
	for _, b := range backends {
		if d, ok := b.(deviceParam); ok {
			out[d.Scheme()] = d.Stats
		}
	}
	return out
}

// sortedUnique is for lists of devices that several ports share.
func sortedUnique(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
