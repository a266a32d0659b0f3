package softroce

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// netns is a pair of network namespaces joined by a veth pair. The device "veth" has
// 192.0.2.1 and 2001:db8::1 in the first, .2 and ::2 in the second. What in returns
// belongs to its namespace wherever it is used later: sockets keep theirs.
type netns struct{ name [2]string }

func newNetns(t testing.TB, mtu int) *netns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("no ip command: apt-get install iproute2")
	}
	base := fmt.Sprintf("softroce-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	n := &netns{[2]string{base + "-a", base + "-b"}}
	t.Cleanup(func() {
		for _, name := range n.name { // the veth pair goes with them
			_ = exec.Command("ip", "netns", "del", name).Run()
		}
	})
	commands := []string{
		"netns add A", "netns add B", "-n A link add veth type veth peer name veth netns B",
		"-n A link set lo up", "-n B link set lo up",
		fmt.Sprintf("-n A link set veth mtu %d up", mtu), fmt.Sprintf("-n B link set veth mtu %d up", mtu),
		"-n A addr add 192.0.2.1/24 dev veth", "-n B addr add 192.0.2.2/24 dev veth",
	}
	if mtu >= 1280 { // the least MTU of IPv6
		commands = append(commands, "-n A addr add 2001:db8::1/64 dev veth nodad", "-n B addr add 2001:db8::2/64 dev veth nodad")
	}
	for _, args := range commands {
		f := strings.Fields(strings.NewReplacer("A", n.name[0], "B", n.name[1]).Replace(args))
		if out, err := exec.Command("ip", f...).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces here: ip %s: %v: %s", args, err, out)
		}
	}
	return n
}

// in runs fn in the i-th namespace.
func (n *netns) in(t testing.TB, i int, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		f, err := os.Open("/run/netns/" + n.name[i])
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			f.Close()
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// refusals is how many packets the kernels of both namespaces have refused with "port
// unreachable", as they do where no socket has the port.
func (n *netns) refusals(t testing.TB) (count int) {
	t.Helper()
	for i := range n.name {
		n.in(t, i, func() {
			for _, name := range []string{"snmp", "snmp6"} {
				b, err := os.ReadFile("/proc/thread-self/net/" + name)
				if err != nil {
					t.Error(err)
				}
				var head []string
				for line := range strings.Lines(string(b)) {
					f := strings.Fields(line)
					switch {
					case len(f) == 2 && f[0] == "Icmp6OutDestUnreachs":
						head = []string{"", "OutDestUnreachs"}
					case f[0] != "Icmp:":
						continue
					}
					if at := slices.Index(head, "OutDestUnreachs"); at > 0 {
						k, err := strconv.Atoi(f[at])
						if err != nil {
							t.Error(err)
						}
						count += k
					}
					head = f
				}
			}
		})
	}
	return count
}

func vethAddr(i int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr([]string{"2001:db8::1", "2001:db8::2"}[i])
	}
	return netip.MustParseAddr([]string{"192.0.2.1", "192.0.2.2"}[i])
}

