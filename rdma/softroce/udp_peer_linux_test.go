package softroce

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
)

// star connects a device with several others, all over UDP sockets.
func star(t *testing.T, ip netip.Addr, n int) (hub *node, hubQPs []rdma.QP, rim []*node) {
	t.Helper()
	make1 := func() *node {
		l, err := NewUDPLink(netip.AddrPortFrom(ip, 0))
		if err != nil {
			t.Fatal(err)
		}
		return newNode(t, l, options{})
	}
	hub = make1()
	mtu := hub.dev.Attr().PathMTU
	for i := range n {
		r := make1()
		q := hub.qp
		if i > 0 {
			var err error
			if q, err = hub.pd.CreateQP(rdma.QPConfig{SendCQ: hub.cq, RecvCQ: hub.cq, SendWRs: 8, RecvWRs: 8}); err != nil {
				t.Fatal(err)
			}
		}
		if err := q.Connect(r.remote(mtu)); err != nil {
			t.Fatal(err)
		}
		back := hub.remote(mtu)
		back.QPN, back.StartPSN = q.Num(), q.StartPSN()
		if err := r.qp.Connect(back); err != nil {
			t.Fatal(err)
		}
		hubQPs, rim = append(hubQPs, q), append(rim, r)
	}
	return hub, hubQPs, rim
}

// greetAll sends a message over each of the hub's queue pairs and one back.
func greetAll(t *testing.T, hub *node, qps []rdma.QP, rim []*node) {
	t.Helper()
	nodes := append([]*node{hub}, rim...)
	want := map[uint32]int{}
	for i, q := range qps {
		if _, err := q.PostRecv([]rdma.RecvWR{{Data: hub.recvSlot(i)}}); err != nil {
			t.Fatal(err)
		}
		rim[i].postRecvs(t, 1)
		if _, err := q.PostSend([]rdma.SendWR{{Data: hub.sendSlot(i)[:100+4*i], Signaled: true}}); err != nil {
			t.Fatal(err)
		}
		rim[i].send(t, 0, make([]byte, 200+4*i))
		want[q.Num()] = 200 + 4*i
	}
	got := make([]int, len(rim))
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		done := len(want) == 0
		for _, n := range nodes {
			n.dev.Progress(monotonic())
			for _, wc := range n.poll() {
				if n == hub && !slices.ContainsFunc(qps, func(q rdma.QP) bool { return q.Num() == wc.QPN }) {
					continue // of another pair, whose peer may be gone
				}
				if wc.Status != rdma.Success {
					t.Fatalf("%+v", wc)
				}
				if n == hub && wc.Op.IsRecv() {
					if wc.Bytes != want[wc.QPN] {
						t.Errorf("%d bytes, want %d", wc.Bytes, want[wc.QPN])
					}
					delete(want, wc.QPN)
				}
				for i := range rim {
					if n == rim[i] && wc.Op.IsRecv() {
						got[i] = wc.Bytes
					}
				}
			}
		}
		for i := range rim {
			done = done && got[i] == 100+4*i
		}
		if done {
			return
		}
	}
	t.Fatalf("the hub still wants %v, the others got %v", want, got)
}

// TestMorePeersThanSockets: the first peers have a socket each, the others share one,
// and a queue pair that closes makes room.
func TestMorePeersThanSockets(t *testing.T) {
	for _, ip := range loopbacks(t) {
		t.Run(ip.String(), func(t *testing.T) {
			hub, qps, rim := star(t, ip, maxConnected+3)
			link := hub.dev.link.(*UDPLink)
			n, why := link.Connected()
			if why != nil {
				t.Skipf("no connected sockets here: %v", why)
			}
			if n != maxConnected {
				t.Errorf("%d sockets connected", n)
			}
			for range 20 {
				greetAll(t, hub, qps, rim)
			}
			for _, n := range append(rim, hub) {
				if s := n.dev.Stats(); s.Dropped() != 0 {
					t.Errorf("%+v", s)
				}
			}
			if err := qps[1].Close(); err != nil {
				t.Fatal(err)
			}
			if n, _ := link.Connected(); n != maxConnected-1 || len(link.spare) != 1 {
				t.Errorf("%d sockets connected and %d spare after a close", n, len(link.spare))
			}
			again, err := hub.pd.CreateQP(rdma.QPConfig{SendCQ: hub.cq, RecvCQ: hub.cq, SendWRs: 8, RecvWRs: 8})
			if err != nil {
				t.Fatal(err)
			}
			fresh := newNode(t, mustUDP(t, ip), options{})
			mtu := hub.dev.Attr().PathMTU
			if err := again.Connect(fresh.remote(mtu)); err != nil {
				t.Fatal(err)
			}
			back := hub.remote(mtu)
			back.QPN, back.StartPSN = again.Num(), again.StartPSN()
			if err := fresh.qp.Connect(back); err != nil {
				t.Fatal(err)
			}
			if n, _ := link.Connected(); n != maxConnected {
				t.Errorf("%d sockets connected", n)
			}
			qps[1], rim[1] = again, fresh
			greetAll(t, hub, qps, rim)
		})
	}
}

