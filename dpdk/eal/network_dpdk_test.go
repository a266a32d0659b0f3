//go:build dpdk && cgo

package eal_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma"
)

func loopOn(t *testing.T, query string) *netpoll.Loop {
	t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	d, err := eal.ParseDevice(q)
	if err != nil {
		t.Fatal(err)
	}
	return startLoopOn(t, dpdk.NewPortEventLoop(d.Open, rdma.EventLoopOptions{}))
}

// Messages over a wire between network devices: the ports find each other by
// themselves, over IPv4, IPv6 and a VLAN, and with several loops on one device.
func TestNetworkEcho(t *testing.T) {
	needEAL(t)
	for _, tc := range []struct {
		name, here, there string
		servers           int
	}{
		{"IPv4", "ip=10.213.80.1/24", "ip=10.213.80.2/24", 1},
		{"IPv6 in a VLAN", "ip=fd77:80::1&vlan=9", "ip=fd77:80::2&vlan=9", 1},
		{"small frames", "ip=10.213.80.1&mtu=700", "ip=10.213.80.2&mtu=700", 1},
		{"two loops on two queues", "ip=10.213.80.1&queues=2", "ip=10.213.80.2", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := veth(t)
			client := loopOn(t, "port=net_af_packet1,iface="+b+"&"+tc.there)
			port := "port=net_af_packet0,iface=" + a
			if tc.servers > 1 {
				port += ",qpairs=2"
			}
			for range tc.servers {
				server := loopOn(t, port+"&"+tc.here)
				ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
				if err != nil {
					if strings.Contains(err.Error(), "fanout") {
						t.Skip(err)
					}
					t.Fatal(err)
				}
				looptest.Dial(t, client, ln.URL(), 1, 128, 4096, 100_000)
			}
		})
	}
}
