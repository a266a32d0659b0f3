package eal

import (
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseDevice(t *testing.T) {
	parse := func(query string) (Device, error) {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		return ParseDevice(q)
	}
	d, err := parse("port=0000:01:00.0,llq=1&eal=-m+64++--legacy-mem&queues=4&mtu=9000&ip=192.0.2.1/24&gw=192.0.2.254&vlan=7&udp=5000&neigh=192.0.2.2@02:00:00:00:00:02&neigh=192.0.2.3@02:00:00:00:00:03")
	if err != nil {
		t.Fatal(err)
	}
	l := d.Link
	if d.Name != "0000:01:00.0" || d.Args != "llq=1" || d.Queues != 4 || d.MTU != 9000 || l.VLAN != 7 || len(l.Neighbours) != 2 || l.NetDev != "" ||
		l.Local != netip.MustParseAddrPort("192.0.2.1:5000") || l.Prefix != netip.MustParsePrefix("192.0.2.0/24") || l.Gateway != netip.MustParseAddr("192.0.2.254") {
		t.Errorf("%+v", d)
	}
	if want := []string{"-m", "64", "--legacy-mem", "--allow", "0000:01:00.0,llq=1"}; !slices.Equal(d.ealArgs(), want) || !d.attached() {
		t.Errorf("%q", d.ealArgs())
	}
	if d, err = parse("port=net_tap3,remote=eth0&eal=--vdev=net_tap3,x&ip=2001:db8::1"); err != nil || !d.attached() || d.Link.Local != netip.MustParseAddrPort("[2001:db8::1]:4791") {
		t.Errorf("%+v %v", d, err)
	}
	if d, err = parse("port=net_ring0&ip=192.0.2.1"); err != nil || d.attached() || d.Queues != 1 || !reflect.DeepEqual(d.ealArgs(), d.EAL) {
		t.Errorf("%+v %v", d, err)
	}
	for query, want := range map[string]string{
		"ip=192.0.2.1": "port=", "port=net_ring0": "no address for port net_ring0", "port=net_ring0&ip=x": "ip=", "port=net_ring0&ip=192.0.2.1&queues=0": "queues=",
		"port=net_ring0&ip=192.0.2.1&vlan=4095": "vlan=", "port=net_ring0&ip=192.0.2.1&mtu=1": "mtu=", "port=net_ring0&ip=192.0.2.1&udp=70000": "udp=",
		"port=net_ring0&ip=192.0.2.1&neigh=192.0.2.2": "neigh=", "port=net_ring0&ip=192.0.2.1&gw=x": "gw=", "port=net_ring0&ip=192.0.2.1&gw=192.0.2.2": "gw=",
		"port=net_ring0&ip=192.0.2.1&rss=1": "unknown parameter", "port=net_ring0&ip=192.0.2.1&ip=192.0.2.2": "ip=",
		"port=net_af_packet0,iface=nonesuch9": "nonesuch9", "port=net_af_packet0,iface=lo": "no address that others reach", "port=a%5Bb": "port=",
	} {
		if d, err := parse(query); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", query, d, err, want)
		}
	}
}
