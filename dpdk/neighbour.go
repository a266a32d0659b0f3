package dpdk

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/intel-go/nff-go/types"
)

const (
	// maxNeighbours bounds the stations that a port talks to directly: a /20. Peers
	// behind the gateway share its entry.
	maxNeighbours = 4096
	// askEvery is how often an unanswered question for a MAC address is repeated
	// while there is something to send.
	askEvery = 20 * time.Millisecond
	// confirmEvery is how often a known one is asked again, so that an address that
	// moved to another machine is found (RFC 4861 §10 has 30 s as well).
	confirmEvery = 30 * time.Second
	// tidyEvery is how many receive calls pass between looks at the clock.
	tidyEvery = 1 << 12
)

var (
	// ErrNoNeighbour refuses a path to a peer that cannot be reached directly.
	ErrNoNeighbour = errors.New("dpdk: no way to the peer on this port's network")
	errFull        = fmt.Errorf("dpdk: the port has its %d neighbours", maxNeighbours)
)

// macKnown marks a neighbour's MAC address as known, above its 48 bits.
const macKnown = 1 << 48

// neighbour is a station on the port's network. Links of several queues share it.
type neighbour struct {
	addr  netip.Addr
	fixed bool          // given by the user
	mac   atomic.Uint64 // 48 bits and macKnown; 0 while nobody has answered
	asked atomic.Int64  // Unix nanoseconds of the last question
	heard atomic.Int64  // and of the last answer
}

func (n *neighbour) known() bool { return n.mac.Load() != 0 }

func (n *neighbour) putMAC(frame []byte) {
	v := n.mac.Load()
	_ = frame[5]
	frame[0], frame[1], frame[2] = byte(v>>40), byte(v>>32), byte(v>>24)
	frame[3], frame[4], frame[5] = byte(v>>16), byte(v>>8), byte(v)
}

func (n *neighbour) set(mac types.MACAddress) {
	v := uint64(macKnown)
	for i, b := range mac {
		v |= uint64(b) << (40 - 8*i)
	}
	n.mac.Store(v)
	n.heard.Store(time.Now().UnixNano())
}

// neighbours are those that somebody asked a path to. Nobody on the network can
// add to them: what arrives only changes addresses of those that are there.
type neighbours struct {
	mu     sync.Mutex
	byAddr map[netip.Addr]*neighbour
}

func newNeighbours(fixed map[netip.Addr]net.HardwareAddr) (*neighbours, error) {
	t := &neighbours{byAddr: make(map[netip.Addr]*neighbour)}
	for addr, hw := range fixed {
		if len(hw) != types.EtherAddrLen || hw[0]&1 != 0 {
			return nil, fmt.Errorf("dpdk: neighbour %s has the MAC address %q: want 6 bytes of one station", addr, hw)
		}
		n, err := t.get(addr)
		if err != nil {
			return nil, err
		}
		n.fixed = true
		n.set(types.MACAddress(hw))
	}
	return t, nil
}

func (t *neighbours) get(addr netip.Addr) (*neighbour, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byAddr[addr]
	if n == nil {
		if len(t.byAddr) == maxNeighbours {
			return nil, errFull
		}
		n = &neighbour{addr: addr}
		t.byAddr[addr] = n
	}
	return n, nil
}

// learn takes what a station says of itself. It is believed as the kernel believes
// ARP: a network whose stations lie needs the switch's protection.
func (t *neighbours) learn(addr netip.Addr, mac types.MACAddress) bool {
	if mac[0]&1 != 0 || mac == (types.MACAddress{}) {
		return false
	}
	t.mu.Lock()
	n := t.byAddr[addr]
	t.mu.Unlock()
	if n == nil || n.fixed {
		return false
	}
	n.set(mac)
	return true
}

// stale appends those whose address wants to be confirmed.
func (t *neighbours) stale(now int64, out []*neighbour) []*neighbour {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.byAddr {
		if !n.fixed && n.known() && now-n.heard.Load() > int64(confirmEvery) {
			out = append(out, n)
		}
	}
	return out
}

// hop is the station to which packets for dst go: dst itself or the gateway.
func (l *Link) hop(dst netip.Addr) (*neighbour, error) {
	next := dst
	switch {
	case l.kernel != nil:
		gateway, err := l.kernel.gateway(dst)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoNeighbour, err)
		}
		if gateway.IsValid() {
			next = gateway
		}
	case l.cfg.Prefix.IsValid() && !l.cfg.Prefix.Contains(dst):
		if next = l.cfg.Gateway; !next.IsValid() {
			return nil, fmt.Errorf("%w: %s is outside of %s and port %s has no gateway", ErrNoNeighbour, dst, l.cfg.Prefix, l.attr.Name)
		}
	}
	return l.hood.get(next)
}

// ask tries to find out a neighbour's MAC address, at most once in askEvery. The
// answer comes later, by Rx, or at once where the kernel knows it.
func (l *Link) ask(n *neighbour) {
	now := time.Now().UnixNano()
	if now-n.asked.Load() < int64(askEvery) {
		return
	}
	n.asked.Store(now)
	if l.kernel != nil {
		if mac, ok := l.kernel.lookup(n.addr); ok {
			n.set(mac)
		}
		return
	}
	l.solicit(n.addr)
}

// tidy asks again for addresses that were not confirmed for a while.
func (l *Link) tidy() {
	l.old = l.hood.stale(time.Now().UnixNano(), l.old[:0])
	for _, n := range l.old {
		l.ask(n)
	}
	clear(l.old)
}
