package devicetest

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma"
)

func testAttributes(t *testing.T, w *world) {
	for _, n := range [...]*node{w.a, w.b} {
		a := n.dev.Attr()
		if a.Name == "" || a.Label == "" {
			t.Errorf("no name or label: %+v", a)
		}
		if !a.GID.IsValid() || a.GID.Is4In6() || a.UDPPort == 0 {
			t.Errorf("no address: %+v", a)
		}
		if a.PathMTU < 256 || a.PathMTU > 4096 || a.PathMTU&(a.PathMTU-1) != 0 {
			t.Errorf("path MTU %d", a.PathMTU)
		}
		if a.MaxMsg < 1<<20 || a.MaxQPWR < depth || a.MaxInline < 0 {
			t.Errorf("limits: %+v", a)
		}
		if a != n.dev.Attr() {
			t.Error("the attributes change")
		}
	}
}

func testMemoryRegions(t *testing.T, w *world) {
	if w.a.mr.Arena != w.a.arena {
		t.Error("the region is of another arena")
	}
	if _, err := w.a.pd.RegisterMR(nil, 0); err == nil {
		t.Error("no arena at all was registered")
	}
	// Two arenas on one device, and messages from either.
	other := newNode(t, w.a.dev)
	other.open = false // w.a closes the device
	if _, err := w.a.pd.RegisterMR(other.arena, 0); err != nil {
		t.Fatal(err)
	}
	a, b := w.connected()
	for i, data := range [][]byte{a.tx(0)[:100], other.tx(0)[:100]} {
		b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
		a.postSend(rdma.SendWR{ID: uint64(i), Data: fill(data, i), Signaled: true})
		w.received(b, uint64(i), b.rx(i), pattern(i, 100))
		w.sent(a, uint64(i))
	}
	if err := w.a.dev.Close(); err != nil { // before the arenas go
		t.Error(err)
	}
	w.a.open = false
}

func testStates(t *testing.T, w *world) {
	a, b := w.a.newEnd(depth, depth), w.b.newEnd(depth, depth)
	if s := a.qp.State(); s != rdma.QPInit {
		t.Errorf("a new pair is in state %d", s)
	}
	if n, err := a.qp.PostSend([]rdma.SendWR{{Data: a.tx(0)[:4]}}); n != 0 || !errors.Is(err, rdma.ErrQPState) {
		t.Errorf("a send before connecting: %d, %v", n, err)
	}
	b.postRecv(rdma.RecvWR{ID: 1, Data: b.rx(0)}) // allowed from INIT on
	w.connect(a, b)
	if s := a.qp.State(); s != rdma.QPReadyToSend {
		t.Errorf("a connected pair is in state %d", s)
	}
	if err := a.qp.Connect(b.remote(w.mtu())); !errors.Is(err, rdma.ErrQPState) {
		t.Errorf("connecting again: %v", err)
	}
	a.postSend(rdma.SendWR{ID: 2, Data: fill(a.tx(0)[:4], 3), Signaled: true})
	w.received(b, 1, b.rx(0), pattern(3, 4))
	w.sent(a, 2)
	if err := a.qp.Close(); err != nil {
		t.Error(err)
	}
	if err := a.qp.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if err := a.qp.Connect(b.remote(w.mtu())); err == nil {
		t.Error("a closed pair connects")
	}
	if _, err := a.qp.PostSend([]rdma.SendWR{{Data: a.tx(0)[:4]}}); !errors.Is(err, rdma.ErrQPState) {
		t.Errorf("a send on a closed pair: %v", err)
	}
	if _, err := a.qp.PostRecv([]rdma.RecvWR{{Data: a.rx(0)}}); !errors.Is(err, rdma.ErrQPState) {
		t.Errorf("a receive on a closed pair: %v", err)
	}
}

