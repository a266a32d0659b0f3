package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// connectPatience is how long a client waits for a broker or proxy to answer.
const connectPatience = 10 * time.Second

// dial connects a command to url.
func dial(cmd *cobra.Command, url string, compress serialize.Compression) (*broker.Client, error) {
	b, err := backendsFor(url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), connectPatience)
	defer cancel()
	log := logger(cmd)
	c, err := broker.Connect(ctx, broker.ClientConfig{URL: url, Backends: b, Compression: compress, Logger: log})
	if err != nil {
		return nil, err
	}
	if t, ok := c.Transport(); ok {
		log.Info("connected", "url", url, "device", t.Device, "label", t.Label, "reason", t.Reason, "note", t.Note, "durability", c.Durability())
	}
	return c, nil
}

// hangUp ends a client; what it produced is answered first.
func hangUp(c *broker.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownPatience)
	defer cancel()
	return c.Close(ctx)
}

func produceCommand() *cobra.Command {
	var to, topic, input, compress string
	cmd := &cobra.Command{
		Use:   "produce --to URL --topic T [--input FILE|-]",
		Short: "Store messages, one per line of a file",
		Long: `Store messages, one per line of a file, without its newline. The last line counts with or without one.
It ends when every message was acknowledged; otherwise it says which were not, with exit status 1.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to == "" || topic == "" {
				return usageError("produce needs --to URL, a proxy or broker, and --topic T")
			}
			how, err := compression(compress)
			if err != nil {
				return err
			}
			in := cmd.InOrStdin()
			if input != "-" {
				f, err := os.Open(input)
				if err != nil {
					return fmt.Errorf("--input: %w", err)
				}
				defer f.Close()
				in = f
			}
			c, err := dial(cmd, to, how)
			if err != nil {
				return err
			}
			report, err := produce(cmd.Context(), c, topic, in)
			err = errors.Join(err, hangUp(c))
			if report != "" {
				if s := c.Stats(); how != serialize.None {
					report += fmt.Sprintf("; %d of %d batches compressed with %s, %d bytes for %d", s.Compressed, s.Batches, how, s.Bytes, s.PlainBytes)
				}
				fmt.Fprintln(cmd.ErrOrStderr(), report)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "address of a proxy or broker: "+transportURLs())
	cmd.Flags().StringVar(&topic, "topic", "", "topic; it is made with its first message")
	cmd.Flags().StringVar(&input, "input", "-", "file of one message per line, - for standard input")
	addCompress(cmd, &compress, "batches, which are stored so")
	return cmd
}

// addCompress adds the flag for what batches of a command are compressed with.
func addCompress(cmd *cobra.Command, name *string, what string) {
	cmd.Flags().StringVar(name, "compress", serialize.None.String(), "compress "+what+": none, s2 (fast) or zstd (smaller); those that do not shrink stay as they are")
}

// compression is the one of that name, or a usage error.
func compression(name string) (serialize.Compression, error) {
	c, err := serialize.ParseCompression(name)
	if err != nil {
		return c, usageError("--compress: %w", err)
	}
	return c, nil
}

// produced counts what became of lines; token is the number of the line.
type produced struct {
	mu          sync.Mutex
	acked       int
	first, last int64 // offsets
	failed      int
	firstFailed uint64
	err         error // of it
	more        chan struct{}
}

func (p *produced) Complete(token uint64, offset int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if p.failed == 0 {
			p.firstFailed, p.err = token, err
		}
		p.failed++
	} else {
		if p.acked == 0 {
			p.first = offset
		}
		p.last = offset
		p.acked++
	}
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// failure says what was not stored.
func (p *produced) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == 0 {
		return nil
	}
	return fmt.Errorf("%d messages were not acknowledged, the first of line %d: %w", p.failed, p.firstFailed, p.err)
}

// wait returns when n lines have completed, in either way.
func (p *produced) wait(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		have := p.acked + p.failed
		p.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-p.more:
		case <-ctx.Done():
			return fmt.Errorf("interrupted: of %d messages sent %d are not answered yet", n, n-have)
		}
	}
}

// produce stores the lines of in. It stops reading at the first that fails.
func produce(ctx context.Context, c *broker.Client, topic string, in io.Reader) (report string, err error) {
	start := time.Now()
	done := &produced{more: make(chan struct{}, 1)}
	p, err := c.Producer(topic, done)
	if err != nil {
		return "", err
	}
	defer p.Close()
	lines := &lineReader{r: bufio.NewReaderSize(in, 1<<16), limit: netpoll.DefaultMaxMessageBytes}
	n := 0
	var bytes int64
	for done.failure() == nil {
		line, rerr := lines.next()
		if rerr != nil {
			if !errors.Is(rerr, io.EOF) {
				err = fmt.Errorf("line %d: %w", n+1, rerr)
			}
			break
		}
		r := serialize.Record{Value: line, Timestamp: time.Now().UnixMilli()}
		if err = p.Append(ctx, &r, uint64(n+1)); err != nil {
			err = fmt.Errorf("line %d: %w", n+1, err)
			break
		}
		n++
		bytes += int64(len(line))
	}
	err = errors.Join(err, done.wait(ctx, n), done.failure())
	done.mu.Lock()
	defer done.mu.Unlock()
	if done.acked == 0 {
		return "nothing was stored", err
	}
	return fmt.Sprintf("%d messages (%d bytes) stored in %s, offsets %d to %d, in %v", done.acked, bytes, topic, done.first, done.last,
		time.Since(start).Round(time.Millisecond)), err
}

// lineReader cuts r into lines of at most limit bytes.
type lineReader struct {
	r     *bufio.Reader
	limit int
	long  []byte
}

// next is the next line without its newline, valid until the next call; io.EOF
// after the last.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		l.long = l.long[:0]
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(l.long)+len(line) > l.limit {
				return nil, fmt.Errorf("longer than the %d bytes that a message can have", l.limit)
			}
			l.long = append(l.long, line...)
			line, err = l.r.ReadSlice('\n')
		}
		l.long = append(l.long, line...)
		line = l.long
	}
	switch {
	case err == nil:
		return line[:len(line)-1], nil
	case errors.Is(err, io.EOF) && len(line) > 0:
		return line, nil
	}
	return nil, err
}
