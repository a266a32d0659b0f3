package broker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/serialize"
)

// Flush ends with its context where the broker does not answer, and with the answer
// where it does.
func TestFlushHasADeadline(t *testing.T) {
	client, b := handMade(t, broker.ClientConfig{})
	p, err := client.Producer("flushed", ignore{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.TryAppend(&serialize.Record{Value: []byte("one")}, 0); err != nil {
		t.Fatal(err)
	}
	batch := b.read()
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := p.Flush(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
	b.ack(batch)
	if err := p.Flush(within(t)); err != nil {
		t.Errorf("after the answer: %v", err)
	}
	_ = b.c.Close()
	if err := client.Close(within(t)); err != nil {
		t.Error(err)
	}
}
