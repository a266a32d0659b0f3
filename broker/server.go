package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// Config configures a Server. The zero value of a field means its default; only
// DataDir has none.
type Config struct {
	// DataDir holds the topics; it is made if it is not there. One server at a time.
	DataDir string
	// Listen are the addresses to serve, by URL: tcp://host:port, and those of the
	// other Backends. Port 0 picks a free one; see URLs. Default tcp://127.0.0.1:7070.
	Listen []string
	// Durability is what an acknowledgement means. Default seglog.PageCache.
	Durability seglog.Durability
	// SegmentBytes is the size of a log's segments. Default 256 MiB.
	SegmentBytes int64
	// MaxTopics bounds the topics. Default 1024.
	MaxTopics int
	// Backends are the transports. They are the server's from NewServer on.
	// Default: TCP.
	Backends []netpoll.Backend
	// Idle is the loop's idle policy. Default netpoll.Balanced().
	Idle netpoll.IdlePolicy
	// Pool supplies all buffers. If its arena is elastic, what a burst took goes back
	// to the system seconds later. Default: an elastic arena of up to 128 MiB of its own.
	Pool *hugepages.Pool
	// MaxMessageBytes is the largest message in either direction, and so, less 256
	// bytes, the largest batch. Default 4 MiB.
	MaxMessageBytes int
	// Logger takes what no peer can be told. Default slog.Default().
	Logger *slog.Logger
}

const defaultListen = "tcp://127.0.0.1:7070"

// Server is a storage broker: one loop over any number of transports, the core,
// and a data directory. NewServer, Start and Shutdown are for one goroutine; all
// else may be called on any.
type Server struct {
	cfg      Config
	store    *seglog.Store
	pool     *hugepages.Pool
	freePool func() error
	loop     *netpoll.Loop
	core     *Core
	trim     *trimmer
	urls     []string
	ran      chan error
}

// NewServer opens the data directory, which checks and recovers every log in it.
// Errors: *seglog.CorruptError, seglog.ErrLocked, and what the system said. The
// caller owes a Shutdown.
func NewServer(cfg Config) (*Server, error) {
	if cfg.DataDir == "" {
		return nil, errors.New("broker: Config.DataDir is empty: name the directory for the topics")
	}
	if len(cfg.Listen) == 0 {
		cfg.Listen = []string{defaultListen}
	}
	if len(cfg.Backends) == 0 {
		cfg.Backends = []netpoll.Backend{netpoll.NewTCP()}
	}
	defaultTo(&cfg.MaxMessageBytes, netpoll.DefaultMaxMessageBytes)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return newServer(cfg, seglog.Options{
		Durability: cfg.Durability, SegmentBytes: cfg.SegmentBytes, MaxTopics: cfg.MaxTopics, Logger: cfg.Logger,
	})
}

func newServer(cfg Config, logs seglog.Options) (*Server, error) {
	s := &Server{cfg: cfg}
	var err error
	if s.pool, s.freePool, err = ownPool(cfg.Pool); err != nil {
		return nil, err
	}
	if s.store, err = seglog.Open(cfg.DataDir, logs); err != nil {
		return nil, errors.Join(err, s.freePool())
	}
	return s, nil
}

// Start runs the loop on a goroutine of its own and listens on every address. On
// error everything is closed.
func (s *Server) Start() error {
	if s.loop != nil || s.store == nil {
		return errors.New("broker: Start called twice, or after Shutdown")
	}
	loop, err := netpoll.NewLoop(netpoll.Options{
		Backends: s.cfg.Backends, Idle: s.cfg.Idle, Pool: s.pool, MaxMessageBytes: s.cfg.MaxMessageBytes, Logger: s.cfg.Logger,
	})
	if err != nil {
		return errors.Join(err, s.closeStore())
	}
	core, err := NewCore(CoreConfig{
		Store: s.store, Pool: s.pool, Scheduler: loopScheduler{loop}, MaxFrameBytes: s.cfg.MaxMessageBytes, Logger: s.cfg.Logger,
	})
	if err == nil {
		s.trim = newTrimmer(loop, s.pool)
		loop.AtCycleEnd(func(int64) int64 { core.Commit(); s.trim.cycleEnd(); return 0 })
	}
	s.loop, s.core, s.ran = loop, core, make(chan error, 1)
	go func() { s.ran <- loop.Run() }()
	for i := 0; err == nil && i < len(s.cfg.Listen); i++ {
		var ln netpoll.Listener
		if ln, err = loop.Listen(s.cfg.Listen[i], &sessionHandler{open: core.Open}); err == nil {
			s.urls = append(s.urls, ln.URL())
		}
	}
	if err != nil {
		loop.Stop()
		return errors.Join(fmt.Errorf("broker: %w", err), s.finish())
	}
	return nil
}

// URLs are the addresses served, in the order of Config.Listen, in the form that
// clients take, with the ports really bound. Valid after Start.
func (s *Server) URLs() []string { return s.urls }

// Loop is the server's loop, for its Stats and for Submit. Valid after Start.
func (s *Server) Loop() *netpoll.Loop { return s.loop }

// Stats of the core. Valid after Start.
func (s *Server) Stats() CoreStats { return s.core.Stats() }

// Store is the data directory, for its topics' recovery reports and counters.
func (s *Server) Store() *seglog.Store { return s.store }

// Shutdown refuses further requests, stores and acknowledges what was received,
// ends the connections in order, and closes the logs. When ctx ends it goes on
// without waiting for peers; appends under way are waited for in any case, since
// their buffers are in use.
func (s *Server) Shutdown(ctx context.Context) error {
	if s.store == nil {
		return nil
	}
	if s.loop == nil {
		return s.closeStore()
	}
	settle(ctx, s.loop, s.core.Shutdown, s.core.Settled)
	if err := s.loop.Shutdown(ctx); err != nil {
		return errors.Join(err, s.finish())
	}
	return s.finish()
}

// finish waits for the loop, which was told to stop, and frees everything.
func (s *Server) finish() error {
	err := <-s.ran
	s.ran <- err
	if s.core != nil {
		s.core.Close()
	}
	return errors.Join(err, s.closeStore())
}

func (s *Server) closeStore() error {
	err := s.store.Close()
	s.store = nil
	return errors.Join(err, s.freePool())
}
