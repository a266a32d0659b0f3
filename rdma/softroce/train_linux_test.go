package softroce

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// TestTrainRules: what may travel together.
func TestTrainRules(t *testing.T) {
	x, y := &udpPeer{}, &udpPeer{}
	px, py, pz := &Path{Link: x}, &Path{Link: y}, &Path{Link: x}
	for _, c := range []struct {
		name  string
		paths []*Path
		lens  []int
		want  int
	}{
		{"one", []*Path{px}, []int{100}, 1},
		{"equal", []*Path{px, px, px}, []int{100, 100, 100}, 3},
		{"equal destinations of two queue pairs", []*Path{px, pz, px}, []int{100, 100, 100}, 3},
		{"shorter last", []*Path{px, px, px, px}, []int{100, 100, 60, 60}, 3},
		{"longer", []*Path{px, px}, []int{100, 104}, 1},
		{"two destinations", []*Path{px, px, py}, []int{100, 100, 100}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			frames := make([]Frame, len(c.lens))
			for i := range frames {
				frames[i] = Frame{Len: c.lens[i], Path: c.paths[i]}
			}
			if got := trainLength(frames, sameUDPPath); got != c.want {
				t.Errorf("train of %d, want %d", got, c.want)
			}
		})
	}
	many := make([]Frame, 200)
	for i := range many {
		many[i] = Frame{Len: 20, Path: px}
	}
	if got := trainLength(many, sameUDPPath); got != roce.MaxSegments {
		t.Errorf("train of %d short packets, want %d", got, roce.MaxSegments)
	}
	for i := range many {
		many[i].Len = 4116
	}
	if got := trainLength(many, sameUDPPath); got != maxTrain/4116 {
		t.Errorf("train of %d long packets, want %d", got, maxTrain/4116)
	}
}

// TestTrainArrives takes a train in slices shorter than itself.
func TestTrainArrives(t *testing.T) {
	for _, ip := range loopbacks(t) {
		t.Run(ip.String(), func(t *testing.T) {
			var ls [2]*UDPLink
			for i := range ls {
				l, err := NewUDPLink(netip.AddrPortFrom(ip, 0))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				ls[i] = l
			}
			if !ls[0].Trains() {
				t.Skip("this kernel has no UDP_SEGMENT (Linux 4.18)")
			}
			to := ls[1].Attr().Local
			path, err := ls[0].Path(to)
			if err != nil {
				t.Fatal(err)
			}
			crc := roce.NewICRC(path.Pseudo)
			lens := []int{400, 400, 400, 400, 400, 400, 400, 100, 400, 4116, 4116, 20}
			frames := make([]Frame, len(lens))
			if ls[0].TxAlloc(frames) != len(frames) {
				t.Fatal("no frames")
			}
			var want [][]byte
			for i, n := range lens {
				f := &frames[i]
				f.Len, f.Path = n, &path
				for k := range f.Data[:n] {
					f.Data[k] = byte(i + k)
				}
				roce.PutICRC(f.Data[n-4:], crc.Sum(f.Data[:n-4]))
				want = append(want, bytes.Clone(f.Data[:n]))
			}
			if ls[0].Tx(frames) != len(frames) {
				t.Fatal("not sent")
			}
			got, rx := 0, make([]Frame, 3)
			for end := time.Now().Add(5 * time.Second); got < len(want) && time.Now().Before(end); {
				n := ls[1].Rx(rx)
				for _, f := range rx[:n] {
					w := want[got]
					p := f.Data[:f.Len]
					if len(p) != len(w) || !bytes.Equal(p[:len(p)-4], w[:len(w)-4]) || f.Src != ls[0].Attr().Local {
						t.Fatalf("packet %d: %d bytes from %v, want %d from %v", got, f.Len, f.Src, len(w), ls[0].Attr().Local)
					}
					delta := roce.GetICRC(p[len(p)-4:]) ^ roce.GetICRC(w[len(w)-4:])
					if _, ok := roce.Ident(delta, len(p)); !ok || ip.Is6() && delta != 0 {
						t.Errorf("packet %d: ICRC off by %#x", got, delta)
					}
					got++
				}
			}
			if got != len(want) {
				t.Errorf("%d packets of %d", got, len(want))
			}
		})
	}
}

