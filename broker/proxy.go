package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// ProxyConfig configures a Proxy. The zero value of a field means its default;
// only Broker has none.
type ProxyConfig struct {
	// Listen are the addresses to serve, as Config.Listen. Default
	// tcp://127.0.0.1:7071.
	Listen []string
	// Broker is the storage broker's address, over any of the Backends.
	Broker string
	// Backends are the transports to both sides. They are the proxy's from NewProxy
	// on. Default: TCP.
	Backends []netpoll.Backend
	// Idle is the loop's idle policy. Default netpoll.Balanced().
	Idle netpoll.IdlePolicy
	// Pool supplies all buffers; see Config.Pool. Default: an elastic arena of up to
	// 128 MiB of its own.
	Pool *hugepages.Pool
	// MaxMessageBytes is the largest message in either direction; see
	// Config.MaxMessageBytes. Default 4 MiB.
	MaxMessageBytes int
	// Batch configures the aggregator of each topic on the link to the broker. Pool,
	// OnWritable, Compressor and Counters are the proxy's.
	Batch batcher.Options
	// Compression is how the batches are compressed that the proxy gathers; see
	// ClientConfig.Compression. What comes compressed is passed on as it is.
	Compression serialize.Compression
	// OnSendRT, if set, is told for every batch how many nanoseconds after it was
	// sent to the broker its acknowledgement came. It runs on the loop.
	OnSendRT func(nanos int64)
	// Logger takes what no peer can be told. Default slog.Default().
	Logger *slog.Logger
}

const defaultProxyListen = "tcp://127.0.0.1:7071"

// Proxy stands between clients and a storage broker. It holds no state but the
// requests under way: what clients produce to one topic is gathered into common
// batches, and acknowledged when the broker has acknowledged those; fetches are
// passed on.
//
// While the broker cannot be reached requests are refused with
// wire.BrokerUnreachable, and the proxy goes on dialing. A request that was under
// way when the link broke is answered with wire.OutcomeUnknown; nothing is ever
// sent twice.
type Proxy struct {
	cfg     ProxyConfig
	host    *host
	forward *forwarder
	urls    []string
	up      chan struct{} // closed when the link was up for the first time
	stopped bool
}

// NewProxy makes a proxy, runs its loop and begins to dial the broker; it serves
// nobody before Start. The caller owes a Shutdown.
func NewProxy(cfg ProxyConfig) (*Proxy, error) {
	if cfg.Broker == "" {
		return nil, errors.New("broker: ProxyConfig.Broker is empty: name the storage broker's address, for instance tcp://127.0.0.1:7070")
	}
	if len(cfg.Listen) == 0 {
		cfg.Listen = []string{defaultProxyListen}
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
	p := &Proxy{cfg: cfg, host: h, up: make(chan struct{})}
	l, err := newLink(h, linkConfig{url: cfg.Broker, role: wire.RoleProxy, maxFrame: cfg.MaxMessageBytes, batch: cfg.Batch, compress: cfg.Compression, log: cfg.Logger})
	if err != nil {
		return nil, errors.Join(err, stopNow(h))
	}
	l.onSendRT = cfg.OnSendRT
	p.forward = newForwarder(l)
	l.onUp = p.linkUp
	l.onDown = p.linkDown
	err = h.loop.Do(func() {
		h.loop.AtCycleEnd(p.forward.cycleEnd)
		l.dial()
	})
	if err != nil {
		return nil, errors.Join(err, stopNow(h))
	}
	return p, nil
}

// stopNow stops a host that has nothing to drain.
func stopNow(h *host) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return h.stop(ctx)
}

func (p *Proxy) linkUp() {
	select {
	case <-p.up:
	default:
		close(p.up)
	}
	t := p.forward.link.conn.Transport()
	p.cfg.Logger.Info("broker reached", "url", p.cfg.Broker, "device", t.Device, "label", t.Label, "reason", t.Reason, "note", t.Note)
}

func (p *Proxy) linkDown(err error) {
	if first := p.forward.link.attempts == 1; first { // then it is dialed again and again
		p.cfg.Logger.Warn("no link to the broker; dialing again", "url", p.cfg.Broker, "err", err)
	}
	p.forward.room()
}

// Start listens on every address.
func (p *Proxy) Start() error {
	for _, u := range p.cfg.Listen {
		ln, err := p.host.loop.Listen(u, &sessionHandler{open: p.forward.open})
		if err != nil {
			return fmt.Errorf("broker: proxy: %w", err)
		}
		p.urls = append(p.urls, ln.URL())
	}
	return nil
}

// Ready waits until the link to the broker was up once, or ctx ends; then the
// error says why it is not.
func (p *Proxy) Ready(ctx context.Context) error {
	select {
	case <-p.up:
		return nil
	case <-p.host.loop.Done():
		return ErrClosed
	case <-ctx.Done():
		var why error
		if p.host.loop.Do(func() { why = p.forward.link.unreachable() }) != nil {
			why = ErrClosed
		}
		return fmt.Errorf("broker: proxy is not ready: %w (%w)", why, ctx.Err())
	}
}

// URLs are the addresses served, as Server.URLs. Valid after Start.
func (p *Proxy) URLs() []string { return p.urls }

// Loop is the proxy's loop, for its Stats.
func (p *Proxy) Loop() *netpoll.Loop { return p.host.loop }

// Stats count what was sent to the broker. Any goroutine.
func (p *Proxy) Stats() LinkStats { return p.forward.link.stats() }

// Transport is what the link to the broker runs on, and why; ok is false while
// there is no link. Any goroutine but the loop's.
func (p *Proxy) Transport() (t netpoll.Transport, ok bool) { return p.forward.link.transport() }

// Shutdown refuses further requests, waits until the broker has answered those
// under way, and ends the connections in order. When ctx ends it goes on without
// waiting; requests without an answer end with wire.OutcomeUnknown.
func (p *Proxy) Shutdown(ctx context.Context) error {
	if p.stopped {
		return nil
	}
	p.stopped = true
	f := p.forward
	settle(ctx, p.host.loop, func() { f.closing = true }, func() bool { return f.producing == 0 })
	err := p.host.loop.Do(f.link.close)
	if errors.Is(err, netpoll.ErrLoopClosed) {
		err = nil
	}
	return errors.Join(err, p.host.stop(ctx))
}
