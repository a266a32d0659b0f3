package dpdk

import (
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
	// PointToPoint says that whatever the port sends arrives at the one peer, and
	// that what it receives is meant for this end whatever its MAC address: memif.
	// The fields below mean nothing then.
	PointToPoint bool
	// VLAN is the 802.1Q tag of all frames; 0: none.
	VLAN uint16
	// Prefix is the port's network: peers outside of it are reached through
	// Gateway. Without it all peers are on the port's own network.
	Prefix  netip.Prefix
	Gateway netip.Addr
	// Neighbours are MAC addresses that need no asking.
	Neighbours map[netip.Addr]net.HardwareAddr
	// NetDev names the kernel's network device beside this port, which has Local's
	// address and answers for it (net_af_packet, AF_XDP, cards whose PMD leaves the
	// kernel its driver). Routes and neighbours are the kernel's then, and Prefix
	// and Gateway not used. Without it this end answers ARP, neighbour discovery
	// and echo requests itself.
	NetDev string
}

// Link runs RoCEv2 over a Port: it writes Ethernet, IP and UDP headers in place in
// front of each packet and checks and strips those of received frames. It is a
// softroce.Link and, like the port, has one owner.
type Link struct {
	port   Port
	placer Placer // port, if it is one
	cfg    LinkConfig
	attr   softroce.LinkAttr
	mac    types.MACAddress
	mtu    int // IP bytes per frame
	parse  parser
	usual  usualHeader
	hdr    int // bytes of the headers
	peers  map[netip.AddrPort]struct{}
	latest netip.AddrPort // of peers, looked at first

	hood    *neighbours // shared by the links of one device
	kernel  *kernelNet  // nil without NetDev
	set     *queueSet   // nil for a link that is alone on its device
	index   int         // in set
	old     []*neighbour
	rxCalls uint32
	answers int // that may still be sent in this burst

	// Frames handed out by TxAlloc, by slot; a frame's Handle is its slot. As many
	// as the port's ring: more cannot be in flight anyway.
	slots []Frame
	spare []uint32

	tx     []Frame
	rx     []Frame // held since the last Rx
	held   int
	pseudo []byte // pseudo headers of the last Rx

	counts, published linkCounts
}

// maxPeers bounds what a link remembers of its peers; it only makes receiving faster.
const maxPeers = 4096

// linkBurst is how many frames one Rx or one call of the port moves.
const linkBurst = 64

var _ softroce.Link = (*Link)(nil)

// NewLink makes a Link of a port. The port belongs to the link from then on, unless
// it fails.
func NewLink(port Port, cfg LinkConfig) (*Link, error) {
	hood, err := newNeighbours(cfg.Neighbours)
	if err != nil {
		return nil, err
	}
	return newLink(port, cfg, hood)
}

func (c *LinkConfig) check() error {
	local := c.Local.Addr()
	same := func(a netip.Addr) bool { return a.Is4() == local.Is4() && !a.Is4In6() }
	switch {
	case !c.Local.IsValid() || c.Local.Port() == 0 || local.Is4In6() || local.IsUnspecified() || local.IsMulticast() || local.Zone() != "":
		return fmt.Errorf("dpdk: link address %s: want one IPv4 or IPv6 address and a UDP port, for instance 192.0.2.1:4791", c.Local)
	case c.VLAN > maxVLAN:
		return fmt.Errorf("dpdk: VLAN %d: want 1 to %d, or 0 for none", c.VLAN, maxVLAN)
	case c.Prefix.IsValid() && !c.Prefix.Contains(local):
		return fmt.Errorf("dpdk: the address %s is not in the network %s", local, c.Prefix)
	case c.Gateway.IsValid() && (!same(c.Gateway) || c.Prefix.IsValid() && !c.Prefix.Contains(c.Gateway)):
		return fmt.Errorf("dpdk: the gateway %s is not on the network of %s", c.Gateway, local)
	}
	for a := range c.Neighbours {
		if !same(a) {
			return fmt.Errorf("dpdk: neighbour %s and the address %s must be of one IP version", a, local)
		}
	}
	return nil
}

