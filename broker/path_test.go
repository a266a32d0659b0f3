package broker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// What was produced is consumed, the same and in the same order, over every
// transport, directly and through a proxy.
func TestProduceConsume(t *testing.T) {
	const n = 3000
	for _, scheme := range schemes {
		for _, durability := range []seglog.Durability{seglog.PageCache, seglog.Fsync} {
			t.Run(fmt.Sprint(scheme, "/", durability), func(t *testing.T) {
				s := startServer(t, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}, Durability: durability})
				direct := connect(t, broker.ClientConfig{URL: s.URLs()[0]})
				if tr, ok := direct.Transport(); !ok || tr.Scheme != scheme {
					t.Errorf("transport %+v, want %s", tr, scheme)
				}
				if d := direct.Durability(); d != durability {
					t.Errorf("durability %v, want %v", d, durability)
				}
				p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0]})
				proxied := connect(t, broker.ClientConfig{URL: p.URLs()[0]})
				for _, c := range []struct {
					topic            string
					producer, reader *broker.Client
				}{{"direct", direct, direct}, {"proxied", proxied, proxied}, {"mixed", proxied, direct}} {
					got := produceLines(t, c.producer, c.topic, 0, n)
					for i := range uint64(n) {
						if o, ok := got.offsets[i]; !ok || o != int64(i) || got.order[i] != i {
							t.Fatalf("%s: record %d has offset %d (%v), error %v, completed as %d", c.topic, i, o, ok, got.errs[i], got.order[i])
						}
					}
					checkLines(t, c.reader, c.topic, n)
					earliest, latest, err := c.reader.Offsets(within(t), c.topic)
					if err != nil || earliest != 0 || latest != n {
						t.Errorf("%s: offsets %d to %d, %v", c.topic, earliest, latest, err)
					}
				}
			})
		}
	}
}

// Several clients of one proxy share its batches; each gets its own answers.
func TestManyClients(t *testing.T) {
	const clients, each = 8, 500
	s := startServer(t, broker.Config{})
	p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0]})
	var wg sync.WaitGroup
	offsets := make([]map[uint64]int64, clients)
	for i := range clients {
		c := connect(t, broker.ClientConfig{URL: p.URLs()[0], Pool: memory(t, 16<<20)})
		wg.Go(func() {
			offsets[i] = produceLines(t, c, "shared", i*each, (i+1)*each).offsets
		})
	}
	wg.Wait()
	seen := map[int64]int{}
	for i := range clients {
		for token, o := range offsets[i] {
			if before, dup := seen[o]; dup {
				t.Fatalf("offset %d for records %d and %d", o, before, token)
			}
			seen[o] = int(token)
		}
	}
	c := connect(t, broker.ClientConfig{URL: p.URLs()[0]})
	next := 0
	err := c.Consume(within(t), "shared", 0, func(o uint64, r *serialize.Record) error {
		want := line(seen[int64(o)])
		if !sameRecord(r, &want) {
			return fmt.Errorf("offset %d is not record %d", o, seen[int64(o)])
		}
		if next++; next == clients*each {
			return broker.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Values that no aggregator takes go on their own, in order; larger ones than a
// message are refused by name.
func TestLargeRecords(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			s := startServer(t, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}})
			p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0]})
			c := connect(t, broker.ClientConfig{URL: p.URLs()[0]})
			got := newResults()
			producer, err := c.Producer("large", got)
			if err != nil {
				t.Fatal(err)
			}
			defer producer.Close()
			sizes := []int{10, 200 << 10, 20, 1 << 20, 30, 3 << 20, 100_000, 128<<10 - 64, 128 << 10, 5}
			for i, n := range sizes {
				r := serialize.Record{Value: []byte(strings.Repeat(fmt.Sprint(i), n))}
				if err := producer.Append(within(t), &r, uint64(i)); err != nil {
					t.Fatalf("%d bytes: %v", n, err)
				}
			}
			if err := got.wait(within(t), len(sizes)); err != nil {
				t.Fatal(err)
			}
			i := 0
			err = c.Consume(within(t), "large", 0, func(o uint64, r *serialize.Record) error {
				if len(r.Value) != sizes[i] || strings.Trim(string(r.Value), fmt.Sprint(i)) != "" {
					return fmt.Errorf("offset %d has %d bytes, want %d", o, len(r.Value), sizes[i])
				}
				if i++; i == len(sizes) {
					return broker.ErrStop
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			r := serialize.Record{Value: make([]byte, netpoll.DefaultMaxMessageBytes)}
			mustFail(t, producer.Append(within(t), &r, 0), broker.ErrValueTooLarge)
			_, err = c.Produce(within(t), "large", &r)
			mustFail(t, err, broker.ErrValueTooLarge)
		})
	}
}

// One record at a time, as an embedder's simplest program does.
func TestProduceOne(t *testing.T) {
	s := startServer(t, broker.Config{})
	c := connect(t, broker.ClientConfig{URL: s.URLs()[0]})
	for i := range 20 {
		r := line(i)
		if o, err := c.Produce(within(t), "one", &r); err != nil || o != int64(i) {
			t.Fatalf("record %d: offset %d, %v", i, o, err)
		}
	}
	checkLines(t, c, "one", 20)
}

