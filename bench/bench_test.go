package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/bench"
	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/bench/roles"
	"github.com/millrace/millrace/dpdk/afxdp"
)

// The test binary is also the program that plays the roles.
func TestMain(m *testing.M) {
	if os.Getenv("GORACE") == "" { // a program built with -race sleeps a second when it exits
		os.Setenv("GORACE", "atexit_sleep_ms=20")
	}
	if len(os.Args) > 1 && os.Args[1] == "role" {
		os.Exit(role.Serve(os.Stdin, os.Stdout, roles.All))
	}
	os.Exit(m.Run())
}

func launcher(t *testing.T) role.Launcher {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return role.Launcher{Command: []string{self, "role"}}
}

// nothingLeft fails if this process has children, or files or network namespaces of
// a run are left over.
func nothingLeft(t *testing.T) {
	t.Helper()
	self := fmt.Sprint(os.Getpid())
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		// pid (comm) state ppid …
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) > 1 && fields[1] == self {
			t.Errorf("a child is left: %s", b)
		}
	}
	for _, pattern := range []string{os.TempDir() + "/millrace-bench-" + self + "-*", "/run/netns/millrace-" + self + "-*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	}
}

func run(t *testing.T, o bench.Options) (*report.Report, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // beside others
	defer cancel()
	o.Quick, o.Launcher, o.Version = true, launcher(t), "test"
	if o.Idle == "" {
		o.Idle = "balanced" // tests run beside others
	}
	if o.Duration == 0 {
		o.Duration = 40 * time.Millisecond
	}
	rep, err := bench.Run(ctx, o)
	nothingLeft(t)
	return rep, err
}

// Every workload runs over every transport that this build has, and proves for each
// row that nothing was lost, doubled or changed.
func TestWorkloads(t *testing.T) {
	all := []string{"tcp net", "tcp epoll", "rdma softroce+udp", "dpdk memif"}
	for _, tt := range []struct {
		workload string
		want     []string // transport device, at least
		check    func(*report.Row) error
	}{
		{"rtt", append([]string{"tcp epoll port", "rdma softroce+udp port", "dpdk memif port"}, all...), func(r *report.Row) error {
			if r.RTMicros == nil || r.RTMicros.P50 <= 0 || r.CPUMicrosPerMessage["broker"] <= 0 {
				return errors.New("no latency or no CPU time")
			}
			return nil
		}},
		{"produce", all, func(r *report.Row) error {
			if r.OfferedRate != 500 || r.RTMicros == nil || r.Sustained == nil || r.Durability != "page-cache" {
				return errors.New("incomplete")
			}
			return nil
		}},
		{"throughput", all, func(r *report.Row) error {
			if r.Batched == nil || r.FlushPerMessage == nil || *r.Batched == *r.FlushPerMessage {
				return errors.New("incomplete")
			}
			return nil
		}},
		{"stream", all[1:], func(r *report.Row) error {
			if r.FlushPerMessage == nil || !slices.Contains([]float64{256, 1024, 65536}, r.MessageBytes) {
				return errors.New("incomplete")
			}
			return nil
		}},
		{"matched", all[1:], func(r *report.Row) error {
			if r.MessageBytes != 256 || (r.Share == 0) != (r.OfferedRate == 0) || r.CPUMicrosPerMessage["broker"] <= 0 {
				return errors.New("incomplete")
			}
			return nil
		}},
		{"consume", all[1:], func(*report.Row) error { return nil }},
		{"serialize", nil, func(r *report.Row) error {
			if r.RecordsPerSecond <= 0 || r.OverheadBytesPerRecord == 0 || r.Codec == "" || r.Workers < 1 || r.CRC == nil {
				return errors.New("incomplete")
			}
			return nil
		}},
	} {
		t.Run(tt.workload, func(t *testing.T) {
			rep, err := run(t, bench.Options{Workloads: []string{tt.workload}, Rate: 500})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range rep.Results {
				r := &rep.Results[i]
				got = append(got, r.Transport+" "+r.Device, r.Transport+" "+r.Device+" "+r.Layer)
				if err := tt.check(r); err != nil {
					t.Errorf("%s: %v: %+v", r.Condition(), err, r)
				}
				if r.Messages <= 0 || r.MessageBytes <= 0 || r.Placement["client"] == "" {
					t.Errorf("%s: no messages or no placement: %+v", r.Condition(), r)
				}
				if r.Transport != "" && (r.Lost == nil || *r.Lost != 0 || r.Duplicated == nil || *r.Duplicated != 0) {
					t.Errorf("%s: lost %v duplicated %v", r.Condition(), r.Lost, r.Duplicated)
				}
			}
			for _, w := range tt.want {
				// Ports that spin need two CPUs.
				if !slices.Contains(got, w) && !(strings.HasSuffix(w, " port") && rep.Machine.CPUs < 2) {
					t.Errorf("no row %q, only %q", w, got)
				}
			}
		})
	}
}

