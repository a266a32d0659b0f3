package softroce

import (
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

func extraArena(t *testing.T) *hugepages.Arena {
	t.Helper()
	a, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 1 << 16, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// TestKeysAreRandom: a key that can be guessed is a right that can be stolen.
func TestKeysAreRandom(t *testing.T) {
	net := NewMemoryNet(1, Faults{})
	la, _ := net.Pair()
	d := New(la, Options{})
	defer d.Close()
	arena := extraArena(t)
	keys, steps := map[uint32]bool{}, map[uint32]bool{}
	last := uint32(0)
	for range 64 {
		pd, err := d.AllocPD()
		if err != nil {
			t.Fatal(err)
		}
		mr, err := pd.RegisterMR(arena, rdma.RemoteRead)
		if err != nil {
			t.Fatal(err)
		}
		keys[mr.RKey], steps[mr.RKey-last] = true, true
		last = mr.RKey
		if mr.RKey == mr.LKey || mr.RemoteAddr(arena.Bytes()[8:9]) != mr.Base+8 {
			t.Errorf("region %+v", mr)
		}
	}
	if len(keys) < 64 || len(steps) < 63 {
		t.Errorf("%d keys, %d steps between 64", len(keys), len(steps))
	}
}

// TestRegionsAreCounted: an arena is registered once for a domain and access.
func TestRegionsAreCounted(t *testing.T) {
	net := NewMemoryNet(1, Faults{})
	la, _ := net.Pair()
	d := New(la, Options{})
	defer d.Close()
	arena := extraArena(t)
	pd, err := d.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	expect := func(regions int) {
		t.Helper()
		if s := d.Stats(); s.Regions != uint64(regions) || s.RegionBytes != uint64(regions*len(arena.Bytes())) {
			t.Errorf("%d regions of %d bytes, want %d", s.Regions, s.RegionBytes, regions)
		}
	}
	var mrs []*rdma.MR
	for _, access := range []rdma.Access{0, rdma.RemoteRead, 0} {
		mr, err := pd.RegisterMR(arena, access)
		if err != nil {
			t.Fatal(err)
		}
		mrs = append(mrs, mr)
	}
	if mrs[0] != mrs[2] || mrs[0] == mrs[1] {
		t.Error("wrong regions are one")
	}
	expect(2)
	if err := pd.Close(); err == nil {
		t.Error("a domain closed with regions in it")
	}
	for i, left := range []int{2, 1, 0, 0} {
		if err := mrs[i%3].Close(); err != nil {
			t.Error(err)
		}
		expect(left)
	}
	if err := pd.Close(); err != nil {
		t.Error(err)
	}
	if _, err := pd.RegisterMR(arena, 0); err != ErrClosed {
		t.Errorf("a closed domain registers: %v", err)
	}
}

// TestMemoryGoesMeanwhile: memory that was deregistered is not touched, whatever is
// posted, on its way, or asked for.
func TestMemoryGoesMeanwhile(t *testing.T) {
	const all = rdma.RemoteRead | rdma.RemoteWrite
	for _, c := range []struct {
		name     string
		wr       func(p *pair, local, remote *rdma.MR) rdma.SendWR
		closeOf  int // 0: a's memory, 1: b's
		receives bool
		when     int // steps before it closes
		a, b     rdma.Status
	}{
		{"SEND, before it leaves", func(_ *pair, l, _ *rdma.MR) rdma.SendWR {
			return rdma.SendWR{Data: l.Arena.Bytes()[:5000]}
		}, 0, true, 0, rdma.LocalProtError, rdma.Success},
		{"READ, before its answer is here", func(p *pair, l, r *rdma.MR) rdma.SendWR {
			return rdma.SendWR{Op: rdma.OpRead, Data: l.Arena.Bytes()[:5000], RKey: r.RKey}
		}, 0, false, 1, rdma.LocalProtError, rdma.Success},
		{"READ, in the middle of the answer", func(p *pair, l, r *rdma.MR) rdma.SendWR {
			return rdma.SendWR{Op: rdma.OpRead, Data: l.Arena.Bytes()[:60000], RKey: r.RKey}
		}, 1, false, 3, rdma.RemoteAccessError, rdma.RemoteAccessError},
		{"WRITE, in the middle", func(p *pair, l, r *rdma.MR) rdma.SendWR {
			return rdma.SendWR{Op: rdma.OpWrite, Data: l.Arena.Bytes()[:60000], RKey: r.RKey}
		}, 1, false, 2, rdma.RemoteAccessError, rdma.RemoteAccessError},
		{"a posted receive", func(p *pair, l, r *rdma.MR) rdma.SendWR {
			return rdma.SendWR{Data: l.Arena.Bytes()[:5000]}
		}, 1, true, 0, rdma.RemoteOpError, rdma.LocalProtError},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, 1, Faults{Delay: time.Microsecond}, 256, options{open: 4096, rdAtomic: 2, depth: 4})
			local, err := p.a.pd.RegisterMR(extraArena(t), 0)
			if err != nil {
				t.Fatal(err)
			}
			remote, err := p.b.pd.RegisterMR(extraArena(t), all)
			if err != nil {
				t.Fatal(err)
			}
			if c.receives {
				if _, err := p.b.qp.PostRecv([]rdma.RecvWR{{Data: remote.Arena.Bytes()[:5000]}}); err != nil {
					t.Fatal(err)
				}
			} else {
				p.b.postRecvs(t, 1)
			}
			wr := c.wr(p, local, remote)
			wr.Signaled = true
			if _, err := p.a.qp.PostSend([]rdma.SendWR{wr}); err != nil {
				t.Fatal(err)
			}
			for range c.when {
				p.step()
			}
			if err := [...]*rdma.MR{local, remote}[c.closeOf].Close(); err != nil {
				t.Fatal(err)
			}
			for i := range local.Arena.Bytes()[:60000] {
				local.Arena.Bytes()[i], remote.Arena.Bytes()[i] = 0xa5, 0xa5
			}
			p.settle(t, time.Second)
			if wcs := p.a.poll(); len(wcs) != 1 || wcs[0].Status != c.a {
				t.Errorf("a: %+v", wcs)
			}
			if wcs := p.b.poll(); c.b == rdma.Success && len(wcs) != 0 || c.b != rdma.Success && (len(wcs) != 1 || wcs[0].Status != c.b) {
				t.Errorf("b: %+v", wcs)
			}
			closed := [...]*rdma.MR{local, remote}[c.closeOf]
			for i, b := range closed.Arena.Bytes()[:60000] {
				if b != 0xa5 {
					t.Fatalf("byte %d was written after the memory was deregistered", i)
				}
			}
		})
	}
}