// vethLink opens a link of that kind, packet or udp, in the i-th namespace.
func (n *netns) vethLink(t testing.TB, kind string, i int, v6 bool) (l Link) {
	t.Helper()
	n.in(t, i, func() {
		var err error
		if kind == "packet" {
			l, err = NewPacketLink("veth", netip.AddrPortFrom(vethAddr(i, v6), roce.UDPPort))
		} else {
			l, err = NewUDPLink(netip.AddrPortFrom(vethAddr(i, v6), roce.UDPPort))
		}
		if err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return l
}

func connectPair(t testing.TB, la, lb Link, o options) (a, b *node) {
	t.Helper()
	a, b = newNode(t, la, o), newNode(t, lb, o)
	introduce(t, a, b, min(a.dev.Attr().PathMTU, b.dev.Attr().PathMTU))
	return a, b
}

// exchange carries a traffic between two devices on the machine's clock.
func exchange(t *testing.T, tr *traffic, a, b *node) {
	t.Helper()
	b.postRecvs(t, b.depth)
	for end := time.Now().Add(20 * time.Second); !tr.done(); {
		tr.pump(t, a, b)
		a.dev.Progress(monotonic())
		b.dev.Progress(monotonic())
		if time.Now().After(end) {
			t.Fatalf("%d of %d messages\na: %+v\nb: %+v\n%+v\n%+v", tr.got, tr.count, a.dev.Stats(), b.dev.Stats(), linkStats(a), linkStats(b))
		}
	}
}

func linkStats(n *node) string {
	if l, ok := n.dev.link.(*PacketLink); ok {
		s, err := l.Stats()
		return fmt.Sprintf("%+v %v", s, err)
	}
	return ""
}

// Packet and UDP links, in all pairs, both IP versions and several MTUs, between
// two network namespaces: nothing is dropped, the first packets before the MAC
// address is known aside; and the kernel, which sees all that comes to a packet link,
// refuses nothing.
func TestLinksOverVeth(t *testing.T) {
	namespaces := map[int]*netns{} // by MTU: making them is slow
	for _, tt := range []struct {
		mtu  int
		from string
		to   string
	}{{1500, "packet", "packet"}, {1500, "packet", "udp"}, {1500, "udp", "packet"}, {9000, "packet", "packet"}, {1500, "udp", "udp"}, {500, "packet", "udp"}} {
		ns := namespaces[tt.mtu]
		if ns == nil {
			ns = newNetns(t, tt.mtu)
			namespaces[tt.mtu] = ns
		}
		for _, v6 := range []bool{false, true} {
			if v6 && tt.mtu < 1280 {
				continue // the least MTU of IPv6
			}
			t.Run(fmt.Sprintf("%s to %s/mtu %d/v6 %v", tt.from, tt.to, tt.mtu, v6), func(t *testing.T) {
				a, b := connectPair(t, ns.vethLink(t, tt.from, 0, v6), ns.vethLink(t, tt.to, 1, v6), options{slot: 3 * 4096})
				if want := map[int]int{500: 256, 1500: 1024, 9000: 4096}[tt.mtu]; a.dev.Attr().PathMTU != want || b.dev.Attr().PathMTU != want {
					t.Errorf("path MTUs %d and %d", a.dev.Attr().PathMTU, b.dev.Attr().PathMTU)
				}
				refused := ns.refusals(t)
				exchange(t, newTraffic(1, 3000, 3*4096), a, b)
				if n := ns.refusals(t) - refused; n != 0 {
					t.Errorf("the kernel refused %d packets", n)
				}
				for _, n := range []*node{a, b} {
					if s := n.dev.Stats(); s.Dropped() != 0 {
						t.Errorf("packets dropped: %+v", s)
					}
					if l, ok := n.dev.link.(*PacketLink); ok {
						s, err := l.Stats()
						if s.DropHeader+s.DropLong+s.TxErrors != 0 || vnetTrains && (!l.Trains() || n == b && s.RxTrains == 0) {
							t.Errorf("%+v, trains %v, %v", s, l.Trains(), err)
						}
					}
				}
			})
		}
	}
}

// RaceDetector: see raceDetector.
const RaceDetector = raceDetector

// PacketDevices makes pairs of devices over packet links, for the conformance suite,
// which is outside of this package.
func PacketDevices(t *testing.T, v6 bool) (open func(t *testing.T, i int) *Device) {
	ns := newNetns(t, 1500)
	return func(t *testing.T, i int) *Device {
		d := New(ns.vethLink(t, "packet", i, v6), Options{PeerTimeout: 200 * time.Millisecond})
		if err := d.link.(*PacketLink).FilterQPNs(d.QPNBlock()); err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// Packet links of one machine meet on the loopback device, share the port, and get
// their own packets only.
func TestPacketLinksShareAPort(t *testing.T) {
	ns := newNetns(t, 1500)
	var links [4]Link
	ns.in(t, 0, func() {
		for i := range links {
			l, err := NewPacketLink("lo", netip.MustParseAddrPort("127.0.0.1:4791"))
			if err != nil {
				t.Error(err)
				return
			}
			links[i] = l
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	var nodes []*node
	for i := 0; i < len(links); i += 2 {
		a, b := connectPair(t, links[i], links[i+1], options{slot: 8188})
		for _, n := range []*node{a, b} {
			if err := n.dev.link.(*PacketLink).FilterQPNs(n.dev.QPNBlock()); err != nil {
				t.Fatal(err)
			}
		}
		nodes = append(nodes, a, b)
	}
	for i := 0; i < len(nodes); i += 2 {
		exchange(t, newTraffic(uint64(i), 2000, 8188), nodes[i], nodes[i+1])
	}
	for _, n := range nodes {
		if s := n.dev.Stats(); s.Dropped() != 0 || s.RxPackets == 0 {
			t.Errorf("%+v", s)
		}
	}
}

// A link serves peers on the same machine over loopback, and the others over its
// network device; the port is one that the kernel chose.
func TestPacketLinkReachesThisMachine(t *testing.T) {
	ns := newNetns(t, 1500)
	var links [2]Link
	ns.in(t, 0, func() {
		for i := range links {
			l, err := NewPacketLink("", netip.MustParseAddrPort("192.0.2.1:0"))
			if err != nil {
				t.Error(err)
				return
			}
			links[i] = l
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	if links[0].Attr().Local.Port() == links[1].Attr().Local.Port() {
		t.Error("both have one port")
	}
	a, b := connectPair(t, links[0], links[1], options{slot: 8188})
	exchange(t, newTraffic(1, 1000, 8188), a, b)
	if s := b.dev.Stats(); s.Dropped() != 0 {
		t.Errorf("%+v", s)
	}
	remote, err := links[0].Path(netip.AddrPortFrom(vethAddr(1, false), 4791))
	if err != nil || remote.Link.(*packetPath).local || remote.Link.(*packetPath).to.Ifindex == a.qp.(*queuePair).path.Link.(*packetPath).to.Ifindex {
		t.Errorf("%+v, %v", remote.Link, err)
	}
}

// A packet link checks the whole ICRC: what a UDP socket has to believe, a packet with
// an unknown identification, it verifies.
func TestPacketLinkChecksIdentification(t *testing.T) {
	ns := newNetns(t, 1500)
	a, b := connectPair(t, ns.vethLink(t, "packet", 0, false), ns.vethLink(t, "packet", 1, false), options{})
	b.postRecvs(t, 8)
	la, lb := a.dev.link.(*PacketLink), b.dev.link.(*PacketLink)
	path, err := la.Path(lb.Attr().Local)
	if err != nil {
		t.Fatal(err)
	}
	waitKnown(t, la, &path)
	send := func(psn int, ident, covered uint16, frag uint16) {
		p := make([]byte, roce.BTHLen+40+roce.ICRCLen)
		(*roce.BTH)(p).Put(roce.SendOnly, 0, b.qp.Num(), false, roce.PSNAdd(a.qp.StartPSN(), uint32(psn)))
		pseudo := bytes.Clone(path.Pseudo)
		roce.PutPseudoLen(pseudo, len(p))
		binary.BigEndian.PutUint16(pseudo[8+4:], covered)
		binary.BigEndian.PutUint16(pseudo[8+6:], frag)
		roce.PutICRC(p[len(p)-4:], roce.Sum(pseudo, p[:len(p)-4]))
		f := Frame{Data: p, Len: len(p), Path: &path}
		frames := []Frame{f}
		la.TxAlloc(frames)
		copy(frames[0].Data, p)
		frames[0].Len, frames[0].Path = len(p), &path
		h := &path.Link.(*packetPath).head
		ip := h.b[headroom-udpLen-ip4Len:]
		binary.BigEndian.PutUint16(ip[4:], ident)
		binary.BigEndian.PutUint16(ip[6:], frag)
		h.ipSum = onesSum(ip[:10]) + onesSum(ip[12:ip4Len])
		if la.Tx(frames) != 1 {
			t.Fatal("not sent")
		}
	}
	send(0, 0, 0, dontFragment)
	send(1, 40_000, 40_000, dontFragment) // as rdma_rxe numbers packets
	send(2, 7, 7, 0)
	send(3, 7, 8, dontFragment) // damaged
	send(3, 0, 1, dontFragment)
	send(3, 40_001, 40_001, dontFragment)
	for end := time.Now().Add(5 * time.Second); b.dev.Stats().RxPackets < 6 && time.Now().Before(end); {
		b.dev.Progress(monotonic())
	}
	if s := b.dev.Stats(); s.Messages != 4 || s.DropICRC != 2 {
		t.Errorf("%+v", s)
	}
}

// waitKnown waits until the kernel has found the peer.
func waitKnown(t *testing.T, l *PacketLink, p *Path) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !l.ready(p.Link.(*packetPath), time.Since(l.started)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the kernel did not find the neighbour")
		}
	}
}

// What comes for the link is its own business: the kernel refuses nothing, and
// nothing that anybody sends is more than counted. Foreign traffic does not even
// arrive.
func TestPacketLinkHostileFrames(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6 %v", v6), func(t *testing.T) {
			ns := newNetns(t, 9000)
			a, b := connectPair(t, ns.vethLink(t, "packet", 0, v6), ns.vethLink(t, "packet", 1, v6), options{})
			lb := b.dev.link.(*PacketLink)
			if err := lb.FilterQPNs(b.dev.QPNBlock()); err != nil {
				t.Fatal(err)
			}
			var udp, raw int
			ns.in(t, 0, func() {
				udp = testSocket(t, v6)
				var err error
				if raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
					t.Error(err)
				}
			})
			defer unix.Close(udp)
			defer unix.Close(raw)
			local := lb.Attr().Local
			to := sockaddrOf(local)
			mine := func(n int) []byte {
				p := make([]byte, n)
				(*roce.BTH)(p).Put(roce.SendOnly, 0, b.qp.Num(), true, a.qp.StartPSN())
				return p
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			// For the link's queue pairs, and wrong.
			bad := 0
			for _, n := range []int{roce.BTHLen, roce.MinPacket, 2000, frameBytes, 8000} {
				must(unix.Sendto(udp, mine(n), 0, to))
				bad++
			}
			// Headers that lie, behind the right destination.
			path, err := a.dev.link.Path(local)
			must(err)
			waitKnown(t, a.dev.link.(*PacketLink), &path)
			h := path.Link.(*packetPath).head
			var ifindex int
			ns.in(t, 0, func() {
				l, err := NewPacketLink("veth", netip.AddrPortFrom(vethAddr(0, v6), 5000))
				if err != nil {
					t.Error(err)
					return
				}
				ifindex = l.dev.Index
				l.Close()
			})
			ipLenAt, udpLenAt := etherLen+2, etherLen+h.ip+4
			if v6 {
				ipLenAt = etherLen + 4
			}
			for _, lie := range []func(f []byte){
				func(f []byte) { binary.BigEndian.PutUint16(f[ipLenAt:], 0xffff) },
				func(f []byte) { binary.BigEndian.PutUint16(f[ipLenAt:], 3) },
				func(f []byte) { binary.BigEndian.PutUint16(f[udpLenAt:], 0) },
				func(f []byte) { binary.BigEndian.PutUint16(f[udpLenAt:], 0xffff) },
			} {
				room := make([]byte, headroom, 512)
				h.put(room, 100, 0)
				f := append(room[headroom-etherLen-h.ip-udpLen:], mine(100)...)
				lie(f)
				must(unix.Sendto(raw, f, 0, &unix.SockaddrLinklayer{Ifindex: ifindex, Halen: 6}))
				bad++
			}
			// Not for the link: other ports, other queue pairs, fragments, noise.
			const flood = 5000
			stranger := mine(600)
			(*roce.BTH)(stranger).Put(roce.SendOnly, 0, b.dev.QPNBlock()^1<<20, true, 0)
			other := sockaddrOf(netip.AddrPortFrom(local.Addr(), local.Port()+1))
			for i := range flood {
				switch i % 3 {
				case 0:
					err = unix.Sendto(udp, stranger, 0, to)
				case 1:
					err = unix.Sendto(udp, mine(600), 0, other)
				case 2:
					err = unix.Sendto(raw, stranger, 0, &unix.SockaddrLinklayer{Ifindex: ifindex, Halen: 6})
				}
				if err != nil && err != unix.ECONNREFUSED {
					t.Fatal(err)
				}
			}
			must(unix.Sendto(udp, make([]byte, 12_000), 0, to)) // fragments
			seen := func() uint64 {
				s, _ := lb.Stats()
				return s.DropHeader + s.DropLong + b.dev.Stats().RxPackets
			}
			for end := time.Now().Add(5 * time.Second); seen() < uint64(bad) && time.Now().Before(end); {
				b.dev.Progress(monotonic())
			}
			for range 100 {
				b.dev.Progress(monotonic())
			}
			d := b.dev.Stats()
			if s, _ := lb.Stats(); seen() != uint64(bad) || s.RxFrames != uint64(bad) || s.DropHeader < 4 || d.Dropped()+s.DropHeader != uint64(bad) {
				t.Errorf("%d packets sent: %+v %+v", bad, s, d)
			}
			// The kernel told the sender of the other port, and of no packet for the link.
			if n, err := unix.GetsockoptInt(udp, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || n != 0 {
				t.Errorf("pending error %d, %v", n, err)
			}
			exchange(t, newTraffic(1, 50, 2000), a, b)
		})
	}
}

// testSocket is an unconnected UDP socket that may send fragments.
func testSocket(t *testing.T, v6 bool) int {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
	}
	return fd
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// A neighbour that nobody knows costs packets and nothing else; once it is there they
// arrive, and after its MAC address changed too.
func TestPacketLinkFindsNeighbours(t *testing.T) {
	ns := newNetns(t, 1500)
	ip := func(i int, args string) {
		t.Helper()
		if out, err := exec.Command("ip", append([]string{"-n", ns.name[i]}, strings.Fields(args)...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	a, b := connectPair(t, ns.vethLink(t, "packet", 0, false), ns.vethLink(t, "packet", 1, false), options{})
	la := a.dev.link.(*PacketLink)
	b.postRecvs(t, 8)
	wait := func(messages uint64) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); b.dev.Stats().Messages < messages; {
			a.dev.Progress(monotonic())
			b.dev.Progress(monotonic())
			if time.Now().After(end) {
				out, _ := exec.Command("sh", "-c", "ip -n "+ns.name[0]+" neigh; ip -n "+ns.name[1]+" addr").CombinedOutput()
				t.Fatalf("%+v %s %s\n%s", a.dev.Stats(), linkStats(a), linkStats(b), out)
			}
		}
	}
	a.send(t, 1, []byte("who is there?"))
	wait(1)
	ip(1, "link set veth down")
	ip(1, "link set veth address 02:00:00:00:00:77")
	ip(1, "link set veth up")
	ip(0, "neigh flush dev veth")
	a.send(t, 2, []byte("and now?"))
	wait(2)
	p := a.qp.(*queuePair).path.Link.(*packetPath)
	if p.head.b[headroom-etherLen-ip4Len-udpLen+5] != 0x77 {
		t.Errorf("the old address is still in use: %x", p.head.b)
	}
	if _, err := la.Path(netip.MustParseAddrPort("203.0.113.9:4791")); err == nil || !strings.Contains(err.Error(), "route") {
		t.Errorf("a path to nowhere: %v", err)
	}
}

func TestPacketLinkRefuses(t *testing.T) {
	ns := newNetns(t, 1500)
	ns.in(t, 0, func() {
		for _, tt := range []struct{ dev, addr, want string }{
			{"nonesuch", "192.0.2.1:0", "ip link"},
			{"veth", "192.0.2.9:0", "192.0.2.1"},
			{"veth", "127.0.0.1:0", "not one of its addresses"},
			{"lo", "192.0.2.1:0", "not one of its addresses"},
		} {
			l, err := NewPacketLink(tt.dev, netip.MustParseAddrPort(tt.addr))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s at %s: %v", tt.dev, tt.addr, err)
			}
			if l != nil {
				t.Error("a link with an error")
			}
		}
	})
}

// The descriptor of an idle link becomes readable with a frame.
func TestPacketDescriptorWakes(t *testing.T) {
	ns := newNetns(t, 1500)
	a, b := connectPair(t, ns.vethLink(t, "packet", 0, false), ns.vethLink(t, "packet", 1, false), options{})
	b.postRecvs(t, 2)
	fds := []unix.PollFd{{Fd: int32(b.dev.FD()), Events: unix.POLLIN}}
	for i := range 2 {
		if err := b.cq.Arm(); err != nil {
			t.Fatal(err)
		}
		for w := 1; w != 0; {
			w, _ = b.dev.Progress(monotonic())
		}
		if n, err := unix.Poll(fds, 0); n != 0 || err != nil {
			t.Fatalf("readable before anything was sent: %d, %v", n, err)
		}
		a.send(t, i, []byte("wake"))
		for end := time.Now().Add(5 * time.Second); ; {
			a.dev.Progress(monotonic())
			if n, _ := unix.Poll(fds, 1); n == 1 {
				break
			}
			if time.Now().After(end) {
				t.Fatal("not readable")
			}
		}
		var wcs []rdma.WC
		for end := time.Now().Add(5 * time.Second); len(wcs) == 0 && time.Now().Before(end); wcs = b.poll() {
			b.dev.Progress(monotonic())
		}
		if len(wcs) != 1 || wcs[0].Status != rdma.Success {
			t.Fatalf("received %+v", wcs)
		}
	}
}

// FuzzParseFrame: whatever a frame holds, what is accepted lies within it, is
// addressed to the link, and its pseudo header is as long as it must be.
func FuzzParseFrame(f *testing.F) {
	for _, local := range []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:4791"), netip.MustParseAddrPort("[2001:db8::2]:4791")} {
		from := netip.MustParseAddrPort("192.0.2.1:4791")
		if local.Addr().Is6() {
			from = netip.MustParseAddrPort("[2001:db8::1]:4791")
		}
		h := newPacketHeader(true, from, local)
		room := make([]byte, headroom)
		h.put(room, 100, 0)
		f.Add(append(room[headroom-h.n+vnetLen:], make([]byte, 100)...), local.Addr().Is6())
	}
	f.Fuzz(func(t *testing.T, frame []byte, v6 bool) {
		local := netip.MustParseAddrPort("192.0.2.2:4791")
		if v6 {
			local = netip.MustParseAddrPort("[2001:db8::2]:4791")
		}
		var r received
		if !parseFrame(frame, local, &r) {
			return
		}
		if len(r.head)+len(r.payload) > len(frame)-etherLen || r.src.Addr().Is4() == v6 || r.v4 == v6 {
			t.Fatalf("%x: %+v", frame, r)
		}
		want := 8 + ip4Len + udpLen
		if v6 {
			want = 8 + ip6Len + udpLen
		}
		if p := r.pseudo(nil, len(r.payload), r.ident); len(p) != want {
			t.Fatalf("%x: a pseudo header of %d bytes", frame, len(p))
		}
	})
}

// BenchmarkLinkFloor is a packet there and one back between two bare links, on one
// goroutine: both ends' work for it, the kernel's included.
func BenchmarkLinkFloor(b *testing.B) {
	ns := newNetns(b, 1500)
	open := func(kind, dev string, i int) (l Link) {
		if dev == "veth" {
			return ns.vethLink(b, kind, i, false)
		}
		ns.in(b, 0, func() {
			at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(5000+i))
			var err error
			if kind == "packet" {
				l, err = NewPacketLink("lo", at)
			} else {
				l, err = NewUDPLink(at)
			}
			if err != nil {
				b.Fatal(err)
			}
		})
		return l
	}
	for _, dev := range []string{"lo", "veth"} {
		for _, kind := range []string{"udp", "packet"} {
			b.Run(dev+"/"+kind, func(b *testing.B) {
				ls := [2]Link{open(kind, dev, 0), open(kind, dev, 1)}
				var paths [2]Path
				for i, l := range ls {
					defer l.Close()
					var err error
					if paths[i], err = l.Path(ls[1-i].Attr().Local); err != nil {
						b.Fatal(err)
					}
				}
				if l, ok := ls[0].(*PacketLink); ok && dev == "veth" {
					for i := range ls {
						for !ls[i].(*PacketLink).ready(paths[i].Link.(*packetPath), time.Since(l.started)) {
							time.Sleep(time.Millisecond)
						}
					}
				}
				tx, rx := make([]Frame, 1), make([]Frame, burst)
				for b.Loop() {
					for i, l := range ls {
						l.TxAlloc(tx)
						tx[0].Len, tx[0].Path = 144, &paths[i]
						l.Tx(tx)
						for ls[1-i].Rx(rx) == 0 {
						}
					}
				}
			})
		}
	}
}
