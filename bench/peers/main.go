// Command peers compares the TCP loop of millrace with other event loops in Go: gnet
// and cloudwego's netpoll. It is a module of its own, so that no user of the library
// downloads them. From the top of the repository: make bench-peers, or
//
//	cd bench/peers && go run . -repeat 5 -size 128,1024 -connections 64
//
// Every server is a process on one CPU, the client, which is the same for all, one on
// another. All speak the wire format of tcp://, a 4-byte length in front of each
// message, and copy each answer once. The client spins, so that nobody waits for its
// wake-ups. Workloads:
//
//	echo     each connection has one message under way
//	echo16   each connection has sixteen, and sends as many as came back with one write
//	stream   one way; the server acknowledges every 128 KiB of messages
//
// Servers take turns within each repetition, a new process each time. The table has the
// medians. CPU is the server's own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/role"
)

// serve is the argument with which this program starts its own parts.
const serve = "serve"

// servers in the order of their turns.
var servers = []string{"millrace", "millrace-latency", "millrace-efficient", "gnet", "netpoll"}

// depths of the workloads: messages under way on each connection; 0: a stream.
var depths = map[string]int{"echo": 1, "echo16": 16, "stream": 0}

type options struct {
	servers, workloads []string
	sizes, connections []int
	repeat, procs      int
	duration, warmup   time.Duration
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == serve {
		roles := map[string]role.Func{"client": client, "gnet": serveGnet, "netpoll": serveNetpoll}
		for _, name := range servers[:3] {
			roles[name] = serveMillrace
		}
		os.Exit(role.Serve(os.Stdin, os.Stdout, roles))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	fs := flag.NewFlagSet("peers", flag.ContinueOnError)
	which := fs.String("server", strings.Join(servers, ","), "servers to compare; ratios are to the first")
	workload := fs.String("workload", "echo,echo16,stream", "workloads")
	size := fs.String("size", "128,1024,65536", "bytes of a message")
	connections := fs.String("connections", "1,64", "connections")
	fs.IntVar(&o.repeat, "repeat", 3, "repetitions, of which the medians are reported")
	fs.IntVar(&o.procs, "procs", 2, "GOMAXPROCS of the servers, each on one CPU; the one that spins has 1")
	fs.DurationVar(&o.duration, "duration", 300*time.Millisecond, "of one measurement")
	fs.DurationVar(&o.warmup, "warmup", 100*time.Millisecond, "before each measurement")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	numbers := func(s string) (out []int) {
		for _, f := range strings.Split(s, ",") {
			n, perr := strconv.Atoi(f)
			if perr != nil || n < 1 || n > 1<<20 {
				err = fmt.Errorf("%q: want numbers from 1 to %d, separated by commas", s, 1<<20)
			}
			out = append(out, n)
		}
		return out
	}
	o.sizes, o.connections = numbers(*size), numbers(*connections)
	o.servers, o.workloads = strings.Split(*which, ","), strings.Split(*workload, ",")
	for _, w := range o.workloads {
		if _, ok := depths[w]; !ok {
			err = fmt.Errorf("no workload %q", w)
		}
	}
	if o.repeat < 1 || o.procs < 1 || o.duration <= 0 {
		err = errors.New("-repeat, -procs and -duration must be positive")
	}
	return o, err
}

// figures of one server, a value for each repetition.
type figures struct{ rate, p50, p99, cpu []float64 }

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cpus, err := role.AllowedCPUs()
	if err != nil {
		return err
	}
	if len(cpus) < 2 {
		return fmt.Errorf("only CPU %v may be used: a spinning client and a server need one each", cpus)
	}
	// gnet writes to standard output, which a role talks to its parent on.
	if err := os.Setenv("GNET_LOGGING_LEVEL", "2"); err != nil {
		return err
	}
	launcher := &role.Launcher{Command: []string{exe, serve}}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "workload\tbytes\tconns\tserver\tmessages/s\tratio\tp50 µs\tratio\tp99 µs\tCPU µs/message\tratio\tspread\t")
	for _, workload := range o.workloads {
		for _, size := range o.sizes {
			for _, conns := range o.connections {
				rows := make([]figures, len(o.servers))
				for range o.repeat {
					for i, server := range o.servers {
						s := role.Spec{Role: server, Size: size, Connections: conns, Window: depths[workload], Duration: o.duration, Warmup: o.warmup, Workers: o.procs}
						if err := measureOnce(ctx, launcher, cpus, s, &rows[i]); err != nil {
							return fmt.Errorf("%s, %s of %d bytes on %d connections: %w", server, workload, size, conns, err)
						}
					}
				}
				table(out, fmt.Sprintf("%s\t%d\t%d", workload, size, conns), o.servers, rows)
			}
		}
	}
	return nil
}

