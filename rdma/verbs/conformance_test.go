package verbs_test

import (
	"os"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/devicetest"
	"github.com/millrace/millrace/rdma/verbs"
)

// deviceName is the device to test. Where a name is given its absence fails the
// test; else a machine without a device skips it, with the reason.
var deviceName = os.Getenv("MILLRACE_RDMA_DEVICE")

func needDevice(t testing.TB) {
	t.Helper()
	if err := verbs.Probe(verbs.Choice{Device: deviceName}); err != nil {
		if deviceName != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func openDevice(t testing.TB, c verbs.Choice) rdma.Device {
	t.Helper()
	c.Device = deviceName
	dev, err := verbs.Open(verbs.Options{Choice: c})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func TestConformance(t *testing.T) {
	needDevice(t)
	devicetest.Run(t, devicetest.Setup{
		Open: func(t *testing.T) devicetest.Pair {
			return devicetest.Pair{A: openDevice(t, verbs.Choice{}), B: openDevice(t, verbs.Choice{})}
		},
		DeadPeer: 10 * time.Second, // 7 × up to 4 × 134 ms, and a busy machine
	})
}
