package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/millrace/millrace/batcher"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/serialize"
)

// Batches that a client compresses are stored as they are and consumed like
// others, over every transport, directly and through a proxy, beside those of
// clients that do not compress.
func TestCompression(t *testing.T) {
	const n = 2000
	for _, scheme := range schemes {
		for _, how := range []serialize.Compression{serialize.S2, serialize.Zstd} {
			t.Run(fmt.Sprint(scheme, "/", how), func(t *testing.T) {
				s := startServer(t, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}})
				p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0], Compression: how})
				plain := connect(t, broker.ClientConfig{URL: p.URLs()[0]})
				for _, url := range []string{s.URLs()[0], p.URLs()[0]} {
					c := connect(t, broker.ClientConfig{URL: url, Compression: how})
					topic := fmt.Sprint("t", len(url))
					before, passed := s.Stats(), p.Stats().Passed
					produceLines(t, c, topic, 0, n)
					checkLines(t, plain, topic, n)
					got := c.Stats()
					if got.Records != n || got.Compressed == 0 || got.Bytes*2 > got.PlainBytes {
						t.Errorf("the client sent %+v", got)
					}
					after := s.Stats()
					if sent, stored := got.Bytes, after.StoredBytes-before.StoredBytes; url == s.URLs()[0] && stored != sent {
						t.Errorf("%d bytes of batches were sent, %d stored", sent, stored)
					}
					if plain := after.PlainBytes - before.PlainBytes; url == s.URLs()[0] && plain != got.PlainBytes {
						t.Errorf("%d bytes were sent, %d stored, both uncompressed", got.PlainBytes, plain)
					}
					if url == p.URLs()[0] && p.Stats().Passed-passed < got.Compressed {
						t.Errorf("%d compressed batches, the proxy passed %d on as they were", got.Compressed, p.Stats().Passed-passed)
					}
				}
				// The proxy compresses what it gathers; the client's batches are so small that
				// the proxy takes them apart.
				little := connect(t, broker.ClientConfig{URL: p.URLs()[0], Batch: batcher.Options{MaxBatchBytes: 8 << 10}})
				produceLines(t, little, "gathered", 0, n)
				checkLines(t, plain, "gathered", n)
				if got := p.Stats(); got.Compressed == 0 || got.Bytes*2 > got.PlainBytes {
					t.Errorf("the proxy sent %+v", got)
				}
				// One after the other from both: their order is that of the answers.
				small := connect(t, broker.ClientConfig{URL: p.URLs()[0], Compression: how})
				for i := range 20 {
					c := []*broker.Client{plain, small}[i%2]
					r := serialize.Record{Value: []byte(strings.Repeat(fmt.Sprint(i, " "), 300))}
					if offset, err := c.Produce(within(t), "mixed", &r); err != nil || offset != int64(i) {
						t.Fatalf("record %d: offset %d, %v", i, offset, err)
					}
				}
			})
		}
	}
}

// A record too large for an aggregated batch is compressed too; one that does not
// shrink is not.
func TestCompressionOfLargeRecords(t *testing.T) {
	s := startServer(t, broker.Config{})
	c := connect(t, broker.ClientConfig{URL: s.URLs()[0], Compression: serialize.Zstd})
	noise := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	want := [][]byte{bytes.Repeat([]byte("millrace "), 200_000), noise}
	for i, v := range want {
		before := s.Stats().StoredBytes
		if _, err := c.Produce(within(t), "large", &serialize.Record{Value: v}); err != nil {
			t.Fatal(err)
		}
		if stored := s.Stats().StoredBytes - before; (stored < int64(len(v))/2) != (i == 0) {
			t.Errorf("a record of %d bytes took %d", len(v), stored)
		}
	}
	consume(t, c, "large", want)
}

// consume compares the values of topic with want.
func consume(t *testing.T, c *broker.Client, topic string, want [][]byte) {
	t.Helper()
	i := 0
	err := c.Consume(within(t), topic, 0, func(_ uint64, r *serialize.Record) error {
		if !bytes.Equal(r.Value, want[i]) {
			return fmt.Errorf("record %d has %d other bytes", i, len(r.Value))
		}
		if i++; i == len(want) {
			return broker.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A consumer says which limit to raise when a batch decompresses to more than it
// takes.
func TestConsumerBoundsDecompression(t *testing.T) {
	s := startServer(t, broker.Config{})
	c := connect(t, broker.ClientConfig{URL: s.URLs()[0], Compression: serialize.S2})
	if _, err := c.Produce(within(t), "t", &serialize.Record{Value: make([]byte, 1<<20)}); err != nil {
		t.Fatal(err)
	}
	narrow := connect(t, broker.ClientConfig{URL: s.URLs()[0], MaxMessageBytes: 256 << 10})
	err := narrow.Consume(within(t), "t", 0, func(uint64, *serialize.Record) error { return nil })
	mustFail(t, err, serialize.ErrTooLarge)
	if !strings.Contains(err.Error(), "MaxMessageBytes") {
		t.Errorf("the error does not say what to raise: %v", err)
	}
}

func TestUnknownCompression(t *testing.T) {
	if _, err := broker.Connect(context.Background(), broker.ClientConfig{URL: "tcp://127.0.0.1:1", Compression: 9, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "zstd") {
		t.Errorf("got %v", err)
	}
}
