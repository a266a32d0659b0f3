package transports

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// The ports of dpdk://. Both speak memif's protocol: either can be at either end.
const (
	Memif    = "memif"      // in pure Go
	NetMemif = "net_memif0" // of libdpdk
)

var dpdkTransport = Transport{
	Scheme: "dpdk", Param: "port",
	Devices: func() []Device {
		return []Device{
			{Name: Memif, Default: true, Probe: available, New: newPort(Memif)},
			{Name: NetMemif, Also: "net_memif", Probe: probeEAL, New: newPort(NetMemif)},
		}
	},
	Other: otherPort, OtherNames: "afxdp:NETDEV, a device of libdpdk (net_af_packet0,iface=eth0 or 0000:01:00.0)",
}

func otherPort(name string) Device {
	if netdev, ok := strings.CutPrefix(name, "afxdp:"); ok {
		return afxdpDevice(netdev)
	}
	return ealDevice(name)
}

// ealNames are names of libdpdk's devices: virtual ones are called after their
// driver, cards by their PCI address.
var ealNames = regexp.MustCompile(`^(net_[a-z0-9_]+|[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])(,.*)?$`)

// NamesLibdpdk tells whether a dpdk:// address asks for a device of libdpdk.
func NamesLibdpdk(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Scheme == "dpdk" && ealNames.MatchString(u.Query().Get("port"))
}

// ealDevice is any device of libdpdk; the address says all about it.
func ealDevice(name string) Device {
	if !ealNames.MatchString(name) {
		return Device{}
	}
	name, _, _ = strings.Cut(name, ",")
	return Device{Name: name, Probe: func() *Unavailable { return linked(name) }, New: newEALPort}
}

func newEALPort(u *url.URL) (netpoll.Backend, error) {
	d, err := eal.ParseDevice(u.Query())
	if err != nil {
		return nil, err
	}
	return deviceParam{dpdk.NewPortEventLoop(d.Open, rdma.EventLoopOptions{}), eal.Params}, nil
}

func newPort(name string) func(u *url.URL) (netpoll.Backend, error) {
	return func(u *url.URL) (netpoll.Backend, error) {
		if err := addressOnly(u, "port"); err != nil {
			return nil, err
		}
		pairs, err := Ports(name)
		if err != nil {
			return nil, err
		}
		return deviceParam{dpdk.NewEventLoop(pairs, rdma.EventLoopOptions{}), []string{"port"}}, nil
	}
}

// Ports makes point-to-point ports of the device of that name.
func Ports(name string) (dpdk.Pairs, error) {
	switch name {
	case Memif, "":
		return &memif.Pairs{}, nil
	case NetMemif:
		return &eal.Pairs{}, nil
	}
	return nil, fmt.Errorf("no port %q: use %s, %s", name, Memif, NetMemif)
}

func linked(device string) *Unavailable {
	if eal.Available {
		return nil
	}
	return &Unavailable{Transport: "dpdk", Device: device, Reason: "this program was built without libdpdk", Fix: "apt-get install libdpdk-dev gcc pkg-config, then make build (the pure-Go port memif needs neither)"}
}

// probeEAL starts libdpdk, which stays for the life of the process.
func probeEAL() *Unavailable {
	if un := linked(NetMemif); un != nil {
		return un
	}
	if err := eal.Init(); err != nil {
		return &Unavailable{Transport: "dpdk", Device: NetMemif, Reason: err.Error(), Fix: "libdpdk needs readable /proc/self/pagemap or free huge pages, and memory: millrace doctor tells more"}
	}
	return nil
}
