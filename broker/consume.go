package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

const (
	// fetchWait is how long the broker holds a fetch at the end of the topic.
	fetchWait = 5 * time.Second
	// fetchBytes is what one fetch asks for.
	fetchBytes = 1 << 20
	// outagePatience is how long Consume goes on while no fetch succeeds, and how
	// much longer than asked for an answer may take.
	outagePatience = 30 * time.Second
	fetchRetry     = 50 * time.Millisecond
)

// Consume calls fn, on the calling goroutine, with every record of topic from
// offset on, in order, and follows the topic's end. The record is valid until fn
// returns. It ends with ctx's error, fn's (nil for ErrStop), or the broker's, for
// instance wire.UnknownTopic or wire.OffsetOutOfRange. When the connection is
// lost it goes on where it was as soon as there is one again; it gives up when
// fetches have failed, or none was answered, for 30 s. A client may have 64
// Consumes at a time.
func (c *Client) Consume(ctx context.Context, topic string, offset uint64, fn func(offset uint64, r *serialize.Record) error) error {
	if err := seglog.CheckTopicName(topic); err != nil {
		return err
	}
	if !c.host.hold() { // of what fn sees, also while Close is called
		return ErrClosed
	}
	defer c.host.release()
	err := c.consume(ctx, topic, offset, fn)
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

func (c *Client) consume(ctx context.Context, topic string, offset uint64, fn func(uint64, *serialize.Record) error) error {
	asked := time.Now()
	next := c.fetch(ctx, topic, offset)
	var failing time.Time // since when, if it does
	var decoder *serialize.Decoder
	for {
		got, err := next.wait(ctx, c)
		if err != nil {
			if failing.IsZero() {
				failing = time.Now()
			}
			if !passing(err) || time.Since(failing) > outagePatience {
				return err
			}
			if err := c.pause(ctx); err != nil {
				return err
			}
			asked = time.Now()
			next = c.fetch(ctx, topic, offset)
			continue
		}
		failing = time.Time{}
		if len(got.entries) == 0 && time.Since(asked) < fetchRetry {
			// It did not wait, against the rules, and would have us ask all the time.
			if err := c.pause(ctx); err != nil {
				got.release()
				return err
			}
		}
		end, err := endOf(got.entries, offset)
		if err != nil {
			got.release()
			return fmt.Errorf("broker: topic %s: %w", topic, err)
		}
		// The next answer is under way while fn works on this one.
		asked = time.Now()
		next = c.fetch(ctx, topic, end)
		err = c.visit(&decoder, got.entries, offset, fn)
		got.release()
		if err != nil {
			next.abandon()
			return err
		}
		offset = end
	}
}

// pause waits before a fetch is tried again.
func (c *Client) pause(ctx context.Context) error {
	select {
	case <-time.After(fetchRetry):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.host.loop.Done():
		return ErrClosed
	}
}

// passing says that a fetch may be answered another time.
func passing(err error) bool {
	return errors.Is(err, wire.BrokerUnreachable) || errors.Is(err, wire.OutcomeUnknown) ||
		errors.Is(err, wire.TooManyRequests) || errors.Is(err, wire.ShuttingDown)
}

// endOf checks that entries follow each other from one that holds offset, and
// returns the offset after the last.
func endOf(entries []byte, offset uint64) (uint64, error) {
	first := true
	for len(entries) > 0 {
		e, rest, ok := seglog.NextEntry(entries)
		switch {
		case !ok:
			return 0, fmt.Errorf("the answer from offset %d on is damaged or not whole", offset)
		case first && (e.Base > offset || e.End() <= offset), !first && e.Base != offset:
			return 0, fmt.Errorf("asked for offset %d, got %d to %d", offset, e.Base, e.End())
		}
		offset, entries, first = e.End(), rest, false
	}
	return offset, nil
}

// visit calls fn with the records of entries at or after offset. A decoder is made
// with the first batch.
func (c *Client) visit(decoder **serialize.Decoder, entries []byte, offset uint64, fn func(uint64, *serialize.Record) error) error {
	if *decoder == nil {
		var err error
		if *decoder, err = serialize.NewDecoder(c.link.maxFrame); err != nil {
			return err
		}
	}
	var r serialize.Record // one for all, since fn makes it escape
	for len(entries) > 0 {
		e, rest, _ := seglog.NextEntry(entries)
		entries = rest
		// The batch's own checksum covers all of its bytes.
		batch, err := (*decoder).Open(e.Payload)
		if err == nil && batch.Len() != int(e.Records) {
			err = fmt.Errorf("it has %d records, its entry says %d", batch.Len(), e.Records)
		}
		switch {
		case errors.Is(err, serialize.ErrTooLarge):
			return fmt.Errorf("broker: the batch at offset %d: %w: raise ClientConfig.MaxMessageBytes", e.Base, err)
		case err != nil:
			return fmt.Errorf("broker: the batch at offset %d is damaged: %w", e.Base, err)
		}
		cursor := batch.Cursor()
		for cursor.Next() {
			at := e.Base + uint64(cursor.Index())
			if at < offset {
				continue
			}
			r = cursor.Record()
			if err := fn(at, &r); err != nil {
				return err
			}
		}
	}
	return nil
}

// fetching is a Fetch under way.
type fetching struct {
	answer chan fetched // of 1

	mu   sync.Mutex
	gone bool // nobody waits any more
}

type fetched struct {
	entries []byte
	lease   netpoll.Message
	err     error
}

func (f *fetched) release() {
	if f.lease.Buf != nil {
		f.lease.Release()
	}
}

// fetch asks for the records from offset on.
func (c *Client) fetch(ctx context.Context, topic string, offset uint64) *fetching {
	f := &fetching{answer: make(chan fetched, 1)}
	err := c.handOver(ctx, func() error {
		l := c.link
		if l.state != linkUp {
			return l.unreachable()
		}
		b, err := l.pool.Get(wire.FetchBytes(len(topic)), hugepages.Send)
		if err != nil {
			return err
		}
		wire.AppendFetch(b.Bytes()[:0], wire.Fetch{Topic: []byte(topic), Offset: offset,
			MaxBytes:   uint32(min(fetchBytes, l.maxFrame-wire.FetchResponseHeaderBytes)),
			WaitMillis: uint32(fetchWait.Milliseconds())})
		if err := l.send(b, call{query: f}); err != nil {
			b.Release()
			return err
		}
		return nil
	})
	if err != nil {
		f.answer <- fetched{err: err}
	}
	return f
}

// wait returns the answer, whose lease is then the caller's. Afterwards f is done.
func (f *fetching) wait(ctx context.Context, c *Client) (fetched, error) {
	patience := time.NewTimer(fetchWait + outagePatience)
	defer patience.Stop()
	select {
	case got := <-f.answer:
		return got, got.err
	case <-patience.C:
		f.abandon()
		return fetched{}, fmt.Errorf("broker: %s does not answer: no answer to a fetch within %v", c.link.url, fetchWait+outagePatience)
	case <-ctx.Done():
		f.abandon()
		return fetched{}, ctx.Err()
	case <-c.host.loop.Done():
		f.abandon()
		return fetched{}, ErrClosed
	}
}

// abandon drops the answer, now or when it comes.
func (f *fetching) abandon() {
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	select {
	case got := <-f.answer:
		got.release()
	default:
	}
}

// response implements queryReply.
func (f *fetching) response(m *netpoll.Message, frame []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return
	}
	r, err := wire.ParseFetchResponse(frame)
	if err != nil {
		f.answer <- fetched{err: err}
		return
	}
	f.answer <- fetched{entries: r.Entries, lease: m.Retain()}
}

