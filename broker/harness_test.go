package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedBrokerDir); dir != "" {
		runKilledBroker(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// schemes are the transports that every test of the data path runs over.
var schemes = []string{"tcp", "rdma", "dpdk"}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func backends(t testing.TB, urls ...string) []netpoll.Backend {
	t.Helper()
	b, err := transports.Backends(urls...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// memory is a pool that must be whole again at the end of the test.
func memory(t testing.TB, bytes int) *hugepages.Pool {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := arena.Close(); err != nil {
			t.Errorf("buffers leaked: %v", err)
		}
	})
	return hugepages.NewPool(arena)
}

func startServer(t testing.TB, cfg broker.Config) *broker.Server {
	t.Helper()
	if cfg.DataDir == "" {
		cfg.DataDir = t.TempDir()
	}
	if len(cfg.Listen) == 0 {
		cfg.Listen = []string{"tcp://127.0.0.1:0"}
	}
	if cfg.Pool == nil {
		cfg.Pool = memory(t, 64<<20)
	}
	cfg.Backends, cfg.Logger = backends(t, cfg.Listen...), quiet
	s, err := broker.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, s.Shutdown) })
	return s
}

func shutdown(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

func startProxy(t testing.TB, cfg broker.ProxyConfig) *broker.Proxy {
	t.Helper()
	if len(cfg.Listen) == 0 {
		cfg.Listen = []string{"tcp://127.0.0.1:0"}
	}
	if cfg.Pool == nil {
		cfg.Pool = memory(t, 64<<20)
	}
	cfg.Backends, cfg.Logger = backends(t, append([]string{cfg.Broker}, cfg.Listen...)...), quiet
	p, err := broker.NewProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, p.Shutdown) })
	if err := p.Ready(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func connect(t testing.TB, cfg broker.ClientConfig) *broker.Client {
	t.Helper()
	if cfg.Pool == nil {
		cfg.Pool = memory(t, 64<<20)
	}
	cfg.Backends, cfg.Logger = backends(t, cfg.URL), quiet
	c, err := broker.Connect(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, c.Close) })
	return c
}

// results collects what became of a producer's records, by token.
type results struct {
	mu      sync.Mutex
	offsets map[uint64]int64
	errs    map[uint64]error
	order   []uint64
	arrived chan struct{}
}

func newResults() *results {
	return &results{offsets: map[uint64]int64{}, errs: map[uint64]error{}, arrived: make(chan struct{}, 1)}
}

func (r *results) Complete(token uint64, offset int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = append(r.order, token)
	if err != nil {
		r.errs[token] = err
	} else {
		r.offsets[token] = offset
	}
	select {
	case r.arrived <- struct{}{}:
	default:
	}
}

// wait returns when n records have completed.
func (r *results) wait(ctx context.Context, n int) error {
	for {
		r.mu.Lock()
		have := len(r.order)
		r.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-r.arrived:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d records completed: %w", have, n, ctx.Err())
		}
	}
}

// line is record i of a test: some are empty, some large, some have keys.
func line(i int) serialize.Record {
	r := serialize.Record{Value: []byte(fmt.Sprintf("line %d %s", i, strings.Repeat("x", i*37%501))), Timestamp: int64(1_700_000_000_000 + i)}
	switch {
	case i%11 == 3:
		r.Value = []byte{}
	case i%97 == 5:
		r.Value = []byte(strings.Repeat(fmt.Sprint(i), 20_000/len(fmt.Sprint(i))))
	}
	if i%5 == 0 {
		r.Key = []byte(fmt.Sprint("key", i))
	}
	if i%7 == 0 {
		r.Headers = serialize.AppendHeader(nil, "n", []byte{byte(i)})
	}
	return r
}

func sameRecord(a, b *serialize.Record) bool {
	return string(a.Value) == string(b.Value) && string(a.Key) == string(b.Key) && (a.Key == nil) == (b.Key == nil) &&
		string(a.Headers) == string(b.Headers) && a.Timestamp == b.Timestamp
}

// produceLines produces lines from to before to, and waits until all are stored.
func produceLines(t testing.TB, c *broker.Client, topic string, from, to int) *results {
	t.Helper()
	got := newResults()
	p, err := c.Producer(topic, got)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx := within(t)
	for i := from; i < to; i++ {
		r := line(i)
		if err := p.Append(ctx, &r, uint64(i)); err != nil {
			t.Fatalf("line %d: %v", i, err)
		}
	}
	if err := got.wait(ctx, to-from); err != nil {
		t.Fatal(err)
	}
	for i, err := range got.errs {
		t.Fatalf("%d lines failed, line %d: %v", len(got.errs), i, err)
	}
	return got
}

// checkLines consumes topic and compares it with lines 0 to before n.
func checkLines(t testing.TB, c *broker.Client, topic string, n int) {
	t.Helper()
	i := 0
	err := c.Consume(within(t), topic, 0, func(offset uint64, r *serialize.Record) error {
		want := line(i)
		if offset != uint64(i) || !sameRecord(r, &want) {
			return fmt.Errorf("offset %d: got %.60q, want line %d %.60q", offset, r.Value, i, want.Value)
		}
		if i++; i == n {
			return broker.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatalf("after %d lines: %v", i, err)
	}
}

func mustFail(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}
