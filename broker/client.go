package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// ClientConfig configures a Client. The zero value of a field means its default;
// only URL has none.
type ClientConfig struct {
	// URL is the address of a proxy or broker, over any of the Backends.
	URL string
	// Backends are the transports. They are the client's from Connect on. Default:
	// TCP.
	Backends []netpoll.Backend
	// Idle is the loop's idle policy. Default netpoll.Balanced().
	Idle netpoll.IdlePolicy
	// Pool supplies all buffers; see Config.Pool. Default: an elastic arena of up to
	// 128 MiB of its own.
	Pool *hugepages.Pool
	// MaxMessageBytes is the largest message in either direction, and the largest
	// batch that Consume decompresses; see Config.MaxMessageBytes. Default 4 MiB.
	MaxMessageBytes int
	// Batch configures the aggregator of each topic. Pool, OnWritable, Compressor and
	// Counters are the client's.
	Batch batcher.Options
	// Compression is how batches are compressed when they close, on the client's
	// loop; those that do not shrink stay as they are. The broker stores them so.
	// Default serialize.None.
	Compression serialize.Compression
	// OnSendRT, if set, is told for every batch how many nanoseconds after it was
	// sent its acknowledgement came. On the client's loop.
	OnSendRT func(nanos int64)
	// Logger takes what no caller can be told. Default slog.Default().
	Logger *slog.Logger
}

// Client produces to and consumes from a broker, directly or through a proxy,
// over one connection and with a loop of its own. Its methods may be called on
// any goroutine but the loop's.
//
// When the connection is lost, or requests have waited for 45 s while nothing came, the
// client dials again and again. Records without an answer complete with an error:
// wire.OutcomeUnknown if they were sent, else wire.BrokerUnreachable, as all records do
// until there is a connection again. It never sends anything twice.
type Client struct {
	host    *host
	link    *link
	trim    *trimmer
	closing atomic.Bool
}