func (f *fetching) failed(e *wire.Error) { f.answer <- fetched{err: e} }

// Offsets are the first offset that topic holds and the one after its last record.
// wire.UnknownTopic if nothing was ever produced to it.
func (c *Client) Offsets(ctx context.Context, topic string) (earliest, latest uint64, err error) {
	if err := seglog.CheckTopicName(topic); err != nil {
		return 0, 0, err
	}
	topics, err := c.metadata(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	if len(topics) != 1 || topics[0].Topic != topic {
		return 0, 0, fmt.Errorf("broker: asked about topic %s, got an answer about %d others", topic, len(topics))
	}
	return topics[0].Earliest, topics[0].Latest, nil
}

// Topics lists the broker's topics.
func (c *Client) Topics(ctx context.Context) ([]wire.TopicInfo, error) { return c.metadata(ctx, "") }

func (c *Client) metadata(ctx context.Context, topic string) ([]wire.TopicInfo, error) {
	q := make(querying, 1)
	err := c.handOver(ctx, func() error {
		b, err := c.link.pool.Get(wire.MetadataBytes(len(topic)), hugepages.Send)
		if err != nil {
			return err
		}
		wire.AppendMetadata(b.Bytes()[:0], wire.Metadata{Topic: []byte(topic)})
		if err := c.link.send(b, call{query: q}); err != nil {
			b.Release()
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	select {
	case a := <-q:
		return a.topics, a.err
	case <-c.host.loop.Done():
		a := last(q, queried{err: ErrClosed})
		return a.topics, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// querying is a Metadata under way; a channel of 1.
type querying chan queried

type queried struct {
	topics []wire.TopicInfo
	err    error
}

func (q querying) response(_ *netpoll.Message, frame []byte) {
	r, err := wire.ParseMetadataResponse(frame)
	q <- queried{r.Topics, err}
}

func (q querying) failed(e *wire.Error) { q <- queried{err: e} }
