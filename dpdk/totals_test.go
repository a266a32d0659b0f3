package dpdk_test

import (
	"testing"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/rdma/softroce"
)

// What links counted is in the totals once their loop sleeps, and stays there when they
// are gone.
func TestTotals(t *testing.T) {
	a, b, _, pb := newLinks(t, dpdk.LinkConfig{Local: here4}, dpdk.LinkConfig{Local: there4})
	path, err := a.Path(there4)
	if err != nil {
		t.Fatal(err)
	}
	before := dpdk.Totals()
	var rx [8]softroce.Frame
	sendTo(t, a, &path, 100) // before anybody answered
	b.Rx(rx[:])
	a.Rx(rx[:])
	pb.Inject(make([]byte, 60))
	b.Rx(rx[:])
	a.Arm()
	b.Arm()
	now := dpdk.Totals()
	if n := now.RxFrames - before.RxFrames; n < 3 { // a question, an answer, and a frame that nobody wants
		t.Errorf("%d frames received", n)
	}
	if now.Answered == before.Answered || now.Unresolved == before.Unresolved || now.Dropped[dpdk.DropMAC] == before.Dropped[dpdk.DropMAC] {
		t.Errorf("%+v\nbefore: %+v", now, before)
	}
}
