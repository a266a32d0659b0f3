package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
)

const (
	defaultMemory = 256 << 20
	// leastMemory holds a few of the largest messages in each direction.
	leastMemory = 32 << 20
)

// shutdownPatience is how long a server that was told to end waits for its peers.
const shutdownPatience = 10 * time.Second

// serverFlags are those that broker and proxy share.
type serverFlags struct {
	listen  []string
	idle    string
	metrics string
	memory  byteSize
}

func (f *serverFlags) add(cmd *cobra.Command, defaultURL string) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.listen, "listen", []string{defaultURL}, "address to serve, by URL: "+transportURLs()+"; may be repeated")
	fl.StringVar(&f.idle, "idle", "balanced", "what the loop does without work: latency (spins), balanced (spins only while that beats a wake-up), efficient (sleeps, and takes many messages in gulps of at most 100 µs)")
	f.memory = defaultMemory
	fl.Var(&f.memory, "memory", "most memory for messages under way, as 64MiB or 1GiB; it is taken when needed and given back when idle")
	fl.StringVar(&f.metrics, "metrics", "", "serve counters at http://ADDR/metrics")
}

func transportURLs() string {
	var urls []string
	for _, s := range transports.Schemes() {
		urls = append(urls, s+"://host:port")
	}
	return strings.Join(urls, ", ")
}

// idlePolicy is the policy of that name, or a usage error.
func idlePolicy(name string) (netpoll.IdlePolicy, error) {
	p, err := netpoll.ParseIdlePolicy(name)
	if err != nil {
		return p, usageError("--idle: %w", err)
	}
	return p, nil
}

// backendsFor makes the transports of urls. A scheme that is none is wrong usage;
// one that cannot run here has an exit status of its own.
func backendsFor(urls ...string) ([]netpoll.Backend, error) {
	b, err := transports.Backends(urls...)
	var un *transports.Unavailable
	switch {
	case errors.As(err, &un):
		return nil, &exitError{exitSkipped, err}
	case err != nil:
		return nil, &exitError{exitUsage, err}
	}
	return b, nil
}

// spareP gives a process that is confined to one CPU a second P. A loop that
// blocks holds its P; if there is no other, the runtime's monitor takes it away at
// every sleep, which costs more than the sleep (measured at 2,000 messages/s: 86
// against 53 µs of CPU per message). A GOMAXPROCS of the environment stands. Both
// commands log the number that holds.
func spareP(idle netpoll.IdlePolicy) {
	if idle.Park && runtime.GOMAXPROCS(0) == 1 && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2)
	}
}

func brokerCommand() *cobra.Command {
	var f serverFlags
	var data, durability string
	cmd := &cobra.Command{
		Use:   "broker --listen URL [--listen URL…] --data DIR",
		Short: "Run a storage broker",
		Long: `Run a storage broker: topics with one partition each, in append-only logs below DIR.

It prints "ready URL" for each address once it accepts connections there, and ends in order on SIGINT
or SIGTERM: what was received is stored and acknowledged first.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" {
				return usageError("broker needs --data DIR, the directory for its topics (it is made if it is not there)")
			}
			d, err := seglog.ParseDurability(durability)
			if err != nil {
				return usageError("--durability: %w", err)
			}
			return f.runBroker(cmd, broker.Config{DataDir: data, Durability: d})
		},
	}
	f.add(cmd, "tcp://127.0.0.1:7070")
	cmd.Flags().StringVar(&data, "data", "", "directory of the topics")
	cmd.Flags().StringVar(&durability, "durability", seglog.PageCache.String(), "when a produce is acknowledged: page-cache (written), or fsync (on the disk)")
	return cmd
}

func (f *serverFlags) runBroker(cmd *cobra.Command, cfg broker.Config) (err error) {
	cfg.Listen, cfg.Logger = f.listen, logger(cmd)
	if cfg.Idle, err = idlePolicy(f.idle); err != nil {
		return err
	}
	spareP(cfg.Idle)
	if cfg.Backends, err = backendsFor(f.listen...); err != nil {
		return err
	}
	mem, err := newMemory(f.memory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mem.arena.Close()) }()
	cfg.Pool = mem.pool
	s, err := broker.NewServer(cfg)
	if err != nil {
		return err
	}
	cfg.Logger.Info("broker", "data", cfg.DataDir, "durability", cfg.Durability, "idle", f.idle, "gomaxprocs", runtime.GOMAXPROCS(0), "memory", mem.arena.Report())
	m := newMetrics(mem)
	start := func() error {
		if err := s.Start(); err != nil {
			return err
		}
		m.watchLoop(s.Loop())
		m.watchRDMA(cfg.Backends)
		m.watchLibdpdk()
		m.watchBroker(s.Stats)
		return nil
	}
	return f.serve(cmd, m, start, s.URLs, s.Shutdown)
}

func proxyCommand() *cobra.Command {
	var f serverFlags
	var to, compress string
	var linger time.Duration
	cmd := &cobra.Command{
		Use:   "proxy --listen URL [--listen URL…] --broker URL",
		Short: "Run a stateless proxy in front of a broker",
		Long: `Run a stateless proxy in front of a broker. What its clients produce to a topic is gathered into common
batches; a batch leaves when the link to the broker is idle, or is full.

It prints "ready URL" for each address once it accepts connections there. It waits for the broker first, at
most 5 s; afterwards requests are refused while there is no broker, and it goes on dialing.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to == "" {
				return usageError("proxy needs --broker URL, the storage broker's address (the broker prints it as \"ready URL\")")
			}
			if linger < 0 {
				return usageError("--linger cannot be negative")
			}
			how, err := compression(compress)
			if err != nil {
				return err
			}
			return f.runProxy(cmd, broker.ProxyConfig{Broker: to, Batch: batcher.Options{Linger: linger}, Compression: how})
		},
	}
	f.add(cmd, "tcp://127.0.0.1:7071")
	cmd.Flags().StringVar(&to, "broker", "", "address of the storage broker: "+transportURLs())
	addCompress(cmd, &compress, "the batches that the proxy gathers")
	cmd.Flags().DurationVar(&linger, "linger", 0, "how long a batch that is not full waits for more although the link is idle")
	return cmd
}

