package transports

import (
	"fmt"
	"net/url"

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
		return deviceParam{dpdk.NewEventLoop(pairs, rdma.EventLoopOptions{}), "port"}, nil
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

// probeEAL starts libdpdk, which stays for the life of the process.
func probeEAL() *Unavailable {
	if !eal.Available {
		return &Unavailable{Transport: "dpdk", Device: NetMemif, Reason: "this program was built without libdpdk", Fix: "apt-get install libdpdk-dev gcc pkg-config, then make build (the pure-Go port memif needs neither)"}
	}
	if err := eal.Init(); err != nil {
		return &Unavailable{Transport: "dpdk", Device: NetMemif, Reason: err.Error(), Fix: "libdpdk needs readable /proc/self/pagemap or free huge pages, and memory: millrace doctor tells more"}
	}
	return nil
}
