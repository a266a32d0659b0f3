package memif

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/porttest"
)

func TestConforms(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		swap bool
	}{{name: "server first"}, {name: "client first", swap: true}, {name: "small rings and frames", cfg: Config{RingLog2: 5, BufferBytes: 1024}}} {
		t.Run(tc.name, func(t *testing.T) {
			porttest.Conform(t, func(t *testing.T) (dpdk.Port, dpdk.Port) {
				s, c := pair(t, tc.cfg)
				if tc.swap {
					return upEnd{end{c, "client"}, c}, upEnd{end{s, "server"}, s}
				}
				return upEnd{end{s, "server"}, s}, upEnd{end{c, "client"}, c}
			})
		})
	}
}

// upEnd is an end whose link has two ends only.
type upEnd struct {
	end
	dpdk.LinkState
}

// The suite with testpmd between the two ends: this process is the server of one link
// and the client of the other, and testpmd hands on what arrives at either. It drops
// what it cannot send.
func TestConformsThroughTestpmd(t *testing.T) {
	const bufferBytes = 2048
	dir := t.TempDir()
	at, bt := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	cfg := Config{Name: "millrace", BufferBytes: bufferBytes}
	a, err := Serve(at, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	vdev := func(n int, role, socket string) string {
		return fmt.Sprintf("--vdev=net_memif%d,role=%s,socket=%s,socket-abstract=no,bsize=%d,rsize=8", n, role, socket, bufferBytes)
	}
	startTestpmd(t, []string{vdev(0, "client", at), vdev(1, "server", bt)}, "--forward-mode=io", "--port-topology=paired")
	b := connectTestpmd(t, bt, cfg)
	defer b.Close()
	waitUp(t, a)
	// Before it forwards, testpmd throws away what its receive queues hold.
	var f [64]dpdk.Frame
	through := func(from, to *Port) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			sendNumbered(from, 0, 64)
			time.Sleep(10 * time.Millisecond)
			if n := to.RxBurst(f[:]); n > 0 {
				to.FreeBurst(f[:n])
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("testpmd forwards nothing; peers: %v, %v", a.Err(), b.Err())
			}
		}
		for quiet := 0; quiet < 10; quiet++ {
			time.Sleep(5 * time.Millisecond)
			if n := to.RxBurst(f[:]); n > 0 {
				to.FreeBurst(f[:n])
				quiet = 0
			}
		}
	}
	through(a, b)
	through(b, a)
	// One testpmd for all: it takes a second to start. The suite's last part closes b.
	porttest.ConformThrough(t, func(t *testing.T) (dpdk.Port, dpdk.Port) { return end{a, "server"}, end{b, "client"} })
}

// end tells two ports apart that are called alike in their own processes. It does not
// say whether its link is up: the other end's going is testpmd's to notice.
type end struct {
	dpdk.Port
	name string
}

func (e end) Info() dpdk.PortInfo {
	i := e.Port.Info()
	i.Name += "-" + e.name
	return i
}
