// Command millrace is the broker, the proxy, their clients, the benchmark and the
// doctor in one program.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/timerslack"
)

// version is set by the Makefile.
var version = "devel"

// Exit statuses. Anything that failed is 1, wrong usage 2, a transport that was
// asked for by name and cannot run 3, a benchmark's row worse than its baseline 4.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitSkipped = 3
	exitWorse   = 4
)

// exitError carries an exit status.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	if err := useSibling(args); err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
		return exitFailed
	}
	if len(args) > 0 && (args[0] == "broker" || args[0] == "proxy") {
		if err := timerslack.StartWith(timerslack.Server); err != nil {
			fmt.Fprintln(os.Stderr, "millrace: it takes more CPU time than it needs at low rates:", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	fmt.Fprintln(os.Stderr, "millrace:", err)
	var e *exitError
	if errors.As(err, &e) {
		return e.status
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "millrace",
		Short:         "The network path of a message broker over kernel TCP, RDMA and DPDK",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w (%s --help lists the flags)", err, cmd.CommandPath())
	})
	root.AddCommand(brokerCommand(), proxyCommand(), produceCommand(), consumeCommand(), benchCommand(), doctorCommand(), captureCommand(), decodeCommand(), roleCommand())
	return root
}

// noArgs refuses arguments with one line.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasParent() {
		return usageError("unknown command %q (%s --help lists the commands)", args[0], cmd.CommandPath())
	}
	return usageError("unexpected argument %q (%s takes flags only; see --help)", args[0], cmd.CommandPath())
}