// TestTrainRefused: a device that cannot send trains gets packets, all of them and
// with the right ICRC. A socket without checksums stands for it: EINVAL too.
func TestTrainRefused(t *testing.T) {
	a, b := newUDPPair(t, netip.MustParseAddr("127.0.0.1"), options{slot: 8188})
	link := a.dev.link.(*UDPLink)
	if !link.Trains() {
		t.Skip("this kernel has no UDP_SEGMENT (Linux 4.18)")
	}
	for _, s := range link.sockets {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			t.Fatal(err)
		}
	}
	b.postRecvs(t, 8)
	for i := range 8 {
		a.send(t, i, bytes.Repeat([]byte{byte(i)}, 8188))
	}
	var wcs []rdma.WC
	for end := time.Now().Add(5 * time.Second); len(wcs) < 8 && time.Now().Before(end); wcs = append(wcs, b.poll()...) {
		a.dev.Progress(monotonic())
		b.dev.Progress(monotonic())
	}
	if n, err := link.TxErrors(); link.Trains() || n != 0 {
		t.Errorf("trains %v, %d transmit errors: %v", link.Trains(), n, err)
	}
	if s := b.dev.Stats(); len(wcs) != 8 || s.Dropped() != 0 || s.OutOfOrder != 0 {
		t.Errorf("%d messages of 8, %+v", len(wcs), s)
	}
}

// TestNumberedPackets: where the kernel cuts a train up on its way, the packets come
// one by one, and the receiver cannot see their numbers.
func TestNumberedPackets(t *testing.T) {
	a, b := newUDPPair(t, netip.MustParseAddr("127.0.0.1"), options{depth: 128, slot: 256})
	b.postRecvs(t, 128)
	peer, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(b.dev.attr.Local))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	send := func(psn, ident int) {
		p := make([]byte, roce.BTHLen+200)
		(*roce.BTH)(p).Put(roce.SendOnly, 0, b.qp.Num(), false, roce.PSNAdd(a.qp.StartPSN(), uint32(psn)))
		pseudo := roce.AppendPseudo(nil, peer.LocalAddr().(*net.UDPAddr).AddrPort(), b.dev.attr.Local)
		binary.BigEndian.PutUint16(pseudo[8+4:], uint16(ident))
		roce.PutPseudoLen(pseudo, len(p)+roce.ICRCLen)
		if _, err := peer.Write(binary.LittleEndian.AppendUint32(p, roce.Sum(pseudo, p))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range roce.MaxSegments {
		send(i, i)
	}
	send(roce.MaxSegments, roce.MaxSegments)
	for end := time.Now().Add(5 * time.Second); b.dev.Stats().RxPackets <= roce.MaxSegments && time.Now().Before(end); {
		b.dev.Progress(monotonic())
	}
	if s := b.dev.Stats(); s.Messages != roce.MaxSegments || s.DropICRC != 1 {
		t.Errorf("%+v", s)
	}
}

// BenchmarkUDPStream is a one-way flow between two devices on one goroutine: both
// ends' whole work for a message, kernel included, whatever the load of the other CPUs.
func BenchmarkUDPStream(b *testing.B) {
	for _, size := range []int{128, 1024, 8188, 65536} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			const batch = 32
			x, y := newUDPPair(b, netip.MustParseAddr("127.0.0.1"), options{slot: size})
			y.postRecvs(b, y.depth)
			var wrs [batch]rdma.SendWR
			for i := range wrs {
				wrs[i] = rdma.SendWR{Data: x.sendSlot(i)[:size], Signaled: i == batch-1}
			}
			var wcs [batch]rdma.WC
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for n := 0; n < b.N; n += batch {
				if _, err := x.qp.PostSend(wrs[:]); err != nil {
					b.Fatal(err)
				}
				for done := false; !done; {
					x.dev.Progress(monotonic())
					y.dev.Progress(monotonic())
					for _, wc := range wcs[:y.cq.Poll(wcs[:])] {
						if _, err := y.qp.PostRecv([]rdma.RecvWR{{ID: wc.ID, Data: y.recvSlot(int(wc.ID))}}); err != nil {
							b.Fatal(err)
						}
					}
					done = x.cq.Poll(wcs[:]) > 0
				}
			}
		})
	}
}
