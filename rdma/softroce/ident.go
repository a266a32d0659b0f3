package softroce

import "github.com/millrace/millrace/rdma/roce"

// identWindow is how far from the latest one an identification may lie that is still
// believed: more than the packets that a few queue pairs have in flight.
const identWindow = 1024

// Idents judges ICRCs over IPv4 where the link cannot see the identifications that
// they cover. Linux numbers what an unconnected socket sends 0, or 0, 1, … within a
// train, and what a connected one sends on and on, from a random start (net/ip.h,
// ip_select_ident_segs). A packet that was not damaged tells its identification by
// its ICRC; it is believed if it follows the peer's latest.
//
// So a damaged packet has about 2,100 chances in 2^32 to pass instead of one, and the
// first of a peer 2^16, behind the link layer's own checksum and UDP's.
type Idents struct {
	stranger bool   // nobody's: believe only what an unconnected socket sends
	known    bool   // last is valid
	doubt    bool   // cand is valid
	last     uint16 // the latest that was believed
	cand     uint16 // the latest that was not
}

// accept tells whether delta, not 0, between the ICRC of a packet of n bytes computed
// with identification 0 and the one that it carries, is due to its identification.
func (t *Idents) accept(delta uint32, n int) bool {
	if t.known && n >= roce.MinPacket && n <= roce.MaxPacket && n%4 == 0 && delta == roce.IdentDelta(t.last+1, n) {
		t.last++
		return true
	}
	id, ok := roce.Ident(delta, n)
	switch {
	case !ok:
		return false
	case id < roce.MaxSegments:
		return true
	case t.stranger:
		return false
	case !t.known, within(identWindow, id, t.last), t.doubt && within(roce.MaxSegments, id, t.cand):
		t.known, t.last, t.doubt = true, id, false
		return true
	}
	t.cand, t.doubt = id, true // if the next one follows it, the peer has begun anew
	return false
}

// within tells whether a and b lie less than d apart.
func within(d int16, a, b uint16) bool {
	n := int16(a - b)
	return -d < n && n < d
}
