package rdma_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/millrace/millrace/rdma"
)

// failing is a device that reports events of a test's making.
type failing struct {
	rdma.Device
	next atomic.Pointer[rdma.Event]
}

func (d *failing) PollEvents(events []rdma.Event) int {
	if e := d.next.Swap(nil); e != nil {
		events[0] = *e
		return 1
	}
	return d.Device.PollEvents(events)
}

// A device that fails takes its connections with it, by name, and a port that goes
// down does not: it may come up again.
func TestDeviceEvents(t *testing.T) {
	var dev *failing
	server := startNode(t, nodeOptions{wrap: func(d rdma.Device) rdma.Device { dev = &failing{Device: d}; return dev }})
	client := startNode(t, nodeOptions{})
	c, ch, sh := pair(t, server, client, nil)
	dev.next.Store(&rdma.Event{Kind: rdma.EventPortDown})
	client.do(func() {
		if err := sendCopy(c, []byte("still here")); err != nil {
			t.Error(err)
		}
	})
	if got := sh.next(t); string(got) != "still here" {
		t.Errorf("got %q", got)
	}
	dev.next.Store(&rdma.Event{Kind: rdma.EventDeviceFatal})
	server.do(func() {})
	for i, h := range []*collector{sh, ch} {
		if err := h.waitClose(t); err == nil || !strings.Contains(err.Error(), "device failed") {
			t.Errorf("end %d: %v", i, err)
		}
	}
}
