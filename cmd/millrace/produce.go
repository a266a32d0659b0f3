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
It ends when every message was acknowledged; otherwise it says which were not, with exit status 1. On SIGINT
or SIGTERM it reads no more, says from which line on nothing was sent, and stores what was.`,
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
			began := time.Now()
			done := &produced{more: make(chan struct{}, 1)}
			err = produce(cmd.Context(), c, topic, in, done)
			took := time.Since(began)
			err = errors.Join(err, hangUp(c)) // from here on all lines have completed
			report := done.report(topic, took)
			if s := c.Stats(); how != serialize.None {
				report += fmt.Sprintf("; %d of %d batches compressed with %s, %d bytes for %d", s.Compressed, s.Batches, how, s.Bytes, s.PlainBytes)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), report)
			return errors.Join(err, done.failure())
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

// report says what was stored, in the time that it took.
func (p *produced) report(topic string, took time.Duration) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.acked == 0 {
		return "nothing was stored"
	}
	return fmt.Sprintf("%d messages stored in %s, offsets %d to %d, in %v", p.acked, topic, p.first, p.last, took.Round(time.Millisecond))
}

// wait returns when n lines have completed, in either way, or ctx ends.
func (p *produced) wait(ctx context.Context, n int) {
	for {
		p.mu.Lock()
		have := p.acked + p.failed
		p.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-p.more:
		case <-ctx.Done():
			return
		}
	}
}

// produce sends the lines of in, and tells done what became of them. It stops reading at
// the first that fails, or when ctx ends.
func produce(ctx context.Context, c *broker.Client, topic string, in io.Reader, done *produced) error {
	p, err := c.Producer(topic, done)
	if err != nil {
		return err
	}
	defer p.Close()
	lines := &lineReader{r: bufio.NewReaderSize(&interruptible{ctx: ctx, r: in}, 1<<16), limit: netpoll.DefaultMaxMessageBytes}
	n := 0
	for done.failure() == nil {
		var line []byte
		if line, err = lines.next(); err == nil {
			err = p.Append(ctx, &serialize.Record{Value: line, Timestamp: time.Now().UnixMilli()}, uint64(n+1))
		}
		if err != nil {
			break
		}
		n++
	}
	switch {
	case errors.Is(err, io.EOF):
		err = nil
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return fmt.Errorf("interrupted: the input from line %d on was not sent", n+1)
	case err != nil:
		err = fmt.Errorf("line %d: %w", n+1, err)
	}
	done.wait(ctx, n)
	return err
}

// interruptible is r until ctx ends. What is read then is lost: a read of a terminal or
// of a pipe cannot be ended otherwise.
type interruptible struct {
	ctx context.Context
	r   io.Reader
	buf []byte
}

func (i *interruptible) Read(p []byte) (int, error) {
	if i.buf == nil {
		i.buf = make([]byte, 1<<16)
	}
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := i.r.Read(i.buf[:min(len(i.buf), len(p))])
		done <- result{n, err}
	}()
	select {
	case got := <-done:
		return copy(p, i.buf[:got.n]), got.err
	case <-i.ctx.Done():
		return 0, i.ctx.Err()
	}
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
