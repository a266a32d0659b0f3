package softroce

import (
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
)

// What is sent outside of Progress moves the time at which Progress must run, and Deadline
// tells to when: a timer's, at once while something waits to be sent or a queue pair
// failed, and never again once all is acknowledged.
func TestDeadlineAfterTransmit(t *testing.T) {
	p := newPair(t, 1, Faults{}, 1024, options{})
	d := p.a.dev
	post := func(bytes int) {
		t.Helper()
		if _, err := p.a.qp.PostSend([]rdma.SendWR{{Data: p.a.mem[:bytes], Signaled: true}}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // as soon after it was acknowledged as before
		p.b.postRecvs(t, 1)
		now := p.net.Now()
		if at := d.Deadline(now); at != 0 {
			t.Fatalf("deadline %d while nothing is under way", at)
		}
		post(100)
		if at := d.Deadline(now); at != now {
			t.Errorf("deadline %d at %d, with something to send", at, now)
		}
		d.Transmit(now)
		timer := p.a.qp.(*queuePair).timer
		if at := d.Deadline(now); at != timer || at <= now {
			t.Errorf("deadline %d at %d, the timer expires at %d", at, now, timer)
		}
		p.settle(t, time.Second)
		p.a.poll()
		p.b.poll()
		if at := d.Deadline(p.net.Now()); at != 0 {
			t.Errorf("deadline %d after it was acknowledged", at)
		}
	}
	p.a.qp.(*queuePair).fail(rdma.LocalProtError, rdma.FlushError)
	if now := p.net.Now(); d.Deadline(now) != now {
		t.Errorf("deadline %d at %d, with a failed pair", d.Deadline(now), now)
	}
	d.Progress(p.net.Now())
	if at := d.Deadline(p.net.Now()); at != 0 {
		t.Errorf("deadline %d after Progress", at)
	}
}

// A message in the lane starts the watch over the peer, which Deadline tells of.
func TestDeadlineAfterLane(t *testing.T) {
	p, _, _ := newLanePair(t, options{unsummed: true})
	p.b.postRecvs(t, 8)
	p.ask(t)
	a, now := p.a.qp.(*queuePair), p.net.Now()+int64(laneNanos)/2
	if !a.SendNow([]byte("after a while"), 0, now) {
		t.Fatal("no message in the lane")
	}
	if at := p.a.dev.Deadline(now); at != now+laneNanos {
		t.Errorf("deadline %d at %d", at, now)
	}
	if later := now + laneNanos; a.LaneFree(later) || a.SendNow([]byte("too late"), 0, later) {
		t.Error("the lane is free though the peer has acknowledged nothing for long")
	}
}
