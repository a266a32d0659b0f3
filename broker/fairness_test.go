package broker_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// byHand is a broker that reads and answers one frame at a time, when told to.
type byHand struct {
	t *testing.T
	c net.Conn
}

// handMade returns a client and its broker, which has greeted.
func handMade(t *testing.T, cfg broker.ClientConfig) (*broker.Client, *byHand) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, err = netpoll.Handshake(c, 1<<20)
		}
		if err == nil {
			_, err = readFrame(c)
		}
		if err == nil {
			err = writeFrame(c, wire.AppendHello(nil, wire.Hello{Version: wire.Version, Role: wire.RoleBroker, Durability: 1, MaxFrameBytes: 1 << 20}))
		}
		if err != nil {
			t.Error(err)
			if c != nil {
				_ = c.Close()
			}
		}
		accepted <- c
	}()
	cfg.URL, cfg.Pool, cfg.Logger = "tcp://"+ln.Addr().String(), memory(t, 16<<20), quiet
	client, err := broker.Connect(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := &byHand{t, <-accepted}
	if err := b.c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return client, b
}

func (b *byHand) read() wire.Produce {
	b.t.Helper()
	f, err := readFrame(b.c)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := wire.ParseProduce(f)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *byHand) ack(p wire.Produce) {
	b.t.Helper()
	if err := writeFrame(b.c, wire.AppendAcks(nil, []wire.Ack{{Correlation: p.Correlation}})); err != nil {
		b.t.Fatal(err)
	}
}

type ignore struct{}

func (ignore) Complete(uint64, int64, error) {}

// One partition that floods a link does not hold the others up: whatever it has
// queued, at most as many of its batches go before a record of another as may be
// under way, one lane's bound.
func TestFloodIsFairToOtherPartitions(t *testing.T) {
	const underWay, slowOnes, rounds = 8, 4, 25
	client, b := handMade(t, broker.ClientConfig{Batch: batcher.Options{MaxBatchBytes: 4 << 10, MaxBatches: underWay}})
	flood, err := client.Producer("flood", ignore{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(within(t))
	flooding := make(chan struct{})
	go func() {
		defer close(flooding)
		for r := (serialize.Record{Value: make([]byte, 1<<10)}); ; {
			if err := flood.Append(ctx, &r, 0); err != nil {
				if ctx.Err() == nil && !errors.Is(err, broker.ErrClosed) {
					t.Error(err)
				}
				return
			}
		}
	}()
	var slow []*broker.Producer
	for i := range slowOnes {
		p, err := client.Producer(fmt.Sprint("slow", i), ignore{})
		if err != nil {
			t.Fatal(err)
		}
		slow = append(slow, p)
	}
	var unanswered []wire.Produce
	worst := 0
	for range rounds {
		for len(unanswered) < underWay { // the flood goes as far as it may
			p := b.read()
			if string(p.Topic) != "flood" {
				t.Fatalf("a batch of %s came twice", p.Topic)
			}
			unanswered = append(unanswered, p)
		}
		for _, p := range slow {
			if err := p.TryAppend(&serialize.Record{Value: []byte("slow")}, 0); err != nil {
				t.Fatal(err)
			}
		}
		// The broker answers the flood at once, batch by batch, and it goes on.
		for waiting, before := slowOnes, 0; waiting > 0; {
			if len(unanswered) > 0 {
				b.ack(unanswered[0])
				unanswered = unanswered[1:]
			}
			if p := b.read(); string(p.Topic) == "flood" {
				unanswered = append(unanswered, p)
				before++
			} else {
				b.ack(p)
				waiting--
				worst = max(worst, before)
			}
		}
	}
	if worst > underWay {
		t.Errorf("%d batches of the flood went before a record of another partition, want at most %d", worst, underWay)
	}
	t.Logf("at most %d batches of the flood went before a record of another partition", worst)
	stop()
	<-flooding
	_ = b.c.Close()
	closing, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := client.Close(closing); err != nil {
		t.Error(err)
	}
}
