package softroce

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// loopbacks are the addresses to test on; ::1 may be missing in a container.
func loopbacks(t testing.TB) []netip.Addr {
	as := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close()
		return append(as, netip.MustParseAddr("::1"))
	}
	t.Log("no IPv6 loopback on this machine: IPv4 only")
	return as
}

func newUDPPair(t testing.TB, ip netip.Addr, o options) (a, b *node) {
	t.Helper()
	var ns [2]*node
	for i := range ns {
		l, err := NewUDPLink(netip.AddrPortFrom(ip, 0))
		if err != nil {
			t.Fatal(err)
		}
		ns[i] = newNode(t, l, o)
	}
	mtu := ns[0].dev.Attr().PathMTU
	if err := ns[0].qp.Connect(ns[1].remote(mtu)); err != nil {
		t.Fatal(err)
	}
	if err := ns[1].qp.Connect(ns[0].remote(mtu)); err != nil {
		t.Fatal(err)
	}
	return ns[0], ns[1]
}

var start = time.Now()

func monotonic() int64 { return int64(time.Since(start)) + 1 }

func TestUDPBulk(t *testing.T) {
	for _, ip := range loopbacks(t) {
		t.Run(ip.String(), func(t *testing.T) {
			a, b := newUDPPair(t, ip, options{slot: 3 * 4096})
			if m := a.dev.Attr().PathMTU; m != 4096 {
				t.Errorf("path MTU %d on loopback", m)
			}
			tr := newTraffic(1, 5000, 3*4096)
			b.postRecvs(t, b.depth)
			for end := time.Now().Add(10 * time.Second); !tr.done(); {
				tr.pump(t, a, b)
				a.dev.Progress(monotonic())
				b.dev.Progress(monotonic())
				if time.Now().After(end) {
					t.Fatalf("%d of %d messages\na: %+v\nb: %+v", tr.got, tr.count, a.dev.Stats(), b.dev.Stats())
				}
			}
			if s := b.dev.Stats(); s.Dropped() != 0 {
				t.Errorf("packets dropped: %+v", s)
			}
			if n, err := a.dev.link.(*UDPLink).TxErrors(); n != 0 {
				t.Errorf("%d transmit errors, the last: %v", n, err)
			}
		})
	}
}

// TestUDPDescriptorWakes: after Arm, the descriptor of an idle device becomes
// readable with the peer's packet, and it is not readable before.
func TestUDPDescriptorWakes(t *testing.T) {
	a, b := newUDPPair(t, netip.MustParseAddr("127.0.0.1"), options{})
	b.postRecvs(t, 1)
	if err := b.cq.Arm(); err != nil {
		t.Fatal(err)
	}
	if w, _ := b.dev.Progress(monotonic()); w != 0 {
		t.Fatalf("an idle device had work: %d", w)
	}
	fds := []unix.PollFd{{Fd: int32(b.dev.FD()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 0); n != 0 || err != nil {
		t.Fatalf("readable before anything was sent: %d, %v", n, err)
	}
	a.send(t, 1, []byte("wake"))
	a.dev.Progress(monotonic())
	if n, err := unix.Poll(fds, 1000); n != 1 || err != nil {
		t.Fatalf("not readable: %d, %v", n, err)
	}
	b.dev.Progress(monotonic())
	if wcs := b.poll(); len(wcs) != 1 || wcs[0].Status != rdma.Success {
		t.Fatalf("received %+v", wcs)
	}
	// Before the receiver sleeps again it acknowledges, however short the delay so far.
	if err := b.cq.Arm(); err != nil {
		t.Fatal(err)
	}
	b.dev.Progress(monotonic())
	if s := b.dev.Stats(); s.AcksSent != 1 {
		t.Errorf("no acknowledgement before sleep: %+v", s)
	}
}

// TestUDPHostileDatagrams: anybody can send to the socket. Nothing that comes is
// more than counted.
func TestUDPHostileDatagrams(t *testing.T) {
	for _, ip := range loopbacks(t) {
		t.Run(ip.String(), func(t *testing.T) {
			a, b := newUDPPair(t, ip, options{})
			local := b.dev.link.Attr().Local
			stranger, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(local))
			if err != nil {
				t.Fatal(err)
			}
			defer stranger.Close()
			sealed := func(src netip.AddrPort, pad int) []byte {
				p := make([]byte, roce.BTHLen+8)
				(*roce.BTH)(p).Put(roce.SendOnly, pad, b.qp.Num(), true, a.qp.StartPSN())
				crc := roce.NewICRC(roce.AppendPseudo(nil, src, local))
				return binary.LittleEndian.AppendUint32(p, crc.Sum(p))
			}
			src := stranger.LocalAddr().(*net.UDPAddr).AddrPort()
			big := 65_507
			bodies := [][]byte{
				{}, {1}, make([]byte, roce.MinPacket-1), make([]byte, roce.MinPacket), make([]byte, frameBytes), make([]byte, frameBytes+1),
				make([]byte, 9000), make([]byte, big), sealed(src, 0)[:20], append(sealed(src, 0), make([]byte, 50_000)...),
			}
			for _, p := range bodies {
				if len(p) >= roce.BTHLen { // past the checks of version and queue pair
					(*roce.BTH)(p).Put(roce.SendOnly, 0, b.qp.Num(), true, a.qp.StartPSN())
				}
				if _, err := stranger.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			sent := len(bodies)
			if ip.Is4() { // the whole of 127/8 is here: a right ICRC, the wrong source
				other, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}, net.UDPAddrFromAddrPort(local))
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				if _, err := other.Write(sealed(other.LocalAddr().(*net.UDPAddr).AddrPort(), 0)); err != nil {
					t.Fatal(err)
				}
				sent++
			}
			for end := time.Now().Add(5 * time.Second); b.dev.Stats().RxPackets < uint64(sent) && time.Now().Before(end); {
				b.dev.Progress(monotonic())
			}
			s := b.dev.Stats()
			if s.Dropped() != uint64(sent) || s.RxPackets != uint64(sent) || s.TxPackets != 0 || ip.Is4() && s.DropSource != 1 {
				t.Errorf("%d packets sent: %+v", sent, s)
			}
			b.postRecvs(t, 1)
			a.send(t, 1, []byte("still here?"))
			var wcs []rdma.WC
			for end := time.Now().Add(5 * time.Second); len(wcs) == 0 && time.Now().Before(end); wcs = b.poll() {
				a.dev.Progress(monotonic())
				b.dev.Progress(monotonic())
			}
			if len(wcs) != 1 || wcs[0].Status != rdma.Success {
				t.Errorf("afterwards: %+v", wcs)
			}
		})
	}
}