// brokerPatience is how long a proxy that starts waits for its broker before it
// serves.
const brokerPatience = 5 * time.Second

func (f *serverFlags) runProxy(cmd *cobra.Command, cfg broker.ProxyConfig) (err error) {
	cfg.Listen, cfg.Logger = f.listen, logger(cmd)
	if cfg.Idle, err = idlePolicy(f.idle); err != nil {
		return err
	}
	spareP(cfg.Idle)
	if cfg.Backends, err = backendsFor(append([]string{cfg.Broker}, f.listen...)...); err != nil {
		return err
	}
	mem, err := newMemory(f.memory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mem.arena.Close()) }()
	m := newMetrics(mem)
	cfg.Pool, cfg.OnSendRT = mem.pool, m.sendRT()
	p, err := broker.NewProxy(cfg)
	if err != nil {
		return err
	}
	cfg.Logger.Info("proxy", "broker", cfg.Broker, "idle", f.idle, "gomaxprocs", runtime.GOMAXPROCS(0), "memory", mem.arena.Report())
	m.watchLoop(p.Loop())
	m.watchRDMA(cfg.Backends)
	m.watchLibdpdk()
	m.watchLink(p.Transport)
	m.watchAggregator(p.Stats)
	start := func() error {
		ctx, cancel := context.WithTimeout(cmd.Context(), brokerPatience)
		defer cancel()
		if err := p.Ready(ctx); err != nil && cmd.Context().Err() == nil {
			cfg.Logger.Warn("serving without a broker for now", "err", err)
		}
		return p.Start()
	}
	return f.serve(cmd, m, start, p.URLs, p.Shutdown)
}

// serve starts a server, says where it is ready, and ends it when the command's
// context does.
func (f *serverFlags) serve(cmd *cobra.Command, m *metrics, start func() error, urls func() []string, shutdown func(context.Context) error) (err error) {
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownPatience)
		defer cancel()
		err = errors.Join(err, shutdown(ctx))
	}()
	if err := start(); err != nil {
		return err
	}
	if f.metrics != "" {
		stop, err := m.serve(f.metrics, logger(cmd))
		if err != nil {
			return err
		}
		defer stop()
	}
	for _, u := range urls() {
		fmt.Fprintln(cmd.OutOrStdout(), "ready", u)
	}
	<-cmd.Context().Done()
	return nil
}

// memory is what a server holds its messages in.
type memory struct {
	arena *hugepages.Arena
	pool  *hugepages.Pool
}

// newMemory makes the memory of a server, on the NUMA nodes that it runs on, where
// it does not run on all.
func newMemory(limit byteSize) (*memory, error) {
	if limit < leastMemory {
		return nil, usageError("--memory %s is too little: give at least %s", limit.text(), byteSize(leastMemory).text())
	}
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: int(limit), Elastic: true, Nodes: hugepages.LocalNodes()})
	if err != nil {
		return nil, err
	}
	return &memory{arena, hugepages.NewPool(arena)}, nil
}

// logger writes to the command's standard error.
func logger(cmd *cobra.Command) *slog.Logger {
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
}
