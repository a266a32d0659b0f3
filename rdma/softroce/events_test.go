package softroce

import (
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// TestFirstPacketBeforeConnect: the first packet that comes while the pair is not
// connected raises one event; a damaged one raises none. The packet is sent again and
// taken then.
func TestFirstPacketBeforeConnect(t *testing.T) {
	net := NewMemoryNet(1, Faults{Delay: time.Microsecond})
	la, lb := net.Pair()
	p := &pair{net: net, a: newNode(t, la, options{}), b: newNode(t, lb, options{})}
	net.Advance(1)
	if err := p.a.qp.Connect(p.b.remote(1024)); err != nil {
		t.Fatal(err)
	}
	damage := true
	p.a.dev.link = &lossyLink{la, func(_ *roce.BTH, b []byte) bool {
		if damage {
			damage = false
			b[len(b)-1] ^= 1
		}
		return false
	}}
	p.b.postRecvs(t, 4)
	p.a.send(t, 1, []byte("early"))
	var events [4]rdma.Event
	seen := 0
	for end := net.Now() + int64(100*time.Millisecond); net.Now() < end; p.step() {
		n := p.b.dev.PollEvents(events[:])
		if n > 0 && (n > 1 || seen > 0 || events[0] != rdma.Event{Kind: rdma.EventCommEstablished, QPN: p.b.qp.Num()} || p.b.dev.Stats().DropState < 2) {
			t.Fatalf("events %+v after %d packets", events[:n], p.b.dev.Stats().DropState)
		}
		seen += n
	}
	if seen != 1 {
		t.Fatal("no event")
	}
	if err := p.b.qp.Connect(p.a.remote(1024)); err != nil {
		t.Fatal(err)
	}
	p.settle(t, time.Second)
	if wcs := p.b.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
		t.Fatalf("received %+v", wcs)
	}
}

// switchedLink can be down.
type switchedLink struct {
	Link
	up bool
}

func (l *switchedLink) Up() bool { return l.up }

func TestPortEvents(t *testing.T) {
	la, _ := NewMemoryNet(1, Faults{}).Pair()
	l := &switchedLink{la, false}
	d := New(l, Options{})
	defer d.Close()
	now := int64(1)
	expect := func(want ...rdma.EventKind) {
		t.Helper()
		now += portNanos
		d.Progress(now)
		var events [4]rdma.Event
		n := d.PollEvents(events[:])
		if n != len(want) || n > 0 && events[0].Kind != want[0] {
			t.Errorf("events %+v, want %v", events[:n], want)
		}
	}
	expect()
	l.up = true // it was never down
	expect()
	l.up = false
	expect(rdma.EventPortDown)
	expect()
	l.up = true
	expect(rdma.EventPortUp)
	expect()
}