func TestUDPLinkRefusesBadAddresses(t *testing.T) {
	for _, a := range []string{"0.0.0.0:4791", "[::]:4791", "224.0.0.1:4791", "192.0.2.77:0"} {
		if l, err := NewUDPLink(netip.MustParseAddrPort(a)); err == nil {
			l.Close()
			t.Errorf("%s: no error", a)
		}
	}
	l, err := NewUDPLink(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := NewUDPLink(l.Attr().Local); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
	if _, err := l.Path(netip.MustParseAddrPort("[::1]:4791")); err == nil {
		t.Error("a path from IPv4 to IPv6")
	}
	if l.ReceiveBuffer() < 4096 || l.Attr().Queue < 1 {
		t.Errorf("receive buffer %d, queue %d", l.ReceiveBuffer(), l.Attr().Queue)
	}
}

// BenchmarkUDPPingPong is a round trip between two devices on one goroutine: no
// wake-up and no second CPU, so it is the sum of both ends' work.
func BenchmarkUDPPingPong(b *testing.B) {
	x, y := newUDPPair(b, netip.MustParseAddr("127.0.0.1"), options{})
	x.postRecvs(b, 1)
	y.postRecvs(b, 1)
	turn := func(from, to *node) {
		wr := [1]rdma.SendWR{{Data: from.sendSlot(0)[:128]}}
		if _, err := from.qp.PostSend(wr[:]); err != nil {
			b.Fatal(err)
		}
		from.dev.Progress(monotonic())
		var wcs [4]rdma.WC
		for to.cq.Poll(wcs[:]) == 0 {
			to.dev.Progress(monotonic())
		}
		rwr := [1]rdma.RecvWR{{Data: to.recvSlot(0)}}
		if _, err := to.qp.PostRecv(rwr[:]); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		turn(x, y)
		turn(y, x)
	}
	b.ReportMetric(float64(x.dev.Stats().TxPackets)/float64(b.N), "packets/op")
}

// BenchmarkUDPFloor is the same round trip on the bare links: what the kernel takes
// of BenchmarkUDPPingPong.
func BenchmarkUDPFloor(b *testing.B) {
	var ls [2]*UDPLink
	var paths [2]Path
	for i := range ls {
		l, err := NewUDPLink(netip.MustParseAddrPort("127.0.0.1:0"))
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		ls[i] = l
	}
	for i := range ls {
		var err error
		if paths[i], err = ls[i].Path(ls[1-i].Attr().Local); err != nil {
			b.Fatal(err)
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
}