// Connect connects to a broker or proxy and waits until both ends agreed on the
// protocol. The caller owes a Close.
func Connect(ctx context.Context, cfg ClientConfig) (*Client, error) {
	if cfg.URL == "" {
		return nil, errors.New("broker: ClientConfig.URL is empty: name the address of a proxy or broker, for instance tcp://127.0.0.1:7070")
	}
	defaultTo(&cfg.MaxMessageBytes, netpoll.DefaultMaxMessageBytes)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	h, err := newHost(netpoll.Options{
		Backends: cfg.Backends, Idle: cfg.Idle, Pool: cfg.Pool, MaxMessageBytes: cfg.MaxMessageBytes, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	l, err := newLink(h, linkConfig{url: cfg.URL, role: wire.RoleClient, maxFrame: cfg.MaxMessageBytes, batch: cfg.Batch, compress: cfg.Compression, log: cfg.Logger})
	if err != nil {
		return nil, errors.Join(err, stopNow(h))
	}
	l.onSendRT = cfg.OnSendRT
	c := &Client{host: h, link: l, trim: newTrimmer(h.loop, h.pool)}
	first := make(chan error, 1)
	tell := func(err error) {
		select {
		case first <- err:
		default: // later ones are in the answers
		}
	}
	l.onUp = func() { tell(nil) }
	l.onDown = tell
	err = h.loop.Do(func() {
		h.loop.AtCycleEnd(c.cycleEnd)
		l.dial()
	})
	if err == nil {
		select {
		case err = <-first:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = h.loop.Do(l.close)
		return nil, errors.Join(fmt.Errorf("broker: connect to %s: %w", cfg.URL, err), stopNow(h))
	}
	return c, nil
}

// cycleEnd gathers what the producers staged, and sends it.
func (c *Client) cycleEnd(now int64) (deadline int64) {
	c.link.eachLane(func(la *lane) {
		if la.inbox != nil && la.inbox.Drain(now) > 0 {
			c.link.touched = true
		}
	})
	c.link.flush(now)
	c.trim.cycleEnd()
	deadline = c.link.deadline()
	for _, la := range c.link.order {
		if la.inbox == nil {
			continue
		}
		if at := la.inbox.NextDeadline(); at != 0 && (deadline == 0 || at < deadline) {
			deadline = at
		}
	}
	return deadline
}

// wake makes the loop run a duty cycle. If its queue is full one runs anyway.
func (c *Client) wake() { _ = c.host.loop.Submit(func() {}) }

// Loop is the client's loop, for its Stats.
func (c *Client) Loop() *netpoll.Loop { return c.host.loop }

// Stats count what was sent. Any goroutine.
func (c *Client) Stats() LinkStats { return c.link.stats() }

// Transport is what the connection runs on, and why; ok is false while there is
// none.
func (c *Client) Transport() (t netpoll.Transport, ok bool) { return c.link.transport() }

// Durability is what the broker's acknowledgements mean.
func (c *Client) Durability() seglog.Durability {
	var d seglog.Durability
	_ = c.host.loop.Do(func() { d = seglog.Durability(c.link.peer.Durability) })
	return d
}

// handOver runs try on the loop's goroutine, again in a while as long as it
// answers that there is no room, and returns its result. What try reads is not
// read any more when handOver has returned.
func (c *Client) handOver(ctx context.Context, try func() error) error {
	const (
		waiting = iota
		running
		abandoned
	)
	var state atomic.Int32
	done := make(chan error, 1)
	var step func()
	step = func() {
		if !state.CompareAndSwap(waiting, running) {
			return
		}
		err := try()
		if busy(err) {
			state.Store(waiting)
			c.host.loop.After(retryAfter, step)
			return
		}
		done <- err
	}
	if c.host.loop.Do(step) != nil {
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		// Not while try is running.
		for !state.CompareAndSwap(waiting, abandoned) {
			select {
			case err := <-done:
				return err
			case <-c.host.loop.Done():
				return last(done, ErrClosed)
			case <-time.After(retryAfter):
			}
		}
		return ctx.Err()
	case <-c.host.loop.Done():
		return last(done, ErrClosed)
	}
}

// last is what arrived in ch before the loop ended, else other.
func last[T any](ch <-chan T, other T) T {
	select {
	case v := <-ch:
		return v
	default:
		return other
	}
}

// Close sends what was appended, waits until it is answered or ctx ends, and
// closes the connection. Producers and Consumes end with an error. What has no
// answer by then completes: records that were sent with wire.OutcomeUnknown, others
// with wire.BrokerUnreachable or batcher.ErrCloseTimeout.
func (c *Client) Close(ctx context.Context) error {
	if c.closing.Swap(true) {
		return nil
	}
	loop := c.host.loop
	// The aggregators' own deadline does not tell what was sent from what was not:
	// the link is closed before it.
	settle(ctx, loop, func() { c.endLanes(math.MaxInt64) }, c.idle)
	_ = loop.Do(func() {
		c.link.close()
		c.endLanes(loop.Now())
		c.cycleEnd(loop.Now())
	})
	return c.host.stop(ctx)
}

func (c *Client) endLanes(deadline int64) {
	for _, la := range c.link.order {
		if la.inbox != nil {
			la.inbox.Close(deadline)
		} else {
			la.batcher.Close(deadline)
		}
	}
	c.link.touched = true
}

// idle says that everything produced is answered.
func (c *Client) idle() bool {
	for _, la := range c.link.order {
		if la.inbox != nil && !la.inbox.Idle() || la.batcher.Pending() > 0 {
			return false
		}
	}
	return true
}

// Producer appends records to one topic; for one goroutine at a time.
type Producer struct {
	client *Client
	lane   *lane
	in     *batcher.Producer
	to     batcher.Completer
	closed bool
}

// Producer opens a producer of a topic; to is told what became of each record, on
// the client's loop, in the order of appending.
func (c *Client) Producer(topic string, to batcher.Completer) (*Producer, error) {
	if err := seglog.CheckTopicName(topic); err != nil {
		return nil, err
	}
	p := &Producer{client: c, to: to}
	err := c.handOver(context.Background(), func() error {
		if c.closing.Load() {
			return ErrClosed
		}
		var err error
		if p.lane, err = c.link.lane(topic); err != nil {
			return err
		}
		if p.lane.inbox == nil {
			if err = p.lane.addInbox(c.wake); err != nil {
				return err
			}
		}
		p.in, err = p.lane.inbox.Producer(to)
		if errors.Is(err, batcher.ErrFull) { // which means "not now" to handOver
			err = fmt.Errorf("broker: topic %s: %d producers are open: close some, or share them", topic, p.lane.inbox.Producers())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Append takes a copy of r; the producer's Completer is told with token what
// became of it. It blocks while the aggregator is full, and may send r itself, if the
// client's loop sleeps. On error nothing was
// taken: ctx's, ErrClosed, ErrValueTooLarge, or for a record that is too large to
// be aggregated and goes on its own, what it was refused with.
func (p *Producer) Append(ctx context.Context, r *serialize.Record, token uint64) error {
	for {
		if p.closed {
			return ErrClosed
		}
		err := p.in.Append(r, token)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, batcher.ErrFull):
			err = p.in.Wait(ctx)
		case errors.Is(err, serialize.ErrRecordTooLarge):
			if err = p.appendLarge(ctx, r, token); err == nil {
				return nil
			}
		}
		if errors.Is(err, batcher.ErrClosed) {
			return ErrClosed
		}
		if err != nil {
			return err
		}
	}
}

// appendLarge hands a record over that the aggregator does not take, after all
// that was appended before.
func (p *Producer) appendLarge(ctx context.Context, r *serialize.Record, token uint64) error {
	return p.client.handOver(ctx, func() error {
		if p.client.closing.Load() {
			return ErrClosed
		}
		if !p.lane.inbox.Seal(p.client.host.loop.Now()) {
			return batcher.ErrFull
		}
		return p.lane.append(r, batcher.Completion{To: p.to, Token: token})
	})
}

// TryAppend is Append that answers batcher.ErrFull where Append blocks, and for a
// record that is too large to be aggregated serialize.ErrRecordTooLarge.
func (p *Producer) TryAppend(r *serialize.Record, token uint64) error {
	err := p.in.Append(r, token)
	if errors.Is(err, batcher.ErrClosed) {
		return ErrClosed
	}
	return err
}

// Flush waits until all that was appended so far, by this producer and the others
// of its topic, has completed, or ctx ends. It does not wait for the limits of time
// of ClientConfig.Batch. Not from within a Completer.
func (p *Producer) Flush(ctx context.Context) error {
	done := p.in.Flush()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.client.host.loop.Done():
		select {
		case <-done:
			return nil
		default:
			return ErrClosed
		}
	}
}

// Close says that nothing more will be appended. What was is still sent and
// completed.
func (p *Producer) Close() {
	p.closed = true
	p.in.Close()
}

// Produce stores one record and waits for its acknowledgement. If ctx ends first
// the record may be stored or not. For many records use a Producer.
func (c *Client) Produce(ctx context.Context, topic string, r *serialize.Record) (offset int64, err error) {
	if err := seglog.CheckTopicName(topic); err != nil {
		return serialize.NoOffset, err
	}
	one := make(oneRecord, 1)
	err = c.handOver(ctx, func() error {
		if c.closing.Load() {
			return ErrClosed
		}
		la, err := c.link.lane(topic)
		if err != nil {
			return err
		}
		return la.append(r, batcher.Completion{To: one})
	})
	if err != nil {
		return serialize.NoOffset, err
	}
	select {
	case o := <-one:
		return o.offset, o.err
	case <-c.host.loop.Done():
		o := last(one, outcome{serialize.NoOffset, ErrClosed})
		return o.offset, o.err
	case <-ctx.Done():
		return serialize.NoOffset, &wire.Error{Code: wire.OutcomeUnknown, Text: ctx.Err().Error() + " before the answer came"}
	}
}

// oneRecord waits for one record.
type oneRecord chan outcome

type outcome struct {
	offset int64
	err    error
}

func (o oneRecord) Complete(_ uint64, offset int64, err error) { o <- outcome{offset, err} }