// Small bounds everywhere hold producers back, and lose nothing.
func TestBackpressure(t *testing.T) {
	const n = 4000
	small := batcher.Options{MaxBatchBytes: 32 << 10, MaxBatchRecords: 16, MaxQueuedBytes: 32 << 10, MaxQueuedRecords: 32, MaxBatches: 2, PartialInFlight: 1}
	s := startServer(t, broker.Config{Pool: memory(t, 32<<20)})
	p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0], Batch: small, Pool: memory(t, 16<<20)})
	c := connect(t, broker.ClientConfig{URL: p.URLs()[0], Batch: small, Pool: memory(t, 16<<20)})
	produceLines(t, c, "t", 0, n)
	checkLines(t, c, "t", n)
}

// A consumer that waits at the end of a topic is told of what comes, and one
// that cannot is told why.
func TestFollow(t *testing.T) {
	s := startServer(t, broker.Config{})
	p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0]})
	c := connect(t, broker.ClientConfig{URL: p.URLs()[0]})
	mustFail(t, c.Consume(within(t), "t", 0, nil), wire.UnknownTopic)
	mustFail(t, c.Consume(within(t), "no such/name", 0, nil), seglog.ErrTopicName)
	produceLines(t, c, "t", 0, 10)
	mustFail(t, c.Consume(within(t), "t", 11, nil), wire.OffsetOutOfRange)
	_, _, err := c.Offsets(within(t), "nothing")
	mustFail(t, err, wire.UnknownTopic)

	ctx, cancel := context.WithCancel(within(t))
	seen := make(chan uint64, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Consume(ctx, "t", 7, func(o uint64, _ *serialize.Record) error { seen <- o; return nil })
	}()
	for want := uint64(7); want < 30; want++ {
		if want == 10 { // it waits at the broker now
			produceLines(t, c, "t", 10, 30)
		}
		if o := <-seen; o != want {
			t.Fatalf("offset %d, want %d", o, want)
		}
	}
	cancel()
	mustFail(t, <-ended, context.Canceled)
	mine := errors.New("mine")
	mustFail(t, c.Consume(within(t), "t", 0, func(uint64, *serialize.Record) error { return mine }), mine)
	topics, err := c.Topics(within(t))
	if err != nil || len(topics) != 1 || topics[0].Latest != 30 {
		t.Errorf("topics %+v, %v", topics, err)
	}
}

// A consumer goes on where it was after the broker came back; a producer is told
// while it is away, and nothing is stored twice.
func TestBrokerRestart(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			dir := t.TempDir()
			s := startServer(t, broker.Config{DataDir: dir, Listen: []string{scheme + "://127.0.0.1:0"}})
			url := s.URLs()[0]
			p := startProxy(t, broker.ProxyConfig{Broker: url})
			c := connect(t, broker.ClientConfig{URL: p.URLs()[0]})
			produceLines(t, c, "t", 0, 100)

			lines := make(chan uint64, 1000)
			ended := make(chan error, 1)
			ctx, cancel := context.WithCancel(within(t))
			defer cancel()
			go func() {
				ended <- c.Consume(ctx, "t", 0, func(o uint64, _ *serialize.Record) error { lines <- o; return nil })
			}()
			for i := range uint64(100) {
				if o := <-lines; o != i {
					t.Fatalf("offset %d, want %d", o, i)
				}
			}
			shutdown(t, s.Shutdown)
			r := line(100)
			if _, err := c.Produce(within(t), "t", &r); !errors.Is(err, wire.BrokerUnreachable) && !errors.Is(err, wire.ShuttingDown) && !errors.Is(err, wire.OutcomeUnknown) {
				t.Fatalf("produce without a broker: %v", err)
			}
			startServer(t, broker.Config{DataDir: dir, Listen: []string{url}})
			for {
				_, err := c.Produce(within(t), "t", &r)
				if err == nil {
					break
				}
				if !errors.Is(err, wire.BrokerUnreachable) {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
			if o := <-lines; o != 100 {
				t.Fatalf("offset %d after the restart, want 100", o)
			}
			cancel()
			mustFail(t, <-ended, context.Canceled)
			if _, latest, err := c.Offsets(within(t), "t"); err != nil || latest != 101 {
				t.Fatalf("the topic ends at %d, %v; want 101", latest, err)
			}
		})
	}
}

// Requests under way when everything goes down get an answer, and Close returns.
func TestCloseUnderLoad(t *testing.T) {
	for _, first := range []string{"client", "proxy", "broker"} {
		t.Run(first, func(t *testing.T) {
			s := startServer(t, broker.Config{})
			p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0]})
			c := connect(t, broker.ClientConfig{URL: p.URLs()[0]})
			got := newResults()
			producer, err := c.Producer("t", got)
			if err != nil {
				t.Fatal(err)
			}
			appended := make(chan int)
			ctx, cancel := context.WithCancel(within(t))
			go func() {
				n := 0
				for ctx.Err() == nil {
					r := line(n)
					if producer.Append(ctx, &r, uint64(n)) != nil {
						break
					}
					n++
				}
				appended <- n
			}()
			if err := got.wait(within(t), 1000); err != nil {
				t.Fatal(err)
			}
			switch first {
			case "client":
				shutdown(t, c.Close)
			case "proxy":
				shutdown(t, p.Shutdown)
			case "broker":
				shutdown(t, s.Shutdown)
			}
			cancel()
			n := <-appended
			shutdown(t, c.Close)
			got.mu.Lock()
			defer got.mu.Unlock()
			if len(got.order) != n {
				t.Fatalf("%d records were taken, %d completed", n, len(got.order))
			}
			for i, token := range got.order {
				if token != uint64(i) {
					t.Fatalf("record %d completed as number %d", token, i)
				}
			}
		})
	}
}
