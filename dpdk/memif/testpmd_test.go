package memif

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
)

// lockedBuffer collects the output of a process that is still running.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startTestpmd starts DPDK's own packet forwarder on the given devices.
func startTestpmd(t *testing.T, devices []string, args ...string) {
	t.Helper()
	bin, err := exec.LookPath("dpdk-testpmd")
	if err != nil {
		t.Skip("dpdk-testpmd is not installed (apt-get install dpdk-dev)")
	}
	full := append([]string{"--no-huge", "--no-shconf", "--no-pci", "--no-telemetry", "-m", "128", "--lcores", "0@0,1@(0-1)"}, devices...)
	full = append(full, "--", "--auto-start", "--total-num-mbufs=4096", "--burst=32")
	cmd := exec.Command(bin, append(full, args...)...)
	stdin, err := cmd.StdinPipe() // testpmd runs until Enter
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+t.TempDir()) // else it leaves one in /var/run
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		if t.Failed() {
			t.Logf("testpmd said:\n%s", out.String())
		}
	})
}

// reflectingTestpmd sends back every frame with its addresses swapped.
func reflectingTestpmd(t *testing.T, role, socket string) {
	t.Helper()
	startTestpmd(t, []string{fmt.Sprintf("--vdev=net_memif0,role=%s,socket=%s,socket-abstract=no,bsize=2048,rsize=8", role, socket)},
		"--forward-mode=macswap", "--port-topology=loop")
}

// connectTestpmd connects to testpmd's socket, which refuses until its port is started.
func connectTestpmd(t *testing.T, socket string, cfg Config) *Port {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		p, err := Connect(testCtx(t), socket, cfg)
		if err == nil {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func sendNumbered(p *Port, number uint64, size int) {
	var f [1]dpdk.Frame
	if p.AllocBurst(f[:]) == 0 {
		return
	}
	clear(f[0].Data[:size])
	copy(f[0].Data, "\x02aaaaa\x02bbbbb\x88\xb5")
	binary.LittleEndian.PutUint64(f[0].Data[14:], number)
	f[0].Len = size
	p.TxBurst(f[:])
}

// exchange sends frames and checks that they come back in order.
func exchange(t *testing.T, p *Port) {
	t.Helper()
	const total = 5_000
	const probe = 1<<64 - 1
	var rx [16]dpdk.Frame
	deadline := time.Now().Add(20 * time.Second)
	// Before it forwards, testpmd throws away what its receive queue holds, so the
	// first frames are probes, until one comes back.
	for answered := false; !answered; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("testpmd forwards nothing; peer: %v", p.Err())
		}
		sendNumbered(p, probe, 64)
		for range 100 {
			n := p.RxBurst(rx[:])
			p.FreeBurst(rx[:n])
			answered = answered || n > 0
			time.Sleep(100 * time.Microsecond)
		}
	}
	sent, got := 0, 0
	for got < total {
		// No more in flight than either ring holds: testpmd drops what it cannot send.
		if sent-got < 64 && sent < total {
			sendNumbered(p, uint64(sent), 64+sent%64)
			sent++
		}
		n := p.RxBurst(rx[:])
		for i := range n {
			f := rx[i]
			v := binary.LittleEndian.Uint64(f.Data[14:])
			if v == probe && got == 0 {
				continue
			}
			if v != uint64(got) || f.Len != 64+got%64 || string(f.Data[:6]) != "\x02bbbbb" {
				t.Fatalf("frame %d: number %d, %d bytes, to % x", got, v, f.Len, f.Data[:6])
			}
			got++
		}
		p.FreeBurst(rx[:n])
		if n == 0 && time.Now().After(deadline) {
			t.Fatalf("%d of %d frames came back (sent %d); peer: %v", got, total, sent, p.Err())
		}
	}
	if st := p.Stats(); st.BadDescriptors+st.PeerLies > 0 {
		t.Errorf("%+v", st)
	}
}

func TestClientAgainstTestpmd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	reflectingTestpmd(t, "server", socket)
	p := connectTestpmd(t, socket, Config{Name: "millrace", RingLog2: 8, BufferBytes: 2048})
	defer p.Close()
	exchange(t, p)
}

func TestServerAgainstTestpmd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p, err := Serve(socket, Config{Name: "millrace", BufferBytes: 2048})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	reflectingTestpmd(t, "client", socket)
	waitUp(t, p)
	exchange(t, p)
}