func newLink(port Port, cfg LinkConfig, hood *neighbours) (*Link, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	info := port.Info()
	if len(info.MAC) != types.EtherAddrLen {
		return nil, fmt.Errorf("dpdk: port %s has the MAC address %q: want 6 bytes", info.Name, info.MAC)
	}
	l := &Link{
		port: port, cfg: cfg, mac: types.MACAddress(info.MAC), mtu: info.MTU, hood: hood, hdr: headerBytes6,
		peers: make(map[netip.AddrPort]struct{}),
		tx:    make([]Frame, linkBurst), rx: make([]Frame, linkBurst),
		pseudo: make([]byte, 0, linkBurst*(8+headerBytes6-types.EtherLen)),
	}
	l.placer, _ = port.(Placer)
	if cfg.Local.Addr().Is4() {
		l.hdr = headerBytes4
	}
	l.parse = newParser(l.mac, cfg.VLAN, cfg.Local)
	l.parse.anyMAC = cfg.PointToPoint
	if cfg.VLAN != 0 {
		// The tag takes its bytes from the packet: a port's frames have room for the
		// MTU and an Ethernet header.
		l.hdr += vlanBytes
		l.mtu -= vlanBytes
	}
	l.attr = softroce.LinkAttr{
		Name:  info.Name,
		Local: cfg.Local,
		MTU:   info.MTU + types.EtherLen - l.hdr,
		Queue: info.Ring,
	}
	if l.attr.MTU < roce.BTHLen+roce.ICRCLen {
		return nil, fmt.Errorf("dpdk: port %s has an MTU of %d bytes: too small for RoCEv2", info.Name, info.MTU)
	}
	if cfg.NetDev != "" && !cfg.PointToPoint {
		var err error
		if l.kernel, err = openKernelNet(cfg.NetDev, cfg.Local); err != nil {
			return nil, err
		}
	}
	l.slots = make([]Frame, max(info.Ring, linkBurst))
	for i := range l.slots {
		l.spare = append(l.spare, uint32(len(l.slots)-1-i))
	}
	return l, nil
}

// Attr describes the link.
func (l *Link) Attr() softroce.LinkAttr { return l.attr }

// Path prepares sending to a peer. Its MAC address may still be unknown then: it is
// asked for, and what is sent before the answer is lost, which the transport mends.
func (l *Link) Path(dst netip.AddrPort) (softroce.Path, error) {
	if !dst.IsValid() || dst.Port() == 0 || dst.Addr().Is4() != l.cfg.Local.Addr().Is4() || dst.Addr().Is4In6() {
		return softroce.Path{}, fmt.Errorf("dpdk: no path from %s to %s: both must be of one IP version and name a UDP port", l.cfg.Local, dst)
	}
	h := newHeader(l.mac, broadcast, l.cfg.VLAN, l.cfg.Local, dst)
	if !l.cfg.PointToPoint {
		hop, err := l.hop(dst.Addr())
		if err != nil {
			return softroce.Path{}, err
		}
		if h.hop = hop; !hop.known() {
			l.ask(hop)
		}
	}
	if len(l.peers) == maxPeers {
		clear(l.peers)
	}
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
			f := &frames[done] // not by a literal, see Frame.Set
			f.Data, f.Len, f.Path, f.Src = data[:min(len(data), l.attr.MTU)], 0, nil, netip.AddrPort{}
			f.Pseudo, f.Idents, f.Handle = nil, nil, uint64(slot)
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
	l.spare = append(l.spare, uint32(h))
	return l.slots[h]
}

// Tx writes the headers and transmits. A frame to a neighbour that has not said its
// MAC address yet is lost.
func (l *Link) Tx(frames []softroce.Frame) int {
	done := 0
	for done < len(frames) {
		want := min(len(frames)-done, linkBurst)
		n := 0
		for ; n < want; n++ {
			f := &frames[done+n]
			h := f.Path.Link.(*header)
			if h.hop != nil && !h.hop.known() {
				break
			}
			p := &l.tx[n]
			*p = l.slots[f.Handle]
			h.put(p.Data, f.Len)
			p.Len = l.hdr + f.Len
		}
		sent := l.port.TxBurst(l.tx[:n])
		for i := range frames[done : done+sent] {
			l.spare = append(l.spare, uint32(frames[done+i].Handle))
		}
		done += sent
		if sent < n {
			break
		}
		if n < want {
			l.counts.unresolved++
			l.ask(frames[done].Path.Link.(*header).hop)
			l.TxFree(frames[done : done+1])
			done++
		}
	}
	return done
}

// Place implements softroce.Lane.
func (l *Link) Place(p *softroce.Path, n int) []byte {
	if l.placer == nil {
		return nil
	}
	h := p.Link.(*header)
	if h.hop != nil {
		return nil
	}
	f := l.placer.Place(l.hdr + n)
	if f == nil {
		return nil
	}
	h.put(f, n)
	return f[l.hdr:]
}

// Publish implements softroce.Lane.
func (l *Link) Publish() { l.placer.Publish() }

// Lone implements softroce.Lane.
func (l *Link) Lone() (packet []byte, src netip.Addr) {
	if l.placer == nil || l.set != nil {
		return nil, netip.Addr{}
	}
	frame := l.placer.Lone()
	if frame == nil {
		return nil, netip.Addr{}
	}
	return l.usual.payload(frame), l.usual.src.Addr()
}

