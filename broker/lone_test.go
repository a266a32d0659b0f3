package broker_test

import (
	"testing"
	"time"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/netpoll"
)

// Records that come one at a time are sent by their producer, while the client's loop
// sleeps; all complete, in order.
func TestLoneRecordsNeedNoWakeUp(t *testing.T) {
	s := startServer(t, broker.Config{Listen: []string{"tcp://127.0.0.1:0"}})
	c := connect(t, broker.ClientConfig{URL: s.URLs()[0], Idle: netpoll.Efficient()})
	got := newResults()
	p, err := c.Producer("lone", got)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for end := time.Now().Add(15 * time.Second); n < 50 || c.Loop().Stats().Lent < 10; n++ {
		if time.Now().After(end) {
			t.Fatalf("of %d records %d were sent by their producer", n, c.Loop().Stats().Lent)
		}
		r := line(n)
		if err := p.Append(within(t), &r, uint64(n)); err != nil {
			t.Fatal(err)
		}
		if err := got.wait(within(t), n+1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	p.Close()
	for i := range uint64(n) {
		if got.offsets[i] != int64(i) || got.order[i] != i {
			t.Fatalf("record %d has offset %d, error %v, completed as %d", i, got.offsets[i], got.errs[i], got.order[i])
		}
	}
	checkLines(t, c, "lone", n)
}
