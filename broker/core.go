package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// CoreConfig configures a Core. The zero value of a field means its default.
type CoreConfig struct {
	// Store holds the topics. The caller opens it, and closes it after Core.Close.
	Store *seglog.Store
	// Pool supplies the memory of answers.
	Pool *hugepages.Pool
	// Scheduler runs timers and completions.
	Scheduler Scheduler
	// MaxFrameBytes is the largest frame in either direction. Default 4 MiB.
	MaxFrameBytes int
	// MaxPendingBytes bounds the batches received and not yet stored, each counted
	// with 256 bytes besides its own; beyond it sessions are not read. Default
	// 16 MiB.
	MaxPendingBytes int
	// MaxWaitingFetches bounds the fetches that wait for records, of all sessions
	// together; one client may have 64 of them, a proxy all. Default 16,384.
	MaxWaitingFetches int
	// MaxWait bounds how long one fetch waits, whatever it asks for. Default 30 s.
	MaxWait time.Duration
	// Logger takes what no peer can be told. Default slog.Default().
	Logger *slog.Logger
}

const (
	defaultMaxPendingBytes = 16 << 20
	defaultMaxWaiting      = 16384
	maxClientFetches       = 64
	defaultMaxWait         = 30 * time.Second

	// frameOverhead is reserved in every frame around a batch: the header of a
	// Produce with the longest topic name has 208 bytes, that of a FetchResponse
	// with one entry 44.
	frameOverhead = 256
	minFrameBytes = 4 << 10

	// retryAfter is how soon something that found the pool exhausted tries again.
	retryAfter = time.Millisecond
)

// Core is the storage broker without its network: sessions bring requests in,
// answers leave through their Peer. It is not safe for concurrent use; see
// Scheduler.
//
// Batches of a topic that arrive between two Commits are stored with one write,
// and their acknowledgements leave together.
type Core struct {
	cfg     CoreConfig
	log     *slog.Logger
	topics  map[string]*topic
	checker checker

	dirty   []*topic   // have batches to store
	acked   []*Session // have acknowledgements to send
	blocked []*Session // not read because MaxPendingBytes is reached
	retries []func()

	waiting      int // fetches, of all sessions
	pendingBytes int
	inFlight     int // topics with a group at their committer
	closing      bool
	committers   sync.WaitGroup
	complained   time.Time // see complain
	silenced     int
	stats        coreCounters
}

type coreCounters struct {
	produced, storedBytes, plainBytes, fetched, fetchedBytes, refused, sessions atomic.Int64
}

// CoreStats count since the core was made. Any goroutine may read them.
type CoreStats struct {
	Sessions     int64 // open now
	Produced     int64 // batches stored and acknowledged
	StoredBytes  int64 // of these batches
	PlainBytes   int64 // of these batches uncompressed
	Fetched      int64 // fetches answered with records
	FetchedBytes int64 // of entries
	Refused      int64 // requests answered with an error
}