// Taken implements softroce.Lane.
func (l *Link) Taken() {
	l.placer.Taken()
	l.counts.rxFrames++
}

// Rx receives at most 64 frames. A frame's Pseudo is nil where its headers are
// just what Path gives for the way back, as between two of these links; otherwise
// it holds the pseudo header of what arrived, with its lengths.
func (l *Link) Rx(frames []softroce.Frame) int {
	l.free()
	if l.rxCalls%publishEvery == 0 {
		l.publish()
	}
	if l.rxCalls++; l.rxCalls%tidyEvery == 0 && l.index == 0 && !l.cfg.PointToPoint {
		l.tidy()
	}
	n := l.port.RxBurst(l.rx[:min(len(frames), linkBurst)])
	if n == 0 && l.set == nil {
		return 0
	}
	l.held = n
	l.counts.rxFrames += uint64(n)
	l.pseudo = l.pseudo[:0]
	l.answers = answersPerBurst
	k := 0
	for i := range n {
		f := &l.rx[i]
		if payload := l.usual.payload(f.Data[:f.Len]); payload != nil {
			out := &frames[k] // what else is in it is for sending
			out.Data, out.Len, out.Src, out.Pseudo = payload, len(payload), l.usual.src, nil
			k++
		} else if why := l.accept(f.Data[:f.Len], &frames[k]); why == accepted {
			k++
		} else if why == DropPort && l.set != nil && l.set.pass(l, f.Data[:f.Len]) {
			continue
		} else if why == DropPort || !l.control(f.Data[:f.Len]) {
			l.counts.dropped[why]++
		}
	}
	if l.set != nil {
		k += l.set.take(l, frames[k:])
	}
	return k
}

// accept makes a packet of a received frame.
func (l *Link) accept(frame []byte, out *softroce.Frame) Drop {
	var p parsed
	if why := l.parse.parse(frame, &p); why != accepted {
		return why
	}
	// Not by a literal, see Frame.Set.
	out.Data, out.Len, out.Path, out.Src = p.payload, len(p.payload), nil, p.src
	out.Pseudo, out.Idents, out.Handle = nil, nil, 0
	if p.canonical && l.knows(p.src) {
		if l.hdr == headerBytes4 && l.cfg.Local.Addr().Is4() {
			l.usual.learn(frame, p.src)
		}
	} else {
		at := len(l.pseudo)
		l.pseudo = appendPseudo(l.pseudo, frame[l.parse.ip:], l.cfg.Local.Addr().Is4())
		out.Pseudo = l.pseudo[at:]
	}
	return accepted
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
	if l.set != nil {
		l.set.release(l)
	}
}

// Arm implements softroce.Armer.
func (l *Link) Arm() (idle bool) {
	l.publish()
	if a, ok := l.port.(Armer); ok {
		return a.Arm()
	}
	return true
}

// Watch implements softroce.Watcher.
func (l *Link) Watch(ws []Watched) (_ []Watched, ok bool) {
	if w, watches := l.port.(Watcher); watches && l.set == nil {
		return w.Watch(ws)
	}
	return ws, false
}

// FD is the port's. A link that shares its device with others must be polled: what
// they hand over makes no descriptor readable.
func (l *Link) FD() int {
	if l.set != nil {
		return -1
	}
	return l.port.Info().FD
}

// Up says whether the port's link is up; a port that cannot tell counts as up.
func (l *Link) Up() bool {
	if s, ok := l.port.(LinkState); ok {
		return s.Up()
	}
	return true
}

// Close closes the port.
func (l *Link) Close() error {
	l.publish()
	if l.kernel != nil {
		_ = l.kernel.close()
	}
	return l.port.Close()
}

// LinkStats counts what a Link did.
type LinkStats struct {
	RxFrames   uint64          // frames received from the port, dropped ones included
	Dropped    map[Drop]uint64 // frames dropped, by reason; reasons that did not occur are absent
	Answered   uint64          // ARP, neighbour discovery and echo requests answered
	Unresolved uint64          // frames lost because their neighbour's MAC address was not known yet
	Passed     uint64          // frames handed over to the link of another queue of the device
	Overrun    uint64          // of those that would have been, lost because that link did not keep up
}

// Stats is for the link's owner.
func (l *Link) Stats() LinkStats {
	c := &l.counts
	s := LinkStats{RxFrames: c.rxFrames, Dropped: make(map[Drop]uint64), Answered: c.answered, Unresolved: c.unresolved}
	for d, n := range c.dropped {
		if n > 0 {
			s.Dropped[Drop(d)] = n
		}
	}
	if l.set != nil {
		s.Passed, s.Overrun = l.set.stats[l.index].passed, l.set.stats[l.index].overrun
	}
	return s
}
