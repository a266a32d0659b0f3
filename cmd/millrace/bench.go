package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/bench"
	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
)

type benchFlags struct {
	options    bench.Options
	transports []string
	workload   string
	headline   bool
	json, html string
	baseline   string
	verbose    bool
}

func benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Compare kernel TCP, RDMA and DPDK on this machine",
		Long: `Compare kernel TCP, RDMA and DPDK on this machine, each role in a process of its own.

Workloads:
  rtt         ping-pong between two processes; layer port is the floor, a bare socket or port
  stream      one connection without a broker, one way, as fast as it goes: 256 B, 1 KiB and 64 KiB,
              sent one by one, and with a flush after each (what cannot leave at once may still be gathered)
  produce     client, proxy, broker, acknowledgement at a fixed rate, with the aggregator and with each
              message a request of its own; latency counts from the time
              at which a message was due, so that a stall shows in all messages that it delayed
  throughput  the same as fast as it goes, with the aggregator and with each message a request of its own
  matched     256 B, each message a request of its own, as fast as it goes, and then on every transport at
              the same load, half of what TCP was able to do: the cost of a message, and its round trip
  consume     reading a topic from its start
  serialize   the batch format beside others, on one core and two
Clients reach the proxy over TCP, the proxy reaches the broker over the transport under test; with --direct
there is no proxy. What was acknowledged is read back and compared, byte by byte. TCP runs through the
same event loop (epoll) and as ordinary blocking sockets (net). With --topology netns everything but dpdk
crosses a veth pair, and dpdk has rows of AF_XDP, which crosses it too; a memif port is shared memory, only
its connection's set-up crosses.

Exit status: 0; 1 if a measurement failed; 2 for wrong flags; 3 if a transport named with --transports
could not run (the others ran); 4 if, against --baseline, a row became worse by more than the spreads of
both runs' repetitions together (with --quick there is one repetition, no spread, and so no such row).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&f.transports, "transports", nil, "transports to compare: tcp,rdma,dpdk, or with one device only as rdma:mlx5_0, once for each (default all that can run here)")
	fl.StringVar(&f.options.Topology, "topology", "local", "local, or netns: two network namespaces joined by a veth pair (root)")
	fl.StringVar(&f.workload, "workload", "all", strings.Join(bench.Workloads, ", ")+" or all; several with commas")
	fl.IntVar(&f.options.Size, "size", 0, "bytes of every message (default 128 for rtt, as said for stream and matched, else the built-in sample)")
	fl.StringVar(&f.options.Input, "input", "", "file of real messages, one per line")
	fl.Float64Var(&f.options.Rate, "rate", 0, "messages per second of the produce workload (default 2000)")
	fl.IntVar(&f.options.Connections, "connections", 1, "connections of the client")
	fl.BoolVar(&f.options.Direct, "direct", false, "no proxy: clients reach the broker itself, over the transport under test")
	fl.StringVar(&f.options.Idle, "idle", "", "latency, balanced or efficient (default latency for rtt, efficient for matched, else balanced)")
	fl.DurationVar(&f.options.Duration, "duration", 0, "length of one measurement (default 0.7s, quick 0.4s)")
	fl.BoolVar(&f.options.Quick, "quick", false, "one repetition of each, done within a minute")
	fl.BoolVar(&f.headline, "headline", false, "print only the published claims as ratios of this run")
	fl.StringVar(&f.json, "json", "", "write the results as JSON to this file, - for standard output")
	fl.StringVar(&f.html, "html", "", "write the results as one page to this file")
	fl.StringVar(&f.baseline, "baseline", "", "compare with the run that --json wrote to this file, row by row")
	fl.BoolVar(&f.verbose, "verbose", false, "show what the processes log")
	cmd.AddCommand(benchDiffCommand())
	return cmd
}

func (f *benchFlags) run(cmd *cobra.Command) error {
	o := &f.options
	if cmd.Flags().Changed("transports") && len(f.transports) == 0 {
		return usageError("--transports names none: use tcp, rdma, dpdk")
	}
	o.Transports = f.transports
	if f.workload != "all" {
		o.Workloads = strings.Split(f.workload, ",")
	}
	for name, bad := range map[string]bool{
		"--size must be at least 1":        cmd.Flags().Changed("size") && o.Size < 1,
		"--rate must be above 0":           cmd.Flags().Changed("rate") && !(o.Rate > 0),
		"--connections must be at least 1": o.Connections < 1,
		"--duration must be above 0":       cmd.Flags().Changed("duration") && o.Duration <= 0,
	} {
		if bad {
			return usageError("%s", name)
		}
	}
	if f.headline && !cmd.Flags().Changed("workload") {
		o.Workloads = bench.HeadlineWorkloads
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o.Launcher = role.Launcher{Command: []string{self, roleName}}
	if f.verbose {
		o.Launcher.Log = cmd.ErrOrStderr()
	}
	o.Version = version
	o.Progress = newProgress(os.Stderr)
	// Found out before minutes of measuring, not after.
	var baseline *report.Report
	if f.baseline != "" {
		if baseline, err = report.Read(f.baseline); err != nil {
			return usageError("--baseline: %v", err)
		}
	}
	files, err := f.create()
	if err != nil {
		return err
	}
	rep, runErr := bench.Run(cmd.Context(), *o)
	var usage *bench.UsageError
	if errors.As(runErr, &usage) {
		files.discard()
		return &exitError{exitUsage, runErr}
	}
	if err := f.write(cmd, rep, files); err != nil {
		return errors.Join(runErr, err)
	}
	worse := 0
	if baseline != nil {
		people := f.people(cmd)
		fmt.Fprintf(people, "\nagainst %s:\n", f.baseline)
		if worse, err = report.WriteDiff(people, baseline, rep); err != nil {
			return errors.Join(runErr, err)
		}
	}
	if worse > 0 && (runErr == nil || errors.Is(runErr, bench.ErrSkipped)) && !errors.Is(runErr, bench.ErrFailed) && cmd.Context().Err() == nil {
		return &exitError{exitWorse, fmt.Errorf("%d rows became worse than in %s by more than the spread of the repetitions", worse, f.baseline)}
	}
	if errors.Is(runErr, bench.ErrSkipped) && !errors.Is(runErr, bench.ErrFailed) && cmd.Context().Err() == nil {
		return &exitError{exitSkipped, runErr}
	}
	return runErr
}

// outputs are the files that a run writes.
type outputs struct{ json, html *os.File }

func (f *benchFlags) create() (o outputs, err error) {
	if f.json != "" && f.json != "-" {
		if o.json, err = os.Create(f.json); err != nil {
			return o, fmt.Errorf("--json: %w", err)
		}
	}
	if f.html != "" {
		if o.html, err = os.Create(f.html); err != nil {
			o.discard()
			return o, fmt.Errorf("--html: %w", err)
		}
	}
	return o, nil
}

func (o *outputs) discard() {
	for _, f := range []*os.File{o.json, o.html} {
		if f != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}
}

func (f *benchFlags) write(cmd *cobra.Command, rep *report.Report, files outputs) error {
	people := f.people(cmd)
	if f.json == "-" {
		if err := rep.WriteJSON(cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	if err := closing(files.json, rep.WriteJSON); err != nil {
		return err
	}
	if err := closing(files.html, rep.WriteHTML); err != nil {
		return err
	}
	if f.headline {
		return rep.WriteHeadline(people)
	}
	return rep.WriteTable(people)
}

// people is where what is not JSON goes.
func (f *benchFlags) people(cmd *cobra.Command) io.Writer {
	if f.json == "-" {
		return cmd.ErrOrStderr()
	}
	return cmd.OutOrStdout()
}

func closing(f *os.File, write func(io.Writer) error) error {
	if f == nil {
		return nil
	}
	return errors.Join(write(f), f.Close())
}

func benchDiffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff A.json B.json",
		Short: "Show how the results of two runs differ",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError("bench diff takes two files that `millrace bench --json FILE` wrote")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := report.Read(args[0])
			if err != nil {
				return err
			}
			b, err := report.Read(args[1])
			if err != nil {
				return err
			}
			_, err = report.WriteDiff(cmd.OutOrStdout(), a, b)
			return err
		},
	}
}
