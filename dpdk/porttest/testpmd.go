package porttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// BenchmarkTestpmd is BenchmarkBothWays of two dpdk-testpmd over net_memif, to compare
// with: C that does nothing but that. Each has one CPU, bursts of 32, rings of 256, as
// ours have. One operation is a second; testpmd itself counts and takes the time.
//
//	io       each sends back what it received. With one burst under way, which is what
//	         tx_first gives by itself, that measures round trips; here there are eight.
//	flowgen  each makes frames and drops those that it received.
func BenchmarkTestpmd(b *testing.B) {
	for _, mode := range []struct{ name, start string }{{"io", "start tx_first 8"}, {"flowgen", "start"}} {
		b.Run(mode.name, func(b *testing.B) {
			socket := filepath.Join(peerTemp(b), "s")
			server := startTestpmd(b, "server", socket, 0, mode.name)
			client := startTestpmd(b, "client", socket, 1, mode.name)
			time.Sleep(300 * time.Millisecond) // the client's interrupt thread finishes the handshake
			client.command(b, "start")
			server.command(b, mode.start)
			time.Sleep(300 * time.Millisecond)
			server.packetRate(b)
			b.ResetTimer()
			time.Sleep(time.Duration(b.N) * time.Second)
			b.ReportMetric(server.packetRate(b)/1e6, "Mpps-each-way")
		})
	}
}

type testpmd struct {
	cmd    *exec.Cmd
	in     *os.File
	output string // its path
	rates  int    // how many packetRate has read
}

// startTestpmd starts one on the CPU and waits for its prompt.
func startTestpmd(b *testing.B, role, socket string, cpu int, mode string) *testpmd {
	b.Helper()
	for _, program := range []string{"dpdk-testpmd", "stdbuf"} {
		if _, err := exec.LookPath(program); err != nil {
			b.Skipf("%s is not installed (apt-get install dpdk-dev coreutils)", program)
		}
	}
	dir := b.TempDir()
	t := &testpmd{output: filepath.Join(dir, "output")}
	out, err := os.Create(t.output)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	in, inWriter, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	t.in = inWriter
	t.cmd = exec.Command("stdbuf", "-oL", "dpdk-testpmd",
		"--no-huge", "-m", "128", "--no-shconf", "--no-pci", "--no-telemetry", "--lcores", fmt.Sprintf("0@%d,1@%d", cpu, cpu),
		fmt.Sprintf("--vdev=net_memif0,role=%s,socket=%s,socket-abstract=no,bsize=2048,rsize=8", role, socket),
		"--", "-i", "--total-num-mbufs=8192", "--burst=32", "--txd=256", "--rxd=256", "--port-topology=loop", "--forward-mode="+mode)
	t.cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+dir) // else it leaves one in /var/run
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = in, out, out
	if err := t.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = t.cmd.Process.Kill() // "quit" waits for ever now and then
		_ = t.cmd.Wait()
		_ = t.in.Close()
	})
	t.wait(b, regexp.MustCompile(`testpmd> `), 1)
	return t
}

// wait for the pattern to be there so many times; it returns the last match.
func (t *testpmd) wait(b *testing.B, pattern *regexp.Regexp, times int) []string {
	b.Helper()
	for deadline := time.Now().Add(peerPatience); ; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(t.output)
		if err != nil {
			b.Fatal(err)
		}
		if found := pattern.FindAllStringSubmatch(string(text), -1); len(found) >= times {
			return found[len(found)-1]
		}
		if time.Now().After(deadline) {
			b.Fatalf("testpmd does not say %q:\n%s", pattern, text)
		}
	}
}

func (t *testpmd) command(b *testing.B, line string) {
	b.Helper()
	if _, err := t.in.WriteString(line + "\n"); err != nil {
		b.Fatal(err)
	}
}

// packetRate is how many packets arrived per second since it was asked before.
func (t *testpmd) packetRate(b *testing.B) float64 {
	b.Helper()
	t.command(b, "show port stats 0")
	t.rates++
	rate, err := strconv.ParseFloat(t.wait(b, regexp.MustCompile(`Rx-pps: +(\d+)`), t.rates)[1], 64)
	if err != nil {
		b.Fatal(err)
	}
	return rate
}
