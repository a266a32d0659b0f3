package verbs_test

import (
	"bytes"
	"testing"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
	"github.com/millrace/millrace/rdma/verbs"
)

// Messages are posted on the threads of whoever sends them while the loop sleeps, and what
// it armed wakes it when the answers come.
func TestBorrow(t *testing.T) {
	needDevice(t)
	server := startLoop(t, verbsLoop(t, verbs.Choice{}), netpoll.Balanced())
	client := startLoop(t, verbsLoop(t, verbs.Choice{}), netpoll.Efficient())
	h := newCollector()
	c := dial(t, client, listen(t, server, "rdma://"+deviceAddress(t), echo{}), h)
	for i := range 30 {
		p := bytes.Repeat([]byte{byte(i)}, 1+i*400)
		sent := make(chan struct{})
		go func() { // on another thread each time
			defer close(sent)
			looptest.Lend(t, c, p)
		}()
		<-sent
		if got := h.next(t); !bytes.Equal(got, p) {
			t.Fatalf("message %d: %d bytes of %d, or others", i, len(got), len(p))
		}
	}
	if lent := client.Stats().Lent; lent < 29 { // the last may not show yet
		t.Errorf("lent %d times", lent)
	}
}
