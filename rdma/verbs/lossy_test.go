package verbs_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
	"github.com/millrace/millrace/rdma/verbs"
)

// impair makes the veth between the device and its peer lose, duplicate and
// reorder packets in both directions, with netem(8). Empty: no more.
func impair(t *testing.T, netem string) {
	t.Helper()
	netns, _ := peer(t)
	netdev, err := os.ReadFile("/sys/class/infiniband/" + deviceName + "/parent")
	if err != nil {
		t.Skipf("the network device of %q is not known: %v", deviceName, err)
	}
	for _, args := range [][]string{{"qdisc", "replace", "dev", strings.TrimSpace(string(netdev))}, {"-n", netns, "qdisc", "replace", "dev", "peer"}} {
		args = append(args, "root")
		if netem == "" {
			args = append(args, "pfifo")
		} else {
			args = append(append(args, "netem", "limit", "10000"), strings.Fields(netem)...)
		}
		if out, err := exec.Command("tc", args...).CombinedOutput(); err != nil {
			t.Skipf("tc %s: %v: %s (Debian: iproute2; the kernel needs sch_netem)", strings.Join(args, " "), err, out)
		}
	}
}

// Every operation of the engine and the kernel with each other, over nets from
// good to bad.
func TestInteropOnBadNets(t *testing.T) {
	_, addr := peer(t)
	engine := func() rdma.Device { return newEngine(t, softroce.Options{PeerTimeout: patience}) }
	kernel := func() rdma.Device { return openDevice(t, verbs.Choice{Remote: addr}) }
	t.Cleanup(func() { impair(t, "") })
	for _, net := range []struct {
		name, netem string
		largest     int // without the build tag soak
	}{
		{"good", "", halfBytes},
		{"loss 1%", "delay 1ms reorder 95% loss 1% duplicate 1%", 1<<20 + 3},
		{"loss 5%", "delay 1ms reorder 90% loss 5% duplicate 2%", 1<<20 + 3},
	} {
		for _, names := range [][2]string{{"engine", "kernel"}, {"kernel", "engine"}} {
			t.Run(net.name+"/"+names[0]+" to "+names[1], func(t *testing.T) {
				impair(t, net.netem)
				make := map[string]func() rdma.Device{"engine": engine, "kernel": kernel}
				a, b := newSide(t, make[names[0]](), false), newSide(t, make[names[1]](), true)
				connectSides(t, a, b)
				largest := net.largest
				if soak {
					largest = halfBytes
				}
				for _, n := range operationSizes {
					if n > largest {
						break
					}
					start := time.Now()
					everyOperation(t, a, b, n)
					t.Logf("%d bytes: %v", n, time.Since(start).Round(time.Millisecond))
				}
			})
		}
	}
}