// NewCore makes a core over an open store.
func NewCore(cfg CoreConfig) (*Core, error) {
	if cfg.Store == nil || cfg.Pool == nil || cfg.Scheduler == nil {
		return nil, errors.New("broker: CoreConfig needs Store, Pool and Scheduler")
	}
	defaultTo(&cfg.MaxFrameBytes, netpoll.DefaultMaxMessageBytes)
	defaultTo(&cfg.MaxPendingBytes, defaultMaxPendingBytes)
	defaultTo(&cfg.MaxWaitingFetches, defaultMaxWaiting)
	if cfg.MaxWait <= 0 {
		cfg.MaxWait = defaultMaxWait
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := checkFrameBytes(cfg.MaxFrameBytes, cfg.Pool); err != nil {
		return nil, err
	}
	c := &Core{cfg: cfg, log: cfg.Logger, topics: map[string]*topic{}}
	c.checker.limit = c.maxBatchBytes()
	for _, name := range cfg.Store.Topics() {
		c.addTopic(name, cfg.Store.Topic(name))
	}
	return c, nil
}

// checkFrameBytes says whether frames of at most n bytes can be served from pool.
func checkFrameBytes(n int, pool *hugepages.Pool) error {
	switch {
	case n < minFrameBytes:
		return fmt.Errorf("broker: messages of at most %d bytes: use at least %d", n, minFrameBytes)
	case n > pool.MaxBytes():
		return fmt.Errorf("broker: messages of at most %d bytes, and the pool's largest buffer has %d: lower MaxMessageBytes, or enlarge the pool's arena", n, pool.MaxBytes())
	}
	return nil
}

func defaultTo(v *int, d int) {
	if *v <= 0 {
		*v = d
	}
}

// Stats returns the counters. Any goroutine.
func (c *Core) Stats() CoreStats {
	s := &c.stats
	return CoreStats{s.sessions.Load(), s.produced.Load(), s.storedBytes.Load(), s.plainBytes.Load(), s.fetched.Load(), s.fetchedBytes.Load(), s.refused.Load()}
}

// Open begins a session for a connection.
func (c *Core) Open(p Peer) *Session {
	c.stats.sessions.Add(1)
	return newSession(c, p, c.cfg.MaxFrameBytes)
}

// maxBatchBytes is the largest batch that can be stored and fetched again.
func (c *Core) maxBatchBytes() int { return c.cfg.MaxFrameBytes - frameOverhead }

// Commit stores what arrived since the last one, sends the acknowledgements and
// answers the fetches that waited for it. The owner calls it at the end of each
// burst of requests.
func (c *Core) Commit() {
	for i := 0; i < len(c.dirty); i++ {
		t := c.dirty[i]
		t.dirty = false
		t.commit()
	}
	clear(c.dirty)
	c.dirty = c.dirty[:0]
	c.sendAcks()
}

// sendAcks sends each session's acknowledgements as one message.
func (c *Core) sendAcks() {
	for i := 0; i < len(c.acked); i++ {
		c.acked[i].sendAcks()
	}
	clear(c.acked)
	c.acked = c.acked[:0]
}

// later runs fn again in a while, after the pool was found exhausted.
func (c *Core) later(fn func()) {
	c.retries = append(c.retries, fn)
	if len(c.retries) > 1 {
		return
	}
	c.cfg.Scheduler.After(retryAfter, func() {
		fns := c.retries
		c.retries = nil
		for _, fn := range fns {
			fn()
		}
		c.Commit()
	})
}

// settled takes n bytes off the pending ones and lets blocked sessions go on.
func (c *Core) settled(n int) {
	c.pendingBytes -= n
	if len(c.blocked) == 0 || c.pendingBytes > c.cfg.MaxPendingBytes/2 {
		return
	}
	sessions := c.blocked
	c.blocked = nil
	for _, s := range sessions {
		s.blocked = false
		s.replay()
	}
}

// Shutdown refuses all further requests, and answers those that wait.
func (c *Core) Shutdown() {
	c.closing = true
	for _, t := range c.topics {
		for len(t.waiters) > 0 {
			w := t.waiters[0]
			t.remove(w)
			w.session.refuse(w.correlation, errShuttingDown)
		}
	}
}

// Settled reports whether everything received was stored and answered, as far as
// it can be.
func (c *Core) Settled() bool { return len(c.dirty) == 0 && c.inFlight == 0 && len(c.retries) == 0 }

// Close ends the committers. No method may be called any more, and Submit must
// still work or refuse until Close returns; it waits for appends under way, and
// is therefore called outside of the core's exclusion. What was received and not
// stored is dropped; nobody was told that it was.
func (c *Core) Close() {
	for _, t := range c.topics {
		if t.groups != nil {
			close(t.groups)
		}
	}
	c.committers.Wait()
	for _, t := range c.topics {
		t.pending.release()
	}
}

// complain logs an error, at most one a second: a failing disk fails often.
func (c *Core) complain(msg string, args ...any) {
	now := time.Now()
	if now.Sub(c.complained) < time.Second {
		c.silenced++
		return
	}
	c.log.Error(msg, append(args, "silenced", c.silenced)...)
	c.complained, c.silenced = now, 0
}

func (c *Core) hello() wire.Hello {
	return wire.Hello{Version: wire.Version, Role: wire.RoleBroker,
		Durability: uint8(c.cfg.Store.Durability()), MaxFrameBytes: uint32(c.cfg.MaxFrameBytes)}
}

func (c *Core) memory() *hugepages.Pool { return c.cfg.Pool }

func (c *Core) acknowledge(s *Session) { c.acked = append(c.acked, s) }

func (c *Core) after(d time.Duration, fn func()) (stop func()) {
	return c.cfg.Scheduler.After(d, fn)
}

// crowded says that answers hold half of the pool. The other half is for
// requests and acknowledgements, so that slow consumers do not stop producers.
func (c *Core) crowded() bool {
	return c.cfg.Pool.Usage(hugepages.Send).Bytes > c.cfg.Pool.Arena().Report().Bytes/2
}

// closed forgets a session's waiting fetches. Its produces stay: they are stored,
// and nobody is told.
func (c *Core) closed(s *Session) {
	for len(s.waiters) > 0 {
		w := s.waiters[0]
		w.topic.remove(w)
	}
	if s.blocked {
		c.blocked = slices.DeleteFunc(c.blocked, func(b *Session) bool { return b == s })
	}
	c.stats.sessions.Add(-1)
}

// writable serves the fetches that waited because the session was congested.
func (c *Core) writable(s *Session) {
	for i := 0; i < len(s.waiters) && !s.congested(); {
		if w := s.waiters[i]; !w.topic.serve(w) {
			i++
		}
	}
}

var errShuttingDown = &wire.Error{Code: wire.ShuttingDown, Text: "this broker is going away; nothing was stored: connect again in a while"}
