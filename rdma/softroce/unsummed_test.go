package softroce

import (
	"testing"
	"time"

	"github.com/millrace/millrace/rdma/roce"
)

// sumLink counts the packets that carry an ICRC.
type sumLink struct {
	Link
	packets, summed int
}

func (l *sumLink) Tx(frames []Frame) int {
	n := l.Link.Tx(frames)
	for i := range frames[:n] {
		l.packets++
		if roce.GetICRC(frames[i].Data[frames[i].Len-roce.ICRCLen:]) != 0 {
			l.summed++
		}
	}
	return n
}

// Two ends that agreed to leave the ICRC out send none and ask for none, in packets of
// every kind: short and long messages, acknowledgements, NAKs behind lost packets.
func TestUnsummed(t *testing.T) {
	for _, tc := range []struct {
		name     string
		unsummed bool
		loss     float64
	}{{"agreed", true, 0}, {"agreed, with loss", true, 0.01}, {"not agreed", false, 0}} {
		t.Run(tc.name, func(t *testing.T) {
			net := NewMemoryNet(3, Faults{Loss: tc.loss})
			la, lb := net.Pair()
			ends := [2]*sumLink{{Link: la}, {Link: lb}}
			o := options{slot: 32 << 10, unsummed: tc.unsummed}
			p := &pair{net: net, a: newNode(t, ends[0], o), b: newNode(t, ends[1], o)}
			net.Advance(1)
			if err := p.a.qp.Connect(p.b.remote(4096)); err != nil {
				t.Fatal(err)
			}
			if err := p.b.qp.Connect(p.a.remote(4096)); err != nil {
				t.Fatal(err)
			}
			p.run(t, newTraffic(4, 2000, 32<<10), time.Minute)
			for _, l := range ends {
				if l.packets == 0 || tc.unsummed && l.summed != 0 || !tc.unsummed && l.summed != l.packets {
					t.Errorf("%d of %d packets have an ICRC", l.summed, l.packets)
				}
			}
			if n := p.a.dev.Stats().DropICRC + p.b.dev.Stats().DropICRC; n != 0 {
				t.Errorf("%d packets dropped for their ICRC", n)
			}
		})
	}
}
