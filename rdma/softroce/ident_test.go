package softroce

import (
	"testing"

	"github.com/millrace/millrace/rdma/roce"
)

// TestIdentsFollow: which identifications of a peer are believed.
func TestIdentsFollow(t *testing.T) {
	const n = 148
	for _, c := range []struct {
		name     string
		stranger bool
		ids      []uint16
		want     []bool
	}{
		{"a connected socket from a random start", false, []uint16{40000, 40001, 40002}, []bool{true, true, true}},
		{"trains: one number for each call", false, []uint16{500, 501, 502, 503, 501, 502, 502, 503}, []bool{true, true, true, true, true, true, true, true}},
		{"losses", false, []uint16{500, 1400, 1401, 900}, []bool{true, true, true, true}},
		{"around zero", false, []uint16{65534, 65535, 1, 2, 63, 64, 65}, []bool{true, true, true, true, true, true, true}},
		{"an unconnected socket at any time", false, []uint16{63, 9000, 1, 9001}, []bool{true, true, true, true}},
		{"a leap is damage", false, []uint16{9000, 20000, 9001, 30000, 9002}, []bool{true, false, true, false, true}},
		{"a leap and what follows is a new socket", false, []uint16{9000, 20000, 20001, 20002}, []bool{true, false, true, true}},
		{"a stranger", true, []uint16{1, 63, 64, 65, 2}, []bool{true, true, false, false, true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			idents := Idents{stranger: c.stranger}
			for i, id := range c.ids {
				if got := idents.accept(roce.IdentDelta(id, n), n); got != c.want[i] {
					t.Errorf("identification %d: %v", id, got)
				}
			}
		})
	}
	idents := Idents{known: true}
	for _, n := range []int{0, roce.MinPacket - 4, 150, roce.MaxPacket + 4, frameBytes, 1 << 20} {
		if idents.accept(1, n) {
			t.Errorf("no packet has %d bytes", n)
		}
	}
}
