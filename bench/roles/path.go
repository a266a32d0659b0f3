package roles

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

// The servers of the message path: client → proxy → broker. Clients reach the
// proxy over TCP, the proxy reaches the broker over the transport under test.

// topicName is the topic that everything goes to.
const topicName = "bench"

const (
	// maxMessageBytes leaves room for what goes around the largest message.
	maxMessageBytes = messages.MaxMessageBytes + 64<<10
	// singleBatchBytes is the room of a batch that holds one record; larger records
	// travel alone in any case.
	singleBatchBytes = 16 << 10
	// maxBatches bounds the requests under way where each message is one.
	maxBatches = 4096
	// stopPatience bounds the orderly end of a server whose clients are gone.
	stopPatience = 3 * time.Second
)

// batching is the aggregator's configuration: the default one, or with FlushEach
// each message a request of its own.
func batching(spec role.Spec) batcher.Options {
	if !spec.FlushEach {
		return batcher.Options{}
	}
	return batcher.Options{MaxBatchRecords: 1, MaxBatchBytes: singleBatchBytes, MaxBatches: min(maxBatches, max(32, spec.Window*max(1, spec.Connections)))}
}

func warnings() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// forSleepers prepares the runtime for threads goroutines that block in system
// calls, as a loop that parks does. If they hold all Ps of a process that is
// confined to one CPU, the runtime's monitor takes a P away on every sleep, which
// costs more than the sleep (measured: a quarter of a server's CPU time at 2000
// messages/s). A spare P ends that.
func forSleepers(idle netpoll.IdlePolicy, threads int) {
	if idle.Park && runtime.GOMAXPROCS(0) <= threads {
		runtime.GOMAXPROCS(threads + 1)
	}
}

func loopMeter(l *netpoll.Loop) *role.BusyMeter {
	return role.NewBusyMeter(func() time.Duration { return l.Stats().Busy })
}

// ended tells when a loop that should run has stopped.
func ended(l *netpoll.Loop) <-chan error {
	c := make(chan error, 1)
	go func() {
		<-l.Done()
		c <- errors.New("its loop ended")
	}()
	return c
}

// stopping runs an orderly shutdown.
func stopping(shutdown func(context.Context) error) func() role.Event {
	return func() role.Event {
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		if err := shutdown(ctx); err != nil {
			return role.Event{Error: err.Error()}
		}
		return role.Event{}
	}
}

func runBroker(ctx context.Context, spec role.Spec, c *role.Control) error {
	url := transports.With(spec.URL, spec.Device)
	backends, err := transports.Backends(url)
	if err != nil {
		return err
	}
	idle, err := netpoll.ParseIdlePolicy(spec.Idle)
	if err != nil {
		return err
	}
	forSleepers(idle, 1)
	durability, err := seglog.ParseDurability(spec.Durability)
	if err != nil {
		return err
	}
	s, err := broker.NewServer(broker.Config{
		DataDir: spec.DataDir, Listen: []string{url}, Backends: backends, Durability: durability, Idle: idle,
		MaxMessageBytes: maxMessageBytes, Logger: warnings(),
	})
	if err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	c.Emit(role.Event{Kind: role.Ready, URL: s.URLs()[0]})
	return c.ServeUntilStop(ctx, loopMeter(s.Loop()), ended(s.Loop()), stopping(s.Shutdown))
}

func runProxy(ctx context.Context, spec role.Spec, c *role.Control) error {
	upstream := transports.With(spec.Upstream, spec.Device)
	backends, err := transports.Backends(spec.URL, upstream)
	if err != nil {
		return err
	}
	idle, err := netpoll.ParseIdlePolicy(spec.Idle)
	if err != nil {
		return err
	}
	forSleepers(idle, 1)
	sendRT := measure.NewHistogram() // the loop's
	p, err := broker.NewProxy(broker.ProxyConfig{
		Listen: []string{spec.URL}, Broker: upstream, Backends: backends, Idle: idle, MaxMessageBytes: maxMessageBytes,
		Batch: batching(spec), OnSendRT: func(nanos int64) { sendRT.Record(time.Duration(nanos)) }, Logger: warnings(),
	})
	if err != nil {
		return err
	}
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := p.Ready(dctx); err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		return err
	}
	ready := role.Event{Kind: role.Ready, URL: p.URLs()[0]}
	if t, ok := p.Transport(); ok {
		ready.Device, ready.Label, ready.Reason = t.Device, t.Label, t.Reason
	}
	c.Emit(ready)
	m := loopMeter(p.Loop())
	m.OnMark = func(e *role.Event) {
		_ = p.Loop().Do(func() { // a loop that ended is noticed elsewhere
			e.SendRT = sendRT.Quantiles()
			sendRT.Reset()
		})
	}
	return c.ServeUntilStop(ctx, m, ended(p.Loop()), stopping(p.Shutdown))
}

// connect makes a client of the proxy or broker at spec.URL. onSendRT may be nil.
func connect(ctx context.Context, spec role.Spec, onSendRT func(nanos int64)) (*broker.Client, error) {
	url := transports.With(spec.URL, spec.Device)
	backends, err := transports.Backends(url)
	if err != nil {
		return nil, err
	}
	idle, err := netpoll.ParseIdlePolicy(spec.Idle)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return broker.Connect(ctx, broker.ClientConfig{
		URL: url, Backends: backends, Idle: idle, MaxMessageBytes: maxMessageBytes, Batch: batching(spec), OnSendRT: onSendRT, Logger: warnings(),
	})
}
