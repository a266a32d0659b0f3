package memif_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
)

// Messages leave on the goroutine of whoever sends them while the loop sleeps: alone, in the
// lane, and several after one another, beside it. A peer that goes meanwhile is noticed.
func TestBorrow(t *testing.T) {
	const patience = 20 * time.Second
	server, client := startLoop(t, netpoll.Efficient()), startLoop(t, netpoll.Efficient())
	ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	h := looptest.NewCollector(64)
	c, err := client.Dial(ctx, ln.URL(), h)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Do(func() {
		if ok, cheap := c.Lends(); !ok || !cheap {
			t.Errorf("it lends %v, cheaply %v", ok, cheap)
		}
	}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for round := range 60 {
		burst := 1 + round%4
		for i := range burst {
			looptest.Lend(t, c, bytes.Repeat([]byte{byte(n + i)}, 1+(n+i)*37%2000))
		}
		for range burst {
			select {
			case got := <-h.Got:
				if want := bytes.Repeat([]byte{byte(n)}, 1+n*37%2000); !bytes.Equal(got, want) {
					t.Fatalf("message %d: %d bytes of %d, or others", n, len(got), len(want))
				}
			case err := <-h.Closed:
				t.Fatalf("closed: %v", err)
			case <-time.After(patience):
				t.Fatalf("message %d did not come back", n)
			}
			n++
		}
	}
	server.Stop()
	select {
	case <-h.Closed:
	case <-time.After(patience):
		t.Fatal("the peer has gone, and nobody noticed")
	}
}