// What a peer says about itself comes from outside.
func testBadRemotes(t *testing.T, w *world) {
	a, b := w.a.newEnd(depth, depth), w.b.newEnd(depth, depth)
	good := b.remote(w.mtu())
	otherFamily, multicast := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("239.1.2.3")
	if good.Addr.Is6() {
		otherFamily, multicast = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("ff0e::123")
	}
	for name, change := range map[string]func(*rdma.Remote){
		"no address":              func(r *rdma.Remote) { r.Addr = netip.Addr{} },
		"unspecified address":     func(r *rdma.Remote) { r.Addr = netip.IPv6Unspecified() },
		"IPv4 unspecified":        func(r *rdma.Remote) { r.Addr = netip.IPv4Unspecified() },
		"multicast address":       func(r *rdma.Remote) { r.Addr = multicast },
		"reserved QPN":            func(r *rdma.Remote) { r.QPN = 1 },
		"another family":          func(r *rdma.Remote) { r.Addr = otherFamily },
		"no port":                 func(r *rdma.Remote) { r.UDPPort = 0 },
		"25 bits of QPN":          func(r *rdma.Remote) { r.QPN = 1 << 24 },
		"multicast QPN":           func(r *rdma.Remote) { r.QPN = 1<<24 - 1 },
		"25 bits of PSN":          func(r *rdma.Remote) { r.StartPSN = 1 << 24 },
		"path MTU 0":              func(r *rdma.Remote) { r.PathMTU = 0 },
		"path MTU -1024":          func(r *rdma.Remote) { r.PathMTU = -1024 },
		"path MTU 1000":           func(r *rdma.Remote) { r.PathMTU = 1000 },
		"path MTU 128":            func(r *rdma.Remote) { r.PathMTU = 128 },
		"path MTU of 8192":        func(r *rdma.Remote) { r.PathMTU = 8192 },
		"path MTU of a gibibyte":  func(r *rdma.Remote) { r.PathMTU = 1 << 30 },
		"path MTU of 32 bits + 1": func(r *rdma.Remote) { r.PathMTU = 1<<32 + 1024 },
	} {
		r := good
		change(&r)
		if err := a.qp.Connect(r); err == nil {
			t.Fatalf("%s: connected", name)
		}
		if s := a.qp.State(); s != rdma.QPInit {
			t.Fatalf("%s: the pair is in state %d", name, s)
		}
	}
	w.connect(a, b) // no harm done
	b.postRecv(rdma.RecvWR{ID: 1, Data: b.rx(0)})
	a.postSend(rdma.SendWR{ID: 2, Data: fill(a.tx(0)[:4], 3), Signaled: true})
	w.received(b, 1, b.rx(0), pattern(3, 4))
}

func testQPConfigs(t *testing.T, w *world) {
	cq, foreign := w.a.newCQ(2*depth), w.b.newCQ(2*depth)
	most := w.a.dev.Attr().MaxQPWR
	for name, cfg := range map[string]rdma.QPConfig{
		"no queues":        {SendWRs: 1, RecvWRs: 1},
		"no receive queue": {SendCQ: cq, SendWRs: 1, RecvWRs: 1},
		"a foreign queue":  {SendCQ: cq, RecvCQ: foreign, SendWRs: 1, RecvWRs: 1},
		"no sends":         {SendCQ: cq, RecvCQ: cq, RecvWRs: 1},
		"no receives":      {SendCQ: cq, RecvCQ: cq, SendWRs: 1},
		"negative":         {SendCQ: cq, RecvCQ: cq, SendWRs: -1, RecvWRs: 1},
		"too deep":         {SendCQ: cq, RecvCQ: cq, SendWRs: 1, RecvWRs: most + 1},
	} {
		if _, err := w.a.pd.CreateQP(cfg); err == nil {
			t.Errorf("%s: a queue pair was made", name)
		}
	}
	for _, n := range []int{0, -1, 1 << 40} {
		if _, err := w.a.dev.CreateCQ(n); err == nil {
			t.Errorf("a completion queue of %d entries was made", n)
		}
	}
	if err := cq.Close(); err != nil {
		t.Errorf("refused pairs hold the completion queue: %v", err)
	}
}

// Numbers that a stranger can guess let him write into a connection.
func testNumbers(t *testing.T, w *world) {
	const n = 16
	cq := w.a.newCQ(2 * n)
	seen := map[uint32]bool{}
	steps := map[uint32]bool{}
	last := uint32(0)
	for range n {
		e := w.a.newEndOn(cq, 1, 1)
		psn := e.qp.StartPSN()
		if e.qp.Num() < 2 || e.qp.Num() > 1<<24-2 || psn > 1<<24-1 {
			t.Fatalf("queue pair %#x, PSN %#x", e.qp.Num(), psn)
		}
		seen[psn] = true
		steps[psn-last] = true
		last = psn
	}
	if len(seen) < n-1 || len(steps) < n-1 { // two of 16 random ones are equal once in 140,000
		t.Errorf("start PSNs repeat: %d of %d differ, in %d steps", len(seen), n, len(steps))
	}
}

