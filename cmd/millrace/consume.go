package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/serialize"
)

func consumeCommand() *cobra.Command {
	var from, topic, offset string
	var count uint64
	cmd := &cobra.Command{
		Use:   "consume --from URL --topic T [--offset N|earliest|latest] [--count N]",
		Short: "Write the messages of a topic, one per line",
		Long: `Write the messages of a topic, one per line. Without --count it follows the topic until interrupted;
a topic that does not exist yet is waited for.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" || topic == "" {
				return usageError("consume needs --from URL, a proxy or broker, and --topic T")
			}
			counted := cmd.Flags().Changed("count")
			if counted && count == 0 {
				return usageError("--count must be at least 1")
			}
			start, err := parseOffset(offset)
			if err != nil {
				return err
			}
			c, err := dial(cmd, from, serialize.None)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			out := newFlusher(cmd.OutOrStdout(), cancel)
			n, err := consume(ctx, c, topic, start, count, out, func() {
				logger(cmd).Info("waiting for the topic: nothing was produced to it yet", "topic", topic)
			})
			if errors.Is(err, context.Canceled) {
				err = nil // interrupted, as meant, or the output failed
				if counted && cmd.Context().Err() != nil {
					err = fmt.Errorf("interrupted after %d of %d messages", n, count)
				}
			}
			return errors.Join(err, out.close(), hangUp(c))
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "address of a proxy or broker: "+transportURLs())
	cmd.Flags().StringVar(&topic, "topic", "", "topic")
	cmd.Flags().StringVar(&offset, "offset", "earliest", "where to begin: a number, earliest, or latest (what comes from now on)")
	cmd.Flags().Uint64Var(&count, "count", 0, "end after so many messages")
	return cmd
}

// position is where to begin: at the offset that of picks among the topic's
// first and the one after its last.
type position func(earliest, latest uint64) uint64

func parseOffset(s string) (position, error) {
	switch s {
	case "earliest":
		return func(earliest, _ uint64) uint64 { return earliest }, nil
	case "latest":
		return func(_, latest uint64) uint64 { return latest }, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return nil, usageError("--offset %q: use a number, earliest or latest", s)
	}
	return func(uint64, uint64) uint64 { return n }, nil
}

const topicPoll = 100 * time.Millisecond

// consume writes count messages to out, or all that come if count is 0. n is how many
// it wrote.
func consume(ctx context.Context, c *broker.Client, topic string, start position, count uint64, out *flusher, waiting func()) (n uint64, err error) {
	earliest, latest, err := c.Offsets(ctx, topic)
	if errors.Is(err, wire.UnknownTopic) { // then all of it comes after we did: 0 to 0
		waiting()
		err = waitForTopic(ctx, c, topic)
	}
	if err != nil {
		return 0, err
	}
	err = c.Consume(ctx, topic, start(earliest, latest), func(_ uint64, r *serialize.Record) error {
		if err := out.line(r.Value); err != nil {
			return fmt.Errorf("standard output: %w", err)
		}
		if n++; n == count {
			return broker.ErrStop
		}
		return nil
	})
	return n, err
}

func waitForTopic(ctx context.Context, c *broker.Client, topic string) error {
	for {
		select {
		case <-time.After(topicPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, _, err := c.Offsets(ctx, topic); !errors.Is(err, wire.UnknownTopic) {
			return err
		}
	}
}

// flushAfter is how long a line may stay in the buffer.
const flushAfter = 10 * time.Millisecond

// flusher gathers lines and writes them soon.
type flusher struct {
	mu     sync.Mutex
	w      *bufio.Writer
	timer  *time.Timer
	armed  bool
	failed func()
}

// newFlusher writes to w, and calls failed when it cannot while no line comes: who follows
// a topic would wait for the next one in vain. line and close return the error.
func newFlusher(w io.Writer, failed func()) *flusher {
	f := &flusher{w: bufio.NewWriterSize(w, 1<<16), failed: failed}
	f.timer = time.AfterFunc(time.Hour, f.flush)
	return f
}

func (f *flusher) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
	if f.w.Flush() != nil { // the error stays in w
		f.failed()
	}
}

func (f *flusher) line(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _ = f.w.Write(b)
	err := f.w.WriteByte('\n') // the first error stays
	if !f.armed {
		f.armed = true
		f.timer.Reset(flushAfter)
	}
	return err
}

// close writes what is left.
func (f *flusher) close() error {
	f.timer.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.w.Flush()
}