func mustUDP(t *testing.T, ip netip.Addr) *UDPLink {
	t.Helper()
	l, err := NewUDPLink(netip.AddrPortFrom(ip, 0))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLostCount: a link that does not know its socket's identifications any more
// sends from the socket for all until it does.
func TestLostCount(t *testing.T) {
	hub, qps, rim := star(t, netip.MustParseAddr("127.0.0.1"), 1)
	link := hub.dev.link.(*UDPLink)
	if _, why := link.Connected(); why != nil {
		t.Skipf("no connected sockets here: %v", why)
	}
	peer := link.sockets[1].peer
	for range 3 {
		greetAll(t, hub, qps, rim)
		if !peer.counted {
			t.Error("lost count for nothing")
		}
		peer.counted, peer.asked = false, time.Now()
		greetAll(t, hub, qps, rim)
		peer.asked = time.Time{}
	}
	if s := rim[0].dev.Stats(); s.Dropped() != 0 {
		t.Errorf("%+v", s)
	}
}

// TestNobodyThere: what the kernel tells about a peer that is gone ends nothing but
// that peer's queue pair.
func TestNobodyThere(t *testing.T) {
	hub, qps, rim := star(t, netip.MustParseAddr("127.0.0.1"), 2)
	greetAll(t, hub, qps, rim)
	gone := rim[0]
	gone.dev.Close()
	for i := range 5 {
		if _, err := qps[0].PostSend([]rdma.SendWR{{Data: hub.sendSlot(i)[:128], Signaled: true}}); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			hub.dev.Progress(monotonic())
			rim[1].dev.Progress(monotonic())
		}
	}
	greetAll(t, hub, qps[1:], rim[1:])
	if n, err := hub.dev.link.(*UDPLink).TxErrors(); n != 0 {
		t.Errorf("%d transmit errors: %v", n, err)
	}
}

// A socket whose packets come one by one gets no trains, until several come in a row; no
// packet is lost or misread where that changes.
func TestPacketsThatComeAlone(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			var ls [2]*UDPLink
			var paths [2]Path
			for i := range ls {
				l, err := NewUDPLink(netip.AddrPortFrom(netip.MustParseAddr(ip), 0))
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				ls[i] = l
			}
			for i, l := range ls {
				var err error
				if paths[i], err = l.Path(ls[1-i].Attr().Local); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := ls[1].Connected(); n == 0 {
				t.Skip(err)
			}
			send := func(n int) {
				tx := make([]Frame, n)
				if ls[0].TxAlloc(tx) != n {
					t.Fatal("no frames")
				}
				for i := range tx {
					tx[i].Len, tx[i].Path = 64, &paths[0]
				}
				if ls[0].Tx(tx) != n {
					t.Fatal("not sent")
				}
				rx := make([]Frame, burst)
				for end := time.Now().Add(10 * time.Second); n > 0; {
					k := ls[1].Rx(rx)
					for i := range rx[:k] {
						if rx[i].Len != 64 || rx[i].Src != ls[0].Attr().Local {
							t.Fatalf("a packet of %d bytes from %v", rx[i].Len, rx[i].Src)
						}
					}
					if n -= k; time.Now().After(end) {
						t.Fatalf("%d packets are missing", n)
					}
				}
				for ls[1].Rx(rx) > 0 {
					t.Fatal("a packet more than was sent")
				}
			}
			s := ls[1].peers[ls[0].Attr().Local].socket
			for range 4 {
				for range plainAfter {
					send(1)
				}
				if !s.plain {
					t.Fatalf("%+v after %d packets that came alone", s.alone, plainAfter)
				}
				send(2) // data and its acknowledgement
				if !s.plain {
					t.Fatal("two in a row count as many")
				}
				send(40)
				if s.plain {
					t.Fatal("forty in a row count as few")
				}
				send(40)
			}
			for range aloneAfter + 3 { // on the way there
				send(1)
			}
			send(40)
			send(3)
			if s.plain || s.singles != 0 {
				t.Fatalf("%+v behind trains", s.alone)
			}
		})
	}
}