// table writes a row for each server; ratios are to the first.
func table(out *tabwriter.Writer, conditions string, names []string, rows []figures) {
	m := measure.Median
	value := func(v []float64, format string) string {
		if len(v) == 0 {
			return "-" // a stream has no round trips
		}
		return fmt.Sprintf(format, m(v))
	}
	ratio := func(a, b []float64) string {
		if m(b) == 0 {
			return "-"
		}
		return fmt.Sprintf("%.2f", m(a)/m(b))
	}
	for i, f := range rows {
		fmt.Fprintf(out, "%s\t%s\t%.0f\t%s\t%s\t%s\t%s\t%.3f\t%s\t%.2f\t\n", conditions, names[i], m(f.rate), ratio(f.rate, rows[0].rate),
			value(f.p50, "%.1f"), ratio(f.p50, rows[0].p50), value(f.p99, "%.1f"), m(f.cpu), ratio(f.cpu, rows[0].cpu), measure.Spread(f.rate))
	}
	_ = out.Flush()
}

// stepTimeout bounds each step of a process, beside its measurement.
const stepTimeout = 10 * time.Second

func measureOnce(ctx context.Context, l *role.Launcher, cpus []int, spec role.Spec, f *figures) error {
	addr, err := freeAddress()
	if err != nil {
		return err
	}
	spec.URL = addr
	server, err := l.Start("server", spec, role.Place{CPUs: cpus[1:2]})
	if err != nil {
		return err
	}
	defer server.Kill()
	if _, err := server.Await(ctx, stepTimeout, role.Ready); err != nil {
		return err
	}
	spec.Role = "client"
	client, err := l.Start("client", spec, role.Place{CPUs: cpus[:1]})
	if err != nil {
		return err
	}
	defer client.Kill()
	if _, err := client.Await(ctx, stepTimeout, role.Ready); err != nil {
		return err
	}
	if err := client.Tell(role.Start); err != nil {
		return err
	}
	if _, err := client.Await(ctx, stepTimeout+spec.Warmup, role.Measuring); err != nil {
		return err
	}
	before, err := server.CPU()
	if err != nil {
		return err
	}
	// At least one message is waited for, however long spec.Duration is.
	e, err := client.Await(ctx, stepTimeout+spec.Duration, role.Measured)
	if err != nil {
		return err
	}
	after, err := server.CPU()
	if err != nil {
		return err
	}
	if e.Result == nil || e.Result.Messages == 0 || e.Result.Elapsed <= 0 {
		return errors.New("the client has no result")
	}
	f.rate = append(f.rate, float64(e.Result.Messages)/e.Result.Elapsed.Seconds())
	f.cpu = append(f.cpu, float64((after-before).Nanoseconds())/1e3/float64(e.Result.Messages))
	if q := e.Result.RT; q != nil {
		f.p50, f.p99 = append(f.p50, q.P50), append(f.p99, q.P99)
	}
	return nil
}

// freeAddress is one that nobody listened at a moment ago: not every server can be
// asked which port it was given.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}
