package roles

import (
	"context"
	"errors"
	"io"
	"net/url"
	"sync"
	"time"

	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// The message path as one writes it with Go's blocking sockets: goroutines for
// each connection, a lock around the storage. The storage is the product's.

// netStorage is a broker.Core behind a lock; it is the core's Scheduler.
type netStorage struct {
	mu   sync.Mutex
	core *broker.Core
	pool *hugepages.Pool
}

func (s *netStorage) exclusively(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.core.Commit()
}

// Submit implements broker.Scheduler. The caller may hold the lock.
func (s *netStorage) Submit(fn func()) error {
	go s.exclusively(fn)
	return nil
}

// After implements broker.Scheduler.
func (s *netStorage) After(d time.Duration, fn func()) (stop func()) {
	t := time.AfterFunc(d, func() { s.exclusively(fn) })
	return func() { t.Stop() }
}

// netPeer is one connection of it. Its fields but out and conn are the lock's.
type netPeer struct {
	storage *netStorage
	conn    *netConn
	session *broker.Session
	resumed *sync.Cond
	paused  bool
	refused bool
	closing bool
	out     chan *hugepages.Buf
}

// netPeerQueue bounds the answers that wait for a connection.
const netPeerQueue = 1024

// Send implements broker.Peer.
func (p *netPeer) Send(b *hugepages.Buf) error {
	if p.closing {
		return netpoll.ErrClosed
	}
	select {
	case p.out <- b:
		return nil
	default:
		p.refused = true
		return netpoll.ErrBackpressure
	}
}

// SetReading implements broker.Peer.
func (p *netPeer) SetReading(on bool) {
	p.paused = !on
	p.resumed.Broadcast()
}

// Close implements broker.Peer: what is queued is still written.
func (p *netPeer) Close(error) {
	if !p.closing {
		p.closing = true
		close(p.out)
		p.resumed.Broadcast()
	}
}

// write sends the answers until the connection ends.
func (p *netPeer) write() {
	var failed bool
	for b := range p.out {
		failed = failed || p.conn.send(b.Bytes()) != nil
		b.Release()
		if len(p.out) == 0 {
			p.storage.exclusively(func() {
				if p.refused && !p.closing {
					p.refused = false
					p.session.Writable()
				}
			})
		}
	}
	_ = p.conn.Close() // the reader notices
}

// serve reads requests until the connection ends. What came in one piece is
// stored together.
func (s *netStorage) serve(conn *netConn) error {
	p := &netPeer{storage: s, conn: conn, resumed: sync.NewCond(&s.mu), out: make(chan *hugepages.Buf, netPeerQueue)}
	s.exclusively(func() { p.session = s.core.Open(p) })
	go p.write()
	defer s.exclusively(func() {
		p.Close(nil)
		p.session.Close()
	})
	for {
		b, err := conn.receiveBuf(s.pool)
		if err != nil {
			return err
		}
		s.mu.Lock()
		for p.paused && !p.closing {
			if s.core.Commit(); p.paused && !p.closing {
				p.resumed.Wait()
			}
		}
		p.session.Request(&netpoll.Message{Segment: netpoll.Segment{Data: b.Bytes(), Buf: b}})
		if !conn.frameWaits() {
			s.core.Commit()
		}
		s.mu.Unlock()
		b.Release()
	}
}

// netPoolBytes is the memory for requests, answers and batches under way.
const netPoolBytes = 128 << 20

func runNetBroker(ctx context.Context, spec role.Spec, c *role.Control) error {
	durability, err := seglog.ParseDurability(spec.Durability)
	if err != nil {
		return err
	}
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: netPoolBytes})
	if err != nil {
		return err
	}
	store, err := seglog.Open(spec.DataDir, seglog.Options{Durability: durability, Logger: warnings()})
	if err != nil {
		return err
	}
	s := &netStorage{pool: hugepages.NewPool(arena)}
	if s.core, err = broker.NewCore(broker.CoreConfig{Store: store, Pool: s.pool, Scheduler: s, MaxFrameBytes: maxMessageBytes, Logger: warnings()}); err != nil {
		return err
	}
	return serveNet(ctx, spec, c, cpuMeter(), s.serve, func() error {
		s.exclusively(s.core.Shutdown)
		for settled, until := false, time.Now().Add(stopPatience); !settled && time.Now().Before(until); {
			s.exclusively(func() { settled = s.core.Settled() })
			time.Sleep(time.Millisecond)
		}
		s.core.Close()
		return store.Close()
	})
}

// runNetProxy passes frames between each client and a connection of its own to
// the broker.
func runNetProxy(ctx context.Context, spec role.Spec, c *role.Control) error {
	if _, err := url.Parse(spec.Upstream); err != nil {
		return err
	}
	var mu sync.Mutex
	sendRT := measure.NewHistogram()
	m := cpuMeter()
	m.OnMark = func(e *role.Event) {
		mu.Lock()
		defer mu.Unlock()
		e.SendRT = sendRT.Quantiles()
		sendRT.Reset()
	}
	return serveNet(ctx, spec, c, m, func(client *netConn) error {
		up, err := dialNet(ctx, spec.Upstream)
		if err != nil {
			return err
		}
		defer up.Close()
		sent := map[uint32]time.Time{}
		var sentMu sync.Mutex
		down := make(chan error, 1)
		go func() {
			down <- relay(up, client, func(frame []byte) error {
				if h, err := wire.ParseHeader(frame); err != nil || h.Kind != wire.KindProduceAck {
					return err
				}
				acks, err := wire.ParseAcks(frame)
				if err != nil {
					return err
				}
				now := time.Now()
				for i := range acks.Len() {
					corr := acks.At(i).Correlation
					sentMu.Lock()
					at := sent[corr]
					delete(sent, corr)
					sentMu.Unlock()
					mu.Lock()
					sendRT.Record(now.Sub(at))
					mu.Unlock()
				}
				return nil
			})
			_ = client.Close()
		}()
		err = relay(client, up, func(frame []byte) error {
			h, err := wire.ParseHeader(frame)
			if err == nil && h.Kind == wire.KindProduce {
				sentMu.Lock()
				sent[h.Correlation] = time.Now()
				sentMu.Unlock()
			}
			return err
		})
		_ = up.Close()
		if derr := <-down; errors.Is(err, io.EOF) {
			err = derr
		}
		return err
	}, func() error { return nil })
}

// relay passes frames from one connection to the other.
func relay(from, to *netConn, look func(frame []byte) error) error {
	for {
		frame, err := from.receive()
		if err != nil {
			return err
		}
		if err := look(frame); err != nil {
			return err
		}
		if err := to.send(frame); err != nil {
			return err
		}
	}
}
