//go:build dpdk && cgo

package eal

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/millrace/millrace/dpdk"
)

// Loops of one process share a device, each with a queue, and no more loops than it
// has queues.
func TestDeviceIsShared(t *testing.T) {
	start(t)
	d := Device{Name: "net_ring7", Queues: 1, Link: dpdk.LinkConfig{Local: netip.MustParseAddrPort("192.0.2.1:4791")}}
	for range 3 { // it opens again once it is closed
		one, err := d.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "queues=2") {
			t.Errorf("a second loop on one queue: %v", err)
		}
		if err := one.Close(); err != nil {
			t.Fatal(err)
		}
	}
	n := Device{Name: "net_null7", Queues: 3, Link: d.Link}
	one, err1 := n.Open(t.Context())
	two, err2 := n.Open(t.Context())
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if one.Attr().Local.Port() != 4791 || two.Attr().Local.Port() != 4792 {
		t.Errorf("%+v %+v", one.Attr(), two.Attr())
	}
	if err := errors.Join(one.Close(), two.Close()); err != nil {
		t.Fatal(err)
	}
	again, err := n.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}