func testQueueDepth(t *testing.T, w *world) {
	a, b := w.a.newEnd(4, 4), w.b.newEnd(4, 4)
	w.connect(a, b)
	var sends []rdma.SendWR
	var recvs []rdma.RecvWR
	for i := range 6 {
		sends = append(sends, rdma.SendWR{ID: uint64(i), Data: fill(a.tx(i)[:30], i), Signaled: true})
		recvs = append(recvs, rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
	}
	for round := range 10 {
		// Providers round depths up; the interface promises the one that was asked for.
		if n, err := b.qp.PostRecv(recvs); n != 4 || !errors.Is(err, rdma.ErrQueueFull) {
			t.Fatalf("round %d: posted %d receives to a queue of 4: %v", round, n, err)
		}
		if n, err := a.qp.PostSend(sends); n != 4 || !errors.Is(err, rdma.ErrQueueFull) {
			t.Fatalf("round %d: posted %d sends to a queue of 4: %v", round, n, err)
		}
		for i := range 4 {
			w.received(b, uint64(i), b.rx(i), pattern(i, 30))
			w.sent(a, uint64(i))
		}
	}
}

func testClosedPairIsSilent(t *testing.T, w *world) {
	acq, bcq := w.a.newCQ(4*depth), w.b.newCQ(4*depth)
	for round := range 3 {
		a, b := w.a.newEndOn(acq, depth, depth), w.b.newEndOn(bcq, depth, depth)
		w.connect(a, b)
		for i := range 8 {
			b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
		}
		for i := range 4 {
			a.postSend(rdma.SendWR{ID: uint64(i), Data: fill(a.tx(i)[:10], i), Signaled: true})
		}
		w.sent(a, 0) // others may wait in the queues, and four receives are open
		if err := b.qp.Close(); err != nil {
			t.Fatal(err)
		}
		if err := a.qp.Close(); err != nil {
			t.Fatal(err)
		}
		w.settle()
		// The next pair on the same queues sees nothing but its own.
		c, d := w.a.newEndOn(acq, depth, depth), w.b.newEndOn(bcq, depth, depth)
		w.connect(c, d)
		d.postRecv(rdma.RecvWR{ID: 77, Data: d.rx(0)})
		c.postSend(rdma.SendWR{ID: 88, Data: fill(c.tx(0)[:12], round), Signaled: true})
		w.untilOwn(d, 77)
		w.untilOwn(c, 88)
		for _, e := range [...]*end{c, d} {
			if err := e.qp.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// untilOwn takes the completion of request id of e. A device may still report
// what had completed before a pair was closed, by the number of that pair.
func (w *world) untilOwn(e *end, id uint64) {
	w.t.Helper()
	for {
		wc := w.poll(e, 1)[0]
		if wc.QPN != e.qp.Num() {
			if wc.Status == rdma.Success {
				continue
			}
			w.t.Fatalf("completion %+v of a closed pair", wc)
		}
		if wc.ID != id || wc.Status != rdma.Success {
			w.t.Fatalf("completion %+v, want that of request %d", wc, id)
		}
		return
	}
}

func testCompletionQueueCloses(t *testing.T, w *world) {
	a := w.a.newEnd(4, 4)
	if err := a.cq.Close(); err == nil {
		t.Error("a completion queue closed under its queue pair")
	}
	if err := a.qp.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.cq.Close(); err != nil {
		t.Errorf("closing an unused completion queue: %v", err)
	}
}

// readable tells whether fd is, within ms milliseconds.
func readable(t *testing.T, fd, ms int) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, ms)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

// The order that loses no wake-up: drain, arm, poll again, sleep.
func testDescriptorWakes(t *testing.T, w *world) {
	a, b := w.connected()
	fd := w.b.dev.FD()
	if fd < 0 {
		t.Skip("the device has no descriptor")
	}
	for i := range 20 {
		b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
		if err := b.cq.Arm(); err != nil {
			t.Fatal(err)
		}
		w.nothing(b)
		a.postSend(rdma.SendWR{ID: uint64(i), Data: fill(a.tx(i)[:10], i), Signaled: true})
		w.a.dev.Progress(w.pair.Now())
		if !readable(t, fd, 10_000) {
			t.Fatalf("message %d did not wake the sleeper", i)
		}
		w.received(b, uint64(i), b.rx(i), pattern(i, 10))
		w.sent(a, uint64(i))
	}
	// A completion that came before the queue was armed is found by polling again.
	b.postRecv(rdma.RecvWR{ID: 99, Data: b.rx(0)})
	a.postSend(rdma.SendWR{ID: 99, Data: fill(a.tx(0)[:10], 5), Signaled: true})
	w.sent(a, 99)
	if err := b.cq.Arm(); err != nil {
		t.Fatal(err)
	}
	w.received(b, 99, b.rx(0), pattern(5, 10))
}

func testClosedDevice(t *testing.T, w *world) {
	a, b := w.connected()
	b.postRecv(rdma.RecvWR{ID: 1, Data: b.rx(0)})
	a.postSend(rdma.SendWR{ID: 1, Data: a.tx(0)[:100], Signaled: true})
	if err := w.a.dev.Close(); err != nil {
		t.Fatal(err)
	}
	w.a.open = false
	if err := w.a.dev.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if _, err := w.a.dev.CreateCQ(4); err == nil {
		t.Error("a closed device makes completion queues")
	}
	if _, err := w.a.pd.RegisterMR(w.a.arena, 0); err == nil {
		t.Error("a closed device registers memory")
	}
	if _, err := a.qp.PostSend([]rdma.SendWR{{Data: a.tx(0)[:4]}}); err == nil {
		t.Error("a closed device sends")
	}
	w.a.dev.Progress(w.pair.Now()) // harmless
}
