package softroce

import (
	"testing"

	"github.com/millrace/millrace/rdma"
)

// What is still reported of a closed pair must not seem to be a new one's.
func TestNumbersRest(t *testing.T) {
	net := NewMemoryNet(1, Faults{})
	link, _ := net.Pair()
	d := New(link, Options{random: func() uint32 { return 1234567 }}) // always the same number first
	defer d.Close()
	pd, err := d.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	cq, err := d.CreateCQ(16)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{}
	for i := range retiredQPNs + 1 {
		q, err := pd.CreateQP(rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: 1, RecvWRs: 1})
		if err != nil {
			t.Fatal(err)
		}
		if seen[q.Num()] {
			t.Fatalf("pair %d has the number of one that was closed before", i)
		}
		seen[q.Num()] = true
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
