package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asMillrace makes the test binary the program itself.
const asMillrace = "MILLRACE_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv("GORACE") == "" { // a program built with -race sleeps a second when it exits
		os.Setenv("GORACE", "atexit_sleep_ms=20")
	}
	if os.Getenv(asMillrace) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), asMillrace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// call runs a command to its end.
func call(t *testing.T, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := command(t, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// server runs a command until the test ends, which it must do in order, and
// returns what it said it is ready at, and where its metrics are if it has some.
func server(t *testing.T, args ...string) (url, metrics string) {
	t.Helper()
	cmd := command(t, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	logs, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			said, _ := os.ReadFile(logs.Name())
			t.Errorf("millrace %s: %v\n%s", strings.Join(args, " "), err, said)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	said, _ := os.ReadFile(logs.Name())
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		t.Fatalf("millrace %s said %q, %v\n%s", strings.Join(args, " "), line, err, said)
	}
	if m := regexp.MustCompile(`http://\S+/metrics`).Find(said); m != nil {
		metrics = string(m)
	}
	return url, metrics
}

// Real messages come back as they went in, over every transport, directly and
// through a proxy, by the commands alone.
func TestProduceConsume(t *testing.T) {
	for _, name := range []string{"logs.txt", "events.ndjson"} {
		lines, err := os.ReadFile(filepath.Join("..", "..", "bench", "sample", name))
		if err != nil {
			t.Fatal(err)
		}
		want := string(lines)
		if name == "events.ndjson" { // the last line counts without its newline too
			lines = bytes.TrimSuffix(lines, []byte("\n"))
		}
		n := fmt.Sprint(strings.Count(want, "\n"))
		for _, scheme := range []string{"tcp", "rdma", "dpdk"} {
			t.Run(name+"/"+scheme, func(t *testing.T) {
				broker, _ := server(t, "broker", "--listen", scheme+"://127.0.0.1:0", "--data", t.TempDir())
				proxy, metrics := server(t, "proxy", "--listen", "tcp://127.0.0.1:0", "--broker", broker, "--metrics", "127.0.0.1:0")
				for _, url := range []string{broker, proxy} {
					topic := strings.NewReplacer(":", "-", "/", "").Replace(url)
					if _, said, status := call(t, string(lines), "produce", "--to", url, "--topic", topic); status != 0 {
						t.Fatalf("produce: exit status %d\n%s", status, said)
					}
					got, said, status := call(t, "", "consume", "--from", url, "--topic", topic, "--count", n)
					if status != 0 || got != want {
						t.Fatalf("consume: exit status %d, %d bytes of %d\n%s", status, len(got), len(want), said)
					}
					got, _, status = call(t, "", "consume", "--from", url, "--topic", topic, "--offset", "3", "--count", "1")
					if line := strings.SplitAfter(want, "\n")[3]; status != 0 || got != line {
						t.Errorf("offset 3: exit status %d, got %q, want %q", status, got, line)
					}
				}
				r, err := http.Get(metrics)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Body.Close()
				page, err := io.ReadAll(r.Body)
				if want := fmt.Sprintf(`transport="%s"} 1`, scheme); err != nil || !strings.Contains(string(page), want) || !strings.Contains(string(page), "millrace_proxy_send_rt_seconds_count") {
					t.Errorf("metrics lack %s: %v\n%s", want, err, page)
				}
			})
		}
	}
}

// page is what a server's metrics say now.
func page(t *testing.T, metrics string) string {
	t.Helper()
	r, err := http.Get(metrics)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// metric is the value of a metric of one line.
func metric(t *testing.T, page, name string) (value float64) {
	t.Helper()
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no metric %s in\n%s", name, page)
	return 0
}

// Compressed messages come back as they went in, and the metrics show what was
// saved.
func TestCompress(t *testing.T) {
	lines, err := os.ReadFile(filepath.Join("..", "..", "bench", "sample", "logs.txt"))
	if err != nil {
		t.Fatal(err)
	}
	broker, stored := server(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir(), "--metrics", "127.0.0.1:0")
	proxy, sent := server(t, "proxy", "--listen", "tcp://127.0.0.1:0", "--broker", broker, "--metrics", "127.0.0.1:0", "--compress", "s2")
	n := fmt.Sprint(bytes.Count(lines, []byte("\n")))
	for topic, how := range map[string]string{"a": "s2", "b": "zstd", "c": "none"} {
		_, said, status := call(t, string(lines), "produce", "--to", proxy, "--topic", topic, "--compress", how)
		if status != 0 || (how == "none") == strings.Contains(said, "compressed with "+how) {
			t.Fatalf("produce --compress %s: exit status %d\n%s", how, status, said)
		}
		if got, said, status := call(t, "", "consume", "--from", proxy, "--topic", topic, "--count", n); status != 0 || got != string(lines) {
			t.Fatalf("consume: exit status %d, %d bytes of %d\n%s", status, len(got), len(lines), said)
		}
	}
	p := page(t, stored)
	if small, plain := metric(t, p, "millrace_broker_stored_bytes_total"), metric(t, p, "millrace_broker_stored_plain_bytes_total"); small > 0.8*plain {
		t.Errorf("%.0f bytes are stored for %.0f", small, plain)
	}
	if n := metric(t, page(t, sent), "millrace_aggregator_passed_batches_total"); n == 0 {
		t.Error("the proxy passed no batch on as it came")
	}
}

// A server's metrics show its memory: how much it may take, how much it took, and
// what for.
func TestMemoryMetrics(t *testing.T) {
	broker, metrics := server(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir(), "--metrics", "127.0.0.1:0", "--memory", "64MiB")
	if _, said, status := call(t, "x", "produce", "--to", broker, "--topic", "t"); status != 0 {
		t.Fatal(said)
	}
	p := page(t, metrics)
	limit := regexp.MustCompile(`millrace_memory_bytes\{backing="[^"]+"\} (\S+)`).FindStringSubmatch(p)
	if limit == nil || limit[1] != "6.7108864e+07" {
		t.Errorf("the limit is %q, want 64 MiB", limit)
	}
	if backed := metric(t, p, "millrace_memory_backed_bytes"); backed == 0 || backed > 32<<20 {
		t.Errorf("%.0f bytes are backed after one message", backed)
	}
	for _, purpose := range []string{"receive", "send", "batch", "frame", "other"} {
		metric(t, p, fmt.Sprintf(`millrace_buffer_bytes{purpose="%s"}`, purpose))
	}
	for name, least := range map[string]float64{
		`millrace_buffer_peak_bytes{purpose="send"}`: 256, "millrace_memory_undivided_bytes": 1 << 20,
		`millrace_buffer_slots{bytes="256"}`: 1, `millrace_buffer_free_slots{bytes="256"}`: 1, "millrace_buffer_exhausted_total": 0,
	} {
		if v := metric(t, p, name); v < least {
			t.Errorf("%s is %.0f, want at least %.0f", name, v, least)
		}
	}
}

func TestByteSize(t *testing.T) {
	for in, want := range map[string]string{"64MiB": "64MiB", "1024MiB": "1GiB", "65537KiB": "65537KiB", "7B": "7B", "0GiB": "0B"} {
		var b byteSize
		if err := b.Set(in); err != nil || b.String() != want {
			t.Errorf("%s is %s, %v, want %s", in, b.String(), err, want)
		}
	}
	for _, in := range []string{"", "64", "-1MiB", "1.5GiB", "9999999999999GiB", "MiB", "1TB", "99999999999999999999B"} {
		var b byteSize
		if err := b.Set(in); err == nil {
			t.Errorf("%q is %s", in, b.String())
		}
	}
}

// A consumer that comes first waits for the topic, follows it and ends in order
// when interrupted.
func TestConsumeFollows(t *testing.T) {
	broker, _ := server(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir())
	cmd := command(t, "consume", "--from", broker, "--topic", "t", "--offset", "latest")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(logs); s.Scan() && !strings.Contains(s.Text(), "waiting for the topic"); {
	}
	go func() { _, _ = io.Copy(io.Discard, logs) }()
	if _, said, status := call(t, "one\n\ntwo", "produce", "--to", broker, "--topic", "t"); status != 0 || !strings.Contains(said, "3 messages") {
		t.Fatalf("produce: %d %s", status, said)
	}
	r := bufio.NewReader(out)
	for _, want := range []string{"one\n", "\n", "two\n"} {
		if got, err := r.ReadString('\n'); got != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	_ = cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Errorf("interrupted consume: %v", err)
	}
}

// A consumer whose output fails ends, though nothing more comes that it would have to write.
func TestOutputFails(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	broker, _ := server(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir())
	if _, said, status := call(t, "x", "produce", "--to", broker, "--topic", "t"); status != 0 {
		t.Fatal(said)
	}
	cmd := command(t, "consume", "--from", broker, "--topic", "t")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = full, &said
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(said.String(), "no space left") {
		t.Errorf("exit status %d: %s", code, said.String())
	}
}

// A producer that is interrupted while it waits for input ends, and what it has read is
// stored; a consumer that has not got its count says so.
func TestInterrupt(t *testing.T) {
	broker, _ := server(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir())
	producer := command(t, "produce", "--to", broker, "--topic", "t")
	in, err := producer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	consumer := command(t, "consume", "--from", broker, "--topic", "t", "--count", "3")
	out, err := consumer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := map[*exec.Cmd]*bytes.Buffer{producer: {}, consumer: {}}
	for c, b := range said {
		c.Stderr = b
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(in, "one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for _, want := range []string{"one\n", "two\n"} {
		if got, err := r.ReadString('\n'); got != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	for c, want := range map[*exec.Cmd]string{
		producer: "2 messages stored in t, offsets 0 to 1, in",
		consumer: "millrace: interrupted after 2 of 3 messages",
	} {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
		if got := said[c].String(); c.ProcessState.ExitCode() != exitFailed || !strings.Contains(got, want) || !strings.Contains(got, "millrace: interrupted") {
			t.Errorf("exit status %d, want %d and %q in\n%s", c.ProcessState.ExitCode(), exitFailed, want, got)
		}
	}
	if got := said[producer].String(); !strings.Contains(got, "from line 3 on was not sent") {
		t.Error(got)
	}
}

// What is wrong is said in one line that names the fix, with the exit status of
// its kind, and nothing hangs.
func TestErrors(t *testing.T) {
	broker, _ := server(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir())
	if _, said, status := call(t, "x", "produce", "--to", broker, "--topic", "t"); status != 0 {
		t.Fatal(said)
	}
	locked := t.TempDir()
	server(t, "broker", "--listen", "tcp://127.0.0.1:0", "--data", locked)
	foreign := httpServer(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		stdin  string
		status int
		say    string
	}{
		"unknown flag":         {args: []string{"broker", "--dat", "x"}, status: 2, say: "--help lists the flags"},
		"no data":              {args: []string{"broker"}, status: 2, say: "--data DIR"},
		"data is a file":       {args: []string{"broker", "--listen", "tcp://127.0.0.1:0", "--data", file}, status: 1, say: file},
		"data in use":          {args: []string{"broker", "--listen", "tcp://127.0.0.1:0", "--data", locked}, status: 1, say: "another"},
		"port in use":          {args: []string{"broker", "--listen", broker, "--data", t.TempDir()}, status: 1, say: "address already in use"},
		"no URL":               {args: []string{"broker", "--listen", "localhost", "--data", t.TempDir()}, status: 2, say: "tcp://127.0.0.1:7000"},
		"no port":              {args: []string{"produce", "--to", "tcp://127.0.0.1", "--topic", "t"}, status: 2, say: "needs a port"},
		"unknown transport":    {args: []string{"broker", "--listen", "quic://127.0.0.1:0", "--data", t.TempDir()}, status: 2, say: "use tcp, rdma, dpdk"},
		"bad durability":       {args: []string{"broker", "--durability", "x", "--data", t.TempDir()}, status: 2, say: "page-cache"},
		"bad idle":             {args: []string{"proxy", "--idle", "x", "--broker", broker}, status: 2, say: "latency, balanced or efficient"},
		"proxy without broker": {args: []string{"proxy"}, status: 2, say: "--broker URL"},
		"metrics port in use":  {args: []string{"broker", "--listen", "tcp://127.0.0.1:0", "--data", t.TempDir(), "--metrics", strings.TrimPrefix(broker, "tcp://")}, status: 1, say: "--metrics"},
		"little memory":        {args: []string{"broker", "--data", t.TempDir(), "--memory", "1MiB"}, status: 2, say: "at least 32MiB"},
		"bad memory":           {args: []string{"broker", "--data", t.TempDir(), "--memory", "lots"}, status: 2, say: "64MiB or 1GiB"},
		"bad compression":      {args: []string{"produce", "--to", broker, "--topic", "t", "--compress", "gzip"}, status: 2, say: "s2 or zstd"},
		"no topic":             {args: []string{"produce", "--to", broker}, status: 2, say: "--topic T"},
		"bad topic":            {args: []string{"produce", "--to", broker, "--topic", "a/b"}, status: 1, say: "topic"},
		"no input":             {args: []string{"produce", "--to", broker, "--topic", "t", "--input", file + "x"}, status: 1, say: "no such file"},
		"nobody listens":       {args: []string{"produce", "--to", "tcp://127.0.0.1:1", "--topic", "t"}, status: 1, say: "connection refused"},
		"no rdma there":        {args: []string{"produce", "--to", "rdma://127.0.0.1:1", "--topic", "t"}, status: 1, say: "connection refused"},
		"another protocol":     {args: []string{"produce", "--to", "tcp://" + foreign, "--topic", "t"}, status: 1, say: "tcp://" + foreign},
		"rdma on a tcp port":   {args: []string{"produce", "--to", strings.Replace(broker, "tcp", "rdma", 1), "--topic", "t"}, status: 1, say: "rdma://"},
		"line too long":        {args: []string{"produce", "--to", broker, "--topic", "t"}, stdin: "short\n" + strings.Repeat("x", 5<<20), status: 1, say: "line 2"},
		"bad offset":           {args: []string{"consume", "--from", broker, "--topic", "t", "--offset", "-1"}, status: 2, say: "earliest"},
		"offset beyond":        {args: []string{"consume", "--from", broker, "--topic", "t", "--offset", "99"}, status: 1, say: "offset out of range"},
		"count 0":              {args: []string{"consume", "--from", broker, "--topic", "t", "--count", "0"}, status: 2, say: "--count"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, said, status := call(t, c.stdin, c.args...)
			lines := strings.Split(strings.TrimSpace(said), "\n")
			if last := lines[len(lines)-1]; status != c.status || !strings.Contains(said, c.say) || !strings.HasPrefix(last, "millrace:") && !strings.Contains(said, "millrace: ") {
				t.Errorf("exit status %d, want %d, and %q in:\n%s", status, c.status, c.say, said)
			}
		})
	}
}

// httpServer is a server of another protocol.
func httpServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	return ln.Addr().String()
}
