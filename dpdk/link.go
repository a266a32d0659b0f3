package dpdk

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/intel-go/nff-go/types"

	"github.com/millrace/millrace/rdma/roce"
	"github.com/millrace/millrace/rdma/softroce"
)

// LinkConfig says who this end of a Link is and where its peers are.
type LinkConfig struct {
	// Local is the address and UDP port of this end; the port is 4791 unless both
	// ends agreed on another. On a point-to-point port it may be any address that
	// both ends know.
	Local netip.AddrPort
	// Neighbours maps peers' IP addresses to their MAC addresses. A peer that is
	// not in it is reached with the broadcast address if PointToPoint is set and
	// refused otherwise.
	Neighbours map[netip.Addr]net.HardwareAddr
	// PointToPoint says that whatever the port sends arrives at the one peer
	// (memif), and that what it receives is meant for this end whatever its MAC
	// address.
	PointToPoint bool
}

// ErrNoNeighbour refuses a path to a peer whose MAC address is unknown.
var ErrNoNeighbour = errors.New("dpdk: the peer's MAC address is unknown")

// Link runs RoCEv2 over a Port: it writes Ethernet, IP and UDP headers in place in
// front of each packet and checks and strips those of received frames. It is a
// softroce.Link and, like the port, has one owner.
type Link struct {
	port   Port
	cfg    LinkConfig
	attr   softroce.LinkAttr
	mac    types.MACAddress
	parse  parser
	hdr    int // bytes of the headers
	peers  map[netip.AddrPort]struct{}
	latest netip.AddrPort // of peers, looked at first

	// Frames handed out by TxAlloc, by slot; a frame's Handle is its slot. As many
	// as the port's ring: more cannot be in flight anyway.
	slots []Frame
	spare []uint32

	tx     []Frame
	rx     []Frame // held since the last Rx
	held   int
	pseudo []byte // pseudo headers of the last Rx

	rxFrames uint64
	dropped  [numDrops]uint64
}

// linkBurst is how many frames one Rx or one call of the port moves.
const linkBurst = 64

var _ softroce.Link = (*Link)(nil)

// NewLink makes a Link of a port. The port belongs to the link from then on.
func NewLink(port Port, cfg LinkConfig) (*Link, error) {
	if !cfg.Local.IsValid() || cfg.Local.Port() == 0 || cfg.Local.Addr().Is4In6() || cfg.Local.Addr().IsUnspecified() || cfg.Local.Addr().Zone() != "" {
		return nil, fmt.Errorf("dpdk: link address %s: want one IPv4 or IPv6 address and a UDP port, for instance 192.0.2.1:4791", cfg.Local)
	}
	info := port.Info()
	if len(info.MAC) != types.EtherAddrLen {
		return nil, fmt.Errorf("dpdk: port %s has the MAC address %q: want 6 bytes", info.Name, info.MAC)
	}
	l := &Link{
		port: port, cfg: cfg, mac: types.MACAddress(info.MAC), hdr: headerBytes6,
		peers: make(map[netip.AddrPort]struct{}),
		tx:    make([]Frame, linkBurst), rx: make([]Frame, linkBurst),
		pseudo: make([]byte, 0, linkBurst*(8+headerBytes6-types.EtherLen)),
	}
	if cfg.Local.Addr().Is4() {
		l.hdr = headerBytes4
	}
	l.parse = newParser(l.mac, cfg.Local)
	l.parse.anyMAC = cfg.PointToPoint
	l.attr = softroce.LinkAttr{
		Name:  info.Name,
		Local: cfg.Local,
		MTU:   info.MTU + types.EtherLen - l.hdr,
		Queue: info.Ring,
	}
	if l.attr.MTU < roce.BTHLen+roce.ICRCLen {
		return nil, fmt.Errorf("dpdk: port %s has an MTU of %d bytes: too small for RoCEv2", info.Name, info.MTU)
	}
	l.slots = make([]Frame, max(info.Ring, linkBurst))
	for i := range l.slots {
		l.spare = append(l.spare, uint32(len(l.slots)-1-i))
	}
	return l, nil
}

// Attr describes the link.
func (l *Link) Attr() softroce.LinkAttr { return l.attr }

// Path prepares sending to a peer.
func (l *Link) Path(dst netip.AddrPort) (softroce.Path, error) {
	if !dst.IsValid() || dst.Port() == 0 || dst.Addr().Is4() != l.cfg.Local.Addr().Is4() || dst.Addr().Is4In6() {
		return softroce.Path{}, fmt.Errorf("dpdk: no path from %s to %s: both must be of one IP version and name a UDP port", l.cfg.Local, dst)
	}
	mac := broadcast
	if hw, ok := l.cfg.Neighbours[dst.Addr()]; ok && len(hw) == types.EtherAddrLen {
		mac = types.MACAddress(hw)
	} else if !l.cfg.PointToPoint {
		return softroce.Path{}, fmt.Errorf("%w: %s is not among the %d neighbours of port %s", ErrNoNeighbour, dst.Addr(), len(l.cfg.Neighbours), l.attr.Name)
	}
	h := newHeader(l.mac, mac, l.cfg.Local, dst)
	l.peers[dst] = struct{}{}
	l.latest = dst
	return softroce.Path{Dst: dst, Pseudo: roce.AppendPseudo(nil, l.cfg.Local, dst), Link: &h}, nil
}

