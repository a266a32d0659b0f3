//go:build dpdk && cgo

package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/eal"
)

// The metrics show an open port of libdpdk, by direction, and that net_ring copies nothing.
func TestLibdpdkMetrics(t *testing.T) {
	if err := eal.Init(); err != nil {
		t.Skipf("libdpdk does not start here: %v", err)
	}
	ports, err := eal.NewVdev("net_ring0", "", 1, eal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := ports[0]
	_, closed := eal.Ports()
	before := closed.RxFrames
	var f [3]dpdk.Frame
	n := p.AllocBurst(f[:])
	for i := range n {
		f[i].Len = 60
	}
	if sent := p.TxBurst(f[:n]); sent != 3 {
		t.Fatalf("%d sent", sent)
	}
	n = p.RxBurst(f[:2])
	p.FreeBurst(f[:n])
	m := &metrics{prometheus.NewRegistry()}
	m.watchLibdpdk()
	gather := func() (got []string) {
		families, err := m.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, fam := range families {
			for _, v := range fam.Metric {
				labels := map[string]string{}
				for _, l := range v.Label {
					labels[l.GetName()] = l.GetValue()
				}
				if fam.GetName() == "millrace_libdpdk_frames_total" {
					got = append(got, fmt.Sprint(labels["port"], labels["queue"], " ", labels["direction"], " copied:", labels["copied"], " ", v.Counter.GetValue()))
				}
			}
		}
		return got
	}
	want := fmt.Sprintf("closed rx copied:no %[1]d, net_ring00 rx copied:no 3, closed tx copied:no %[1]d, net_ring00 tx copied:no 3, "+
		"closed rx copied:yes 0, net_ring00 rx copied:yes 0, closed tx copied:yes 0, net_ring00 tx copied:yes 0", before)
	if got := strings.Join(gather(), ", "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// What it did is not forgotten.
	if got, want := strings.Join(gather(), ", "), fmt.Sprintf("closed rx copied:no %[1]d, closed tx copied:no %[1]d, closed rx copied:yes 0, closed tx copied:yes 0", before+3); got != want {
		t.Errorf("closed: got  %s\nwant %s", got, want)
	}
}
