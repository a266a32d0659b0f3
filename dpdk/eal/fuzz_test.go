package eal

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// Whatever an address says leads to a device that can be asked for, or to an error that
// names the package.
func FuzzParseDevice(f *testing.F) {
	for _, s := range []string{
		"port=net_ring0&ip=192.0.2.1", "port=0000:01:00.0,llq=1&eal=-m+64&queues=4&mtu=9000&ip=192.0.2.1/24&gw=192.0.2.254&vlan=7&udp=5000",
		"port=net_af_packet0,iface=lo&ip=2001:db8::1/64", "port=net_ring0&ip=192.0.2.1&neigh=192.0.2.2@02:00:00:00:00:02", "port=net_tap0&netdev=lo", "%zz", "port=,&ip=::ffff:1.2.3.4",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		d, err := ParseDevice(q)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "dpdk/eal: ") {
				t.Errorf("%q: %v", query, err)
			}
			return
		}
		if d.Name == "" || strings.ContainsAny(d.Name, " =[]\x00") || len(d.Name) >= 64 || d.Queues < 1 || d.Queues > maxQueues || !d.Link.Local.IsValid() {
			t.Errorf("%q: %+v", query, d)
		}
		if d.MTU != 0 && (d.MTU < minMTU || d.MTU > maxFrameBytes) || d.Link.VLAN > 4094 {
			t.Errorf("%q: %+v", query, d)
		}
		if d.Link.Gateway != (netip.Addr{}) && !d.Link.Prefix.IsValid() {
			t.Errorf("%q: a gateway without a prefix", query)
		}
		_ = d.ealArgs()
		if _, err := d.withDefaults(); err != nil {
			t.Errorf("%q: %v", query, err)
		}
	})
}

// What a peer says of its memif cannot add an argument for the driver.
func FuzzMemifArgs(f *testing.F) {
	f.Add("/tmp/x.sock", "secret", uint32(1), 2048)
	f.Add("/tmp/x,zero-copy=yes", "s,id=0", uint32(0), 64)
	f.Fuzz(func(t *testing.T, socket, secret string, id uint32, frame int) {
		m := Memif{Socket: socket, ID: id, Secret: secret}
		if validMemif(m) != nil {
			return
		}
		o, err := Options{FrameBytes: frame}.withDefaults()
		if err != nil {
			return
		}
		args := memifArgs(Client, m, o)
		if strings.Count(args, ",") != 6 || strings.Count(args, "=") != 7 || strings.ContainsAny(args, "\x00[]") {
			t.Errorf("%q", args)
		}
	})
}
