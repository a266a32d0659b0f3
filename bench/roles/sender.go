package roles

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// sender is one connection of a client as its producer uses it, on one goroutine.
// It tells a batcher.Completer, on another, what became of each record.
type sender interface {
	// append takes a copy of r; it may keep it until flush.
	append(ctx context.Context, r *serialize.Record, token uint64) error
	flush() error
	// cycle changes with each burst of completions. Their goroutine only.
	cycle() int64
	// transport is what the connection runs on.
	transport() netpoll.Transport
	// close ends the connection once all is answered.
	close() error
}

// newSender connects a client. onSendRT is told on the completions' goroutine how long
// each batch was under way; it may be nil.
func newSender(ctx context.Context, spec role.Spec, to batcher.Completer, onSendRT func(nanos int64)) (sender, error) {
	if spec.Blocking {
		return dialNetSender(ctx, spec, to, onSendRT)
	}
	client, err := connect(ctx, spec, onSendRT)
	if err != nil {
		return nil, err
	}
	out, err := client.Producer(topicName, to)
	return &loopSender{client, out}, err
}

// loopSender is the product's own client.
type loopSender struct {
	client *broker.Client
	out    *broker.Producer
}

func (s *loopSender) append(ctx context.Context, r *serialize.Record, token uint64) error {
	return s.out.Append(ctx, r, token)
}
func (s *loopSender) flush() error { return nil } // at the end of the duty cycle
func (s *loopSender) cycle() int64 { return s.client.Loop().Now() }
func (s *loopSender) transport() netpoll.Transport {
	t, _ := s.client.Transport()
	return t
}
func (s *loopSender) close() error {
	s.out.Close()
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	return s.client.Close(ctx)
}

const (
	// netBatchBytes and netBatchRecords close a batch: the aggregator's defaults.
	netBatchBytes   = 128 << 10
	netBatchRecords = 2048
	// netInFlight bounds the requests without an answer of one connection.
	netInFlight = 8192
	// recordRoom is what a batch of one record needs besides its key and value.
	recordRoom = serialize.HeaderBytes + 64
)

// netSender is a client as one writes it with blocking sockets: it gathers what
// there is to send into a batch, writes that, and a goroutine reads the answers.
type netSender struct {
	conn    *netConn
	to      batcher.Completer
	builder *serialize.Builder
	most    int // records of a batch
	buf     []byte
	first   uint64 // token of the open batch's first record
	sent    uint32 // batches
	flights chan netFlight
	acks    int64 // frames read
	closing atomic.Bool
	ended   chan struct{}

	onSendRT func(nanos int64)
}

type netFlight struct {
	correlation uint32
	first       uint64
	records     int
	at          time.Time // if somebody asks for it
}

func dialNetSender(ctx context.Context, spec role.Spec, to batcher.Completer, onSendRT func(nanos int64)) (*netSender, error) {
	s := &netSender{to: to, onSendRT: onSendRT, most: netBatchRecords, buf: make([]byte, netBatchBytes), flights: make(chan netFlight, netInFlight), ended: make(chan struct{})}
	if spec.FlushEach {
		s.most = 1
	}
	var err error
	if s.builder, err = serialize.NewBuilder(s.most); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if s.conn, err = dialNet(ctx, spec.URL); err != nil {
		return nil, err
	}
	if err := s.greet(); err != nil {
		_ = s.conn.Close()
		return nil, err
	}
	s.begin(netBatchBytes)
	go s.read()
	return s, nil
}

func (s *netSender) greet() error {
	if err := s.conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	if err := s.conn.send(wire.AppendHello(nil, wire.Hello{Version: wire.Version, Role: wire.RoleClient, MaxFrameBytes: maxMessageBytes})); err != nil {
		return err
	}
	frame, err := s.conn.receive()
	if err != nil {
		return err
	}
	if _, err := wire.ParseHello(frame); err != nil {
		return err
	}
	return s.conn.SetDeadline(time.Time{})
}

// begin opens a batch of at most room bytes.
func (s *netSender) begin(room int) {
	if head := wire.ProduceHeaderBytes(topicName); len(s.buf) < head+room {
		s.buf = make([]byte, head+room)
	}
	s.builder.Reset(s.buf[wire.ProduceHeaderBytes(topicName):][:room])
}

func (s *netSender) append(_ context.Context, r *serialize.Record, token uint64) error {
	for {
		if s.builder.Len() == 0 {
			s.first = token
		}
		err := s.builder.Append(r)
		switch {
		case errors.Is(err, serialize.ErrFull):
			if err := s.flush(); err != nil {
				return err
			}
			continue
		case errors.Is(err, serialize.ErrRecordTooLarge):
			if err := s.flush(); err != nil {
				return err
			}
			s.begin(recordRoom + len(r.Key) + len(r.Value))
			s.first = token
			if err := s.builder.Append(r); err != nil {
				return err
			}
			return s.flush()
		case err != nil:
			return err
		}
		if s.builder.Len() == s.most {
			return s.flush()
		}
		return nil
	}
}

func (s *netSender) flush() error {
	n := s.builder.Len()
	if n == 0 {
		return nil
	}
	batch := s.builder.Finish()
	s.sent++
	f := netFlight{correlation: s.sent, first: s.first, records: n}
	if s.onSendRT != nil {
		f.at = time.Now()
	}
	select {
	case s.flights <- f:
	case <-s.ended:
		return net.ErrClosed
	}
	head := wire.ProduceHeaderBytes(topicName)
	wire.AppendProduceHeader(s.buf[:0], s.sent, topicName)
	err := s.conn.send(s.buf[:head+len(batch)])
	s.begin(netBatchBytes)
	return err
}

func (s *netSender) cycle() int64 { return s.acks }

func (s *netSender) transport() netpoll.Transport {
	return netpoll.Transport{Device: "net", Label: "kernel"}
}

func (s *netSender) close() error {
	s.closing.Store(true)
	err := s.conn.Close()
	<-s.ended
	return err
}

// read takes the answers, which come in the order of the requests.
func (s *netSender) read() {
	defer close(s.ended)
	for {
		frame, err := s.conn.receive()
		if err == nil {
			err = s.answered(frame)
		}
		if err != nil {
			if !s.closing.Load() {
				s.to.Complete(s.first, serialize.NoOffset, err)
			}
			return
		}
	}
}

func (s *netSender) answered(frame []byte) error {
	s.acks++
	h, err := wire.ParseHeader(frame)
	if err != nil {
		return err
	}
	if h.Kind == wire.KindError {
		e, err := wire.ParseError(frame)
		if err != nil {
			return err
		}
		return e
	}
	acks, err := wire.ParseAcks(frame)
	if err != nil {
		return err
	}
	for i := range acks.Len() {
		ack, f := acks.At(i), <-s.flights
		if ack.Correlation != f.correlation {
			return fmt.Errorf("an answer to request %d where %d was due", ack.Correlation, f.correlation)
		}
		if s.onSendRT != nil {
			s.onSendRT(int64(time.Since(f.at)))
		}
		for n := range f.records {
			s.to.Complete(f.first+uint64(n), int64(ack.Base)+int64(n), nil)
		}
	}
	return nil
}
