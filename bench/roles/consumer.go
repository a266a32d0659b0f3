package roles

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/serialize"
)

// runConsumer stores spec.Count messages (fewer if they are large) and then reads
// the topic, again and again from its start, on every connection.
func runConsumer(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return err
	}
	topic := &load{spec: spec, ms: ms, w: &window{}} // nothing counts while the topic is filled
	stored, err := topic.fill(ctx)
	if err != nil {
		return fmt.Errorf("filling the topic: %w", err)
	}
	clients := make([]*broker.Client, max(1, spec.Connections))
	for i := range clients {
		if clients[i], err = connect(ctx, spec, nil); err != nil {
			return err
		}
	}
	c.Emit(role.Event{Kind: role.Ready})
	w, err := open(ctx, spec, c)
	if err != nil {
		return err
	}
	t := newTally()
	var wg sync.WaitGroup
	fail := make(chan error, len(clients))
	for _, client := range clients {
		wg.Go(func() {
			messages, bytes, err := topic.consume(ctx, client, stored, w)
			t.mu.Lock()
			defer t.mu.Unlock()
			t.messages += messages
			t.bytes += bytes
			if err != nil {
				fail <- err
			}
		})
	}
	wg.Wait()
	select {
	case err := <-fail:
		return err
	default:
	}
	return finish(ctx, c, w, nil, t.result(w), func() {
		stopping(func(ctx context.Context) error {
			for _, client := range clients {
				_ = client.Close(ctx) // nothing is under way
			}
			return nil
		})()
	})
}

// fillBytes bounds what consumers read again and again: more than the CPU's
// caches, and a moment's work to write.
const fillBytes = 32 << 20

// fill stores the messages of connection 0 and returns how many.
func (l *load) fill(ctx context.Context) (uint64, error) {
	spec := l.spec
	spec.Window = int(spec.Count)
	l.spec = spec
	p, err := newProducer(ctx, l, 0)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.failed = cancel
	for size := 0; p.appended < uint64(spec.Count) && size < fillBytes; size += len(l.message(0, p.appended-1)) + keyBytes {
		if err := p.send(ctx, time.Now()); err != nil {
			return 0, err
		}
	}
	if err := p.drain(ctx); err != nil {
		return 0, err
	}
	return p.appended, p.out.close()
}

// consume reads the topic of stored messages until the window is over. Each record
// has to be the one that was stored there: nothing lost, doubled or changed.
func (l *load) consume(ctx context.Context, client *broker.Client, stored uint64, w *window) (messages, size int64, err error) {
	now := time.Now()
	for !w.over(now) {
		var next uint64
		err := client.Consume(ctx, topicName, 0, func(_ uint64, r *serialize.Record) error {
			id, seq, ok := parseKey(r.Key)
			if !ok || id != 0 || seq != next || !bytes.Equal(r.Value, l.message(0, seq)) {
				return fmt.Errorf("record %d differs from what was stored there (key %x)", next, r.Key)
			}
			if next%clockEvery == 0 {
				now = time.Now()
			}
			next++
			if w.counts(now) && !w.over(now) {
				messages++
				size += int64(len(r.Value))
			}
			if next == stored || w.over(now) {
				return broker.ErrStop
			}
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
		now = time.Now()
	}
	return messages, size, nil
}