// TestRNRRetries: a limit on how often a peer may say that it is not ready, and how
// long the engine asks its peers to wait.
func TestRNRRetries(t *testing.T) {
	net := NewMemoryNet(1, Faults{})
	la, lb := net.Pair()
	a, b := newNode(t, la, options{}), newNode(t, lb, options{})
	a.dev.opts.RNRRetries = 3
	b.dev.rnrSyndrome = roce.RNRSyndrome(10 * time.Millisecond)
	p := &pair{net: net, a: a, b: b}
	net.Advance(1)
	if err := a.qp.Connect(b.remote(1024)); err != nil {
		t.Fatal(err)
	}
	if err := b.qp.Connect(a.remote(1024)); err != nil {
		t.Fatal(err)
	}
	a.send(t, 1, []byte("anybody?"))
	p.settle(t, time.Second)
	if wcs := a.poll(); len(wcs) != 1 || wcs[0].Status != rdma.RNRRetryExceeded {
		t.Errorf("%+v", wcs)
	}
	if s := a.dev.Stats(); s.RNRNAKsReceived != 4 {
		t.Errorf("%d RNR NAKs, want the first and 3 more", s.RNRNAKsReceived)
	}
	if now := time.Duration(net.Now()); now < 30*time.Millisecond || now > 50*time.Millisecond {
		t.Errorf("gave up after %v, want three waits of 10.24 ms", now)
	}
}

// TestSharedReceiveComesBack: a pair that closes in the middle of a message gives its
// receive back.
func TestSharedReceiveComesBack(t *testing.T) {
	in := newInjectorWith(t, options{shared: true})
	srq := in.b.srq.(*sharedQueue)
	first := srq.ring[0].id
	in.inject(in.seal(in.packet(roce.SendFirst, 0, nil, 256)), in.a.dev.attr.Local)
	if left := srq.tail - srq.head; left != 3 {
		t.Fatalf("%d receives are left of 4", left)
	}
	for i := range 4 { // a queue of 8, 3 of them posted and one held
		in.b.postRecv(t, i)
	}
	if _, err := srq.PostRecv([]rdma.RecvWR{{Data: in.b.recvSlot(0)}}); err != rdma.ErrQueueFull {
		t.Errorf("a ninth receive: %v", err)
	}
	if err := in.b.qp.Close(); err != nil {
		t.Fatal(err)
	}
	if left := srq.tail - srq.head; left != 8 || srq.ring[srq.head&7].id != first {
		t.Errorf("%d receives are left, the first is %d", left, srq.ring[srq.head&7].id)
	}
	if err := srq.Close(); err != nil {
		t.Error(err)
	}
}

// TestDeadPeerOwesAnswers: READs and atomics of a peer that is gone fail like sends.
func TestDeadPeerOwesAnswers(t *testing.T) {
	for _, op := range []rdma.Opcode{rdma.OpRead, rdma.OpCompareSwap} {
		p := newPair(t, 1, Faults{}, 1024, options{open: 4096, rdAtomic: 1, peerTimeout: 100 * time.Millisecond})
		if err := p.b.qp.Close(); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if _, err := p.a.qp.PostSend([]rdma.SendWR{{ID: uint64(i), Op: op, Data: p.a.sendSlot(i)[:8], RKey: p.b.openMR.RKey}}); err != nil {
				t.Fatal(err)
			}
		}
		p.settle(t, time.Second)
		wcs := p.a.poll()
		if len(wcs) != 3 || wcs[0].Status != rdma.RetryExceeded || wcs[2].Status != rdma.FlushError {
			t.Errorf("%v: %+v", op, wcs)
		}
	}
}