// Without a proxy the client measures what otherwise the proxy does.
func TestDirect(t *testing.T) {
	rep, err := run(t, bench.Options{Workloads: []string{"produce", "consume"}, Transports: []string{"tcp", "rdma:softroce+udp"}, Rate: 500, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Results) != 6+2 { // three devices, with the aggregator and without; consume has no blocking sockets
		t.Errorf("%d rows", len(rep.Results))
	}
	for _, r := range rep.Results {
		if !r.Direct || r.Placement["proxy"] != "" || r.Workload == "produce" && r.Label == "" || r.Messages == 0 || *r.Lost != 0 || *r.Duplicated != 0 {
			t.Errorf("%s: %+v", r.Condition(), r)
		}
		if r.Workload == "produce" && (r.SendRTMicros == nil || r.SendRTMicros.P50 <= 0) {
			t.Errorf("%s: send RT %+v of %+v", r.Condition(), r.SendRTMicros, r.RTMicros)
		}
	}
}

// A file's lines are the messages, empty and large ones included.
func TestInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(file, []byte("\nshort\n\n"+strings.Repeat("x", 300_000)+"\nlast without newline"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, workload := range []string{"rtt", "stream", "throughput"} {
		rep, err := run(t, bench.Options{Workloads: []string{workload}, Input: file, Transports: []string{"dpdk"}, Connections: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rep.Results {
			if *r.Lost != 0 || *r.Duplicated != 0 || r.Messages == 0 {
				t.Errorf("%s: %+v", r.Condition(), r)
			}
		}
	}
}

// A rate beyond the means is reported as such, and its latencies show it.
func TestRateNotSustained(t *testing.T) {
	rep, err := run(t, bench.Options{Workloads: []string{"produce"}, Transports: []string{"tcp"}, Rate: 50_000_000, Duration: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rep.Results {
		if r.Sustained == nil || *r.Sustained {
			t.Errorf("%s: 50 million messages/s count as sustained", r.Condition())
		}
		// Nearly everything that was due was never sent: on average it waited half
		// the time.
		if r.RTMicros.P50 < 50_000 {
			t.Errorf("%s: p50 %.0f µs hides the messages that were due and not sent", r.Condition(), r.RTMicros.P50)
		}
	}
}

func TestNetns(t *testing.T) {
	if why := noNetns(); why != "" {
		t.Skip(why)
	}
	rep, err := run(t, bench.Options{Workloads: []string{"produce"}, Topology: "netns"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range rep.Results {
		seen[r.Workload+" "+r.Transport+" "+r.Device] = true
		if r.Topology != "netns" || !strings.Contains(r.Placement["broker"], "netns") || r.Placement["broker"] == r.Placement["client"] {
			t.Errorf("%s: %v", r.Condition(), r.Placement)
		}
	}
	want := []string{"produce tcp epoll", "produce rdma softroce+udp", "produce dpdk memif"}
	if err := afxdp.Probe(); err == nil {
		want = append(want, "produce dpdk afxdp:veth0")
	}
	for _, w := range want {
		if !seen[w] {
			t.Errorf("no row of %s", w)
		}
	}
}

// noNetns says why commands cannot run in network namespaces here; "": they can.
func noNetns() string {
	ns := fmt.Sprintf("mr-probe-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		return fmt.Sprintf("no network namespaces: %v: %s", err, out)
	}
	defer func() { _ = exec.Command("ip", "netns", "del", ns).Run() }()
	if out, err := exec.Command("ip", "netns", "exec", ns, "true").CombinedOutput(); err != nil {
		return fmt.Sprintf("ip netns exec does not work here: %v: %s", err, out)
	}
	return ""
}

// A device that is not there is told as skipped, with the names of those that are; a
// device may be called as in addresses.
func TestNoSuchDevice(t *testing.T) {
	rep, err := run(t, bench.Options{Workloads: []string{"rtt"}, Transports: []string{"rdma:rxe77"}})
	if !errors.Is(err, bench.ErrSkipped) || len(rep.Skipped) != 1 || len(rep.Results) != 0 ||
		!strings.Contains(rep.Skipped[0].Reason, "rxe77") || !strings.Contains(rep.Skipped[0].Fix, "softroce+udp") {
		t.Errorf("%v, %+v", err, rep)
	}
	// Of several, each is measured or told.
	rep, err = run(t, bench.Options{Workloads: []string{"rtt"}, Transports: []string{"rdma:softroce+udp", "rdma:rxe77", "rdma:softroce+packet"}, Quick: true, Duration: 20 * time.Millisecond})
	told := map[string]bool{}
	for _, r := range rep.Results {
		told[r.Device] = true
	}
	for _, s := range rep.Skipped {
		device, _, _ := strings.Cut(s.Reason, ":")
		told[device] = true
	}
	if !errors.Is(err, bench.ErrSkipped) || len(told) != 3 || !told["rxe77"] || !told["softroce+udp"] || !told["softroce+packet"] {
		t.Errorf("%v, skipped %+v, results %+v", err, rep.Skipped, rep.Results)
	}
	rep, err = run(t, bench.Options{Workloads: []string{"rtt"}, Transports: []string{"dpdk:net_memif"}, Quick: true, Duration: 20 * time.Millisecond})
	if err != nil && !errors.Is(err, bench.ErrSkipped) {
		t.Fatal(err)
	}
	for _, s := range rep.Skipped {
		if strings.Contains(s.Reason, "no such device") {
			t.Errorf("%+v", s)
		}
	}
}

// An impossible topology is told as skipped, with a fix.
func TestNetnsImpossible(t *testing.T) {
	t.Setenv("PATH", "")
	rep, err := run(t, bench.Options{Workloads: []string{"rtt"}, Topology: "netns"})
	if !errors.Is(err, bench.ErrSkipped) || len(rep.Skipped) == 0 || rep.Skipped[0].Fix == "" {
		t.Errorf("%v, skipped %+v", err, rep.Skipped)
	}
}

// An interrupt ends everything that runs.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	began := make(chan struct{})
	time.AfterFunc(10*time.Second, cancel) // if no step begins
	go func() {
		<-began
		time.Sleep(400 * time.Millisecond) // processes are up, and measuring
		cancel()
	}()
	topology := "local"
	if noNetns() == "" {
		topology = "netns"
	}
	_, err := bench.Run(ctx, bench.Options{
		Workloads: []string{"produce"}, Topology: topology, Transports: []string{"dpdk"}, Duration: time.Minute, Launcher: launcher(t), Progress: &firstStep{began: began},
	})
	if err == nil || ctx.Err() == nil {
		t.Errorf("it ended by itself: %v", err)
	}
	nothingLeft(t)
}

type firstStep struct {
	began chan struct{}
	once  bool
}

func (b *firstStep) Begin(int) {}
func (b *firstStep) Step(string) {
	if !b.once {
		b.once = true
		close(b.began)
	}
}
func (b *firstStep) End() {}

// A program that plays no roles fails every row, in words, and leaves nothing.
func TestLauncherFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := bench.Run(ctx, bench.Options{Workloads: []string{"serialize"}, Quick: true, Launcher: role.Launcher{Command: []string{"/bin/false"}}})
	if !errors.Is(err, bench.ErrFailed) || !strings.Contains(err.Error(), "client process") {
		t.Errorf("%v", err)
	}
	nothingLeft(t)
}

// A peer that is killed ends the other side's measurement; it never hangs.
func TestDeadPeer(t *testing.T) {
	l := launcher(t)
	l.TempDir = t.TempDir()
	for _, tt := range []struct{ kind, url string }{
		{"net", "tcp://127.0.0.1:0"}, {"tcp", "tcp://127.0.0.1:0"}, {"loop", "tcp://127.0.0.1:0"},
		{"udp", "rdma://127.0.0.1:0"}, {"loop", "rdma://127.0.0.1:0"}, {"port", "dpdk://127.0.0.1:0"}, {"loop", "dpdk://127.0.0.1:0"},
	} {
		t.Run(tt.kind+" "+tt.url[:4], func(t *testing.T) {
			t.Parallel()
			spec := role.Spec{URL: tt.url, Idle: "balanced", Size: 64, Duration: time.Minute}
			spec.Role = tt.kind + "-echo"
			echo, err := l.Start("broker", spec, role.Place{})
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Kill()
			ready, err := echo.Await(t.Context(), 20*time.Second, role.Ready)
			if err != nil {
				t.Fatal(err)
			}
			spec.Role, spec.URL = tt.kind+"-ping", ready.URL
			ping, err := l.Start("client", spec, role.Place{})
			if err != nil {
				t.Fatal(err)
			}
			defer ping.Kill()
			if _, err := ping.Await(t.Context(), 20*time.Second, role.Ready); err != nil {
				t.Fatal(err)
			}
			if err := ping.Tell(role.Start); err != nil {
				t.Fatal(err)
			}
			if _, err := ping.Await(t.Context(), 20*time.Second, role.Measuring); err != nil {
				t.Fatal(err)
			}
			echo.Kill()
			if _, err := ping.Await(t.Context(), 30*time.Second, role.Measured); err == nil || strings.Contains(err.Error(), "within 30s") {
				t.Errorf("the client does not notice: %v", err)
			}
		})
	}
}

// A broker that dies under load ends the measurement with an error.
func TestBrokerDies(t *testing.T) {
	l := launcher(t)
	l.TempDir = t.TempDir()
	start := func(spec role.Spec) (*role.Process, role.Event) {
		p, err := l.Start(spec.Role, spec, role.Place{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		e, err := p.Await(t.Context(), 20*time.Second, role.Ready)
		if err != nil {
			t.Fatal(err)
		}
		return p, e
	}
	spec := role.Spec{Idle: "balanced", Window: 64, Durability: "page-cache", DataDir: t.TempDir(), Duration: time.Minute}
	spec.Role, spec.URL = "broker", "rdma://127.0.0.1:0"
	broker, at := start(spec)
	spec.Role, spec.URL, spec.Upstream = "proxy", "tcp://127.0.0.1:0", at.URL
	_, at = start(spec)
	spec.Role, spec.URL = "producer", at.URL
	client, _ := start(spec)
	if err := client.Tell(role.Start); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Await(t.Context(), 20*time.Second, role.Measuring); err != nil {
		t.Fatal(err)
	}
	broker.Kill()
	if _, err := client.Await(t.Context(), 30*time.Second, role.Measured); err == nil || !strings.Contains(err.Error(), "not acknowledged") {
		t.Errorf("%v", err)
	}
}

func TestOptions(t *testing.T) {
	port, err := net.Listen("tcp", "127.0.0.1:0") // whatever is wrong is told before anything is started
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    bench.Options
		want string
	}{
		{"topology", bench.Options{Topology: "moon"}, "use local or netns"},
		{"workload", bench.Options{Workloads: []string{"rtt", "rttt"}}, `unknown workload "rttt"`},
		{"transport", bench.Options{Transports: []string{"udp"}}, "use tcp, rdma, dpdk"},
		{"size", bench.Options{Size: -1}, "negative"},
		{"rate", bench.Options{Rate: -1}, "negative"},
		{"endless rate", bench.Options{Rate: math.Inf(1)}, "at most"},
		{"connections", bench.Options{Connections: -1}, "negative"},
		{"duration", bench.Options{Duration: -1}, "negative"},
		{"size and input", bench.Options{Size: 1, Input: empty}, "exclude each other"},
		{"idle", bench.Options{Idle: "lazy"}, "lazy"},
		{"no such input", bench.Options{Input: empty + "x"}, "no such file"},
		{"empty input", bench.Options{Input: empty}, "holds no messages"},
		{"huge size", bench.Options{Size: 1 << 30}, "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bench.Run(t.Context(), tt.o)
			var u *bench.UsageError
			if !errors.As(err, &u) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want a usage error with %q", err, tt.want)
			}
		})
	}
}

// The JSON has the keys that scripts rely on.
func TestJSON(t *testing.T) {
	rep, err := run(t, bench.Options{Workloads: []string{"produce"}, Transports: []string{"rdma"}, Rate: 500, Duration: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := rep.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Machine map[string]any
		Results []map[string]any
		Skipped []any
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Skipped == nil || len(got.Results) == 0 {
		t.Fatalf("%v\n%s", err, out.String())
	}
	r := got.Results[0]
	for _, k := range []string{
		"workload", "transport", "topology", "device", "label", "layer", "idle", "batched", "flushPerMessage", "connections", "placement", "durability",
		"sustained", "messageBytes", "offeredRate", "messages", "seconds", "messagesPerSecond", "bytesPerSecond", "lost", "duplicated", "rtMicros",
		"sendRtMicros", "cpuMicrosPerMessage", "busyShare",
	} {
		if _, ok := r[k]; !ok {
			t.Errorf("no key %q in %v", k, r)
		}
	}
	cpu := r["cpuMicrosPerMessage"].(map[string]any)
	for _, k := range []string{"machine", "client", "proxy", "broker"} {
		if _, ok := cpu[k]; !ok {
			t.Errorf("no CPU time of %s in %v", k, cpu)
		}
	}
}