// TxAlloc fills frames with empty frames of the port.
func (l *Link) TxAlloc(frames []softroce.Frame) int {
	done := 0
	for done < len(frames) {
		want := min(len(frames)-done, len(l.spare), linkBurst)
		if want == 0 {
			break
		}
		got := l.port.AllocBurst(l.tx[:want])
		for i := range got {
			slot := l.spare[len(l.spare)-1]
			l.spare = l.spare[:len(l.spare)-1]
			l.slots[slot] = l.tx[i]
			data := l.tx[i].Data[l.hdr:]
			frames[done] = softroce.Frame{Data: data[:min(len(data), l.attr.MTU)], Handle: uint64(slot)}
			done++
		}
		if got < want {
			break
		}
	}
	return done
}

// TxFree gives back frames of TxAlloc.
func (l *Link) TxFree(frames []softroce.Frame) {
	for len(frames) > 0 {
		n := min(len(frames), linkBurst)
		for i := range n {
			l.tx[i] = l.takeSlot(frames[i].Handle)
		}
		l.port.FreeBurst(l.tx[:n])
		frames = frames[n:]
	}
}

func (l *Link) takeSlot(h uint64) Frame {
	f := l.slots[h]
	l.slots[h] = Frame{}
	l.spare = append(l.spare, uint32(h))
	return f
}

// Tx writes the headers and transmits.
func (l *Link) Tx(frames []softroce.Frame) int {
	done := 0
	for done < len(frames) {
		n := min(len(frames)-done, linkBurst)
		for i := range n {
			f := &frames[done+i]
			p := l.slots[f.Handle]
			f.Path.Link.(*header).put(p.Data, f.Len)
			p.Len = l.hdr + f.Len
			l.tx[i] = p
		}
		sent := l.port.TxBurst(l.tx[:n])
		for i := range sent {
			l.takeSlot(frames[done+i].Handle)
		}
		done += sent
		if sent < n {
			break
		}
	}
	return done
}

// Rx receives at most 64 frames. A frame's Pseudo is nil where its headers are
// just what Path gives for the way back, as between two of these links; otherwise
// it holds the pseudo header of what arrived, with its lengths.
func (l *Link) Rx(frames []softroce.Frame) int {
	l.free()
	n := l.port.RxBurst(l.rx[:min(len(frames), linkBurst)])
	l.held, l.rxFrames = n, l.rxFrames+uint64(n)
	l.pseudo = l.pseudo[:0]
	k := 0
	for i := range n {
		f := &l.rx[i]
		var p parsed
		if why := l.parse.parse(f.Data[:f.Len], &p); why != accepted {
			l.dropped[why]++
			continue
		}
		out := &frames[k]
		*out = softroce.Frame{Data: p.payload, Len: len(p.payload), Src: p.src, Handle: f.Handle}
		if !p.canonical || !l.knows(p.src) {
			at := len(l.pseudo)
			l.pseudo = appendPseudo(l.pseudo, f.Data, l.hdr == headerBytes4)
			out.Pseudo = l.pseudo[at:]
		}
		k++
	}
	return k
}

// knows says whether Path was asked for src.
func (l *Link) knows(src netip.AddrPort) bool {
	if src == l.latest {
		return true
	}
	_, ok := l.peers[src]
	if ok {
		l.latest = src
	}
	return ok
}

// RxFree gives the frames of the last Rx back to the port.
func (l *Link) RxFree([]softroce.Frame) { l.free() }

func (l *Link) free() {
	if l.held > 0 {
		l.port.FreeBurst(l.rx[:l.held])
		l.held = 0
	}
}

// Arm implements softroce.Armer.
func (l *Link) Arm() (idle bool) {
	if a, ok := l.port.(Armer); ok {
		return a.Arm()
	}
	return true
}

// FD is the port's.
func (l *Link) FD() int { return l.port.Info().FD }

// Up says whether the port's link is up; a port that cannot tell counts as up.
func (l *Link) Up() bool {
	if s, ok := l.port.(LinkState); ok {
		return s.Up()
	}
	return true
}

// Close closes the port.
func (l *Link) Close() error { return l.port.Close() }

// LinkStats counts what a Link received.
type LinkStats struct {
	RxFrames uint64          // frames received, dropped ones included
	Dropped  map[Drop]uint64 // frames dropped, by reason; reasons that did not occur are absent
}

// Stats is for the link's owner.
func (l *Link) Stats() LinkStats {
	s := LinkStats{RxFrames: l.rxFrames, Dropped: make(map[Drop]uint64)}
	for d, n := range l.dropped {
		if n > 0 {
			s.Dropped[Drop(d)] = n
		}
	}
	return s
}
