package devicetest

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
)

const allAccess = rdma.RemoteRead | rdma.RemoteWrite | rdma.RemoteAtomic

// rdAtomic is how many READs and atomics the pairs here have under way.
const rdAtomic = 4

// need skips a test of what a device does not have.
func (w *world) need(what rdma.Capability, name string) {
	w.t.Helper()
	for _, n := range [...]*node{w.a, w.b} {
		if a := n.dev.Attr(); !a.Caps.Has(what) {
			w.t.Skip(&rdma.NotSupportedError{Device: a.Name, Feature: name})
		}
	}
}

// opened gives the ends of a connection through which a may do everything with
// b's memory, and the region of that.
func (w *world) opened(what rdma.Capability, name string) (a, b *end, mr *rdma.MR) {
	w.t.Helper()
	w.need(what, name)
	a, b = w.a.newOpenEnd(allAccess), w.b.newOpenEnd(allAccess)
	w.connect(a, b)
	return a, b, w.b.register(allAccess)
}

func (n *node) newOpenEnd(access rdma.Access) *end {
	n.t.Helper()
	cq := n.newCQ(2 * depth)
	return n.newEndWith(rdma.QPConfig{
		SendCQ: cq, RecvCQ: cq, SendWRs: depth, RecvWRs: depth, Access: access, MaxRdAtomic: rdAtomic, MaxDestRdAtomic: rdAtomic,
	})
}

func (n *node) register(access rdma.Access) *rdma.MR {
	n.t.Helper()
	mr, err := n.pd.RegisterMR(n.arena, access)
	if err != nil {
		n.t.Fatal(err)
	}
	return mr
}

// completed checks that the next completion of e is that of request id, of kind op.
func (w *world) completed(e *end, id uint64, op rdma.WCOpcode) {
	w.t.Helper()
	if wc := w.poll(e, 1)[0]; wc.ID != id || wc.Op != op || wc.Status != rdma.Success || wc.QPN != e.qp.Num() {
		w.t.Fatalf("completion %+v, want that of request %d, kind %d, queue pair %d", wc, id, op, e.qp.Num())
	}
}

func (w *world) sizes() []int {
	mtu := w.mtu()
	return []int{0, 1, 3, 4, 127, 128, mtu - 1, mtu, mtu + 1, 15 * mtu, 16 * mtu, 17*mtu - 1, 33*mtu + 5, 1<<20 - 8}
}

func testWrite(t *testing.T, w *world) {
	a, b, mr := w.opened(rdma.CapWrite, "WRITE")
	for i, n := range w.sizes() {
		to := b.big(1)
		clear(to)
		a.postSend(rdma.SendWR{ID: uint64(i), Op: rdma.OpWrite, Data: fill(a.big(0)[:n], i), RemoteAddr: mr.RemoteAddr(to[4:]), RKey: mr.RKey, Signaled: true})
		w.completed(a, uint64(i), rdma.WCWrite)
		if !bytes.Equal(to[4:][:n], pattern(i, n)) {
			t.Fatalf("%d bytes: others were written", n)
		}
		if string(to[:4]) != "\x00\x00\x00\x00" || to[4+n] != 0 {
			t.Fatalf("%d bytes: written beside them", n)
		}
	}
	w.nothing(b)
	if most := a.dev.Attr().MaxInline; most > 0 {
		a.postSend(rdma.SendWR{ID: 99, Op: rdma.OpWrite, Data: pattern(7, most), Inline: true, RemoteAddr: mr.RemoteAddr(b.big(2)), RKey: mr.RKey, Signaled: true})
		w.completed(a, 99, rdma.WCWrite)
		if !bytes.Equal(b.big(2)[:most], pattern(7, most)) {
			t.Error("an inline WRITE wrote other bytes")
		}
	}
}

// WRITE_WITH_IMM takes a receive without touching its buffer; without one it waits.
func testWriteImm(t *testing.T, w *world) {
	a, b, mr := w.opened(rdma.CapWrite, "WRITE_WITH_IMM")
	for i, n := range []int{0, 9, 3*w.mtu() + 1} {
		clear(b.rx(0))
		a.postSend(rdma.SendWR{
			ID: uint64(i), Op: rdma.OpWriteImm, Imm: uint32(0x01020304 + i), Data: fill(a.big(0)[:n], i), RemoteAddr: mr.RemoteAddr(b.big(1)), RKey: mr.RKey, Signaled: true,
		})
		if i == 2 {
			w.settle() // the receive is late
		}
		b.postRecv(rdma.RecvWR{ID: uint64(50 + i), Data: b.rx(0)})
		wc := w.poll(b, 1)[0]
		if wc.ID != uint64(50+i) || wc.Op != rdma.WCRecvWriteImm || wc.Status != rdma.Success || !wc.HasImm || wc.Imm != uint32(0x01020304+i) || wc.Bytes != n {
			t.Fatalf("%d bytes: completion %+v", n, wc)
		}
		if !bytes.Equal(b.big(1)[:n], pattern(i, n)) || !bytes.Equal(b.rx(0), make([]byte, smallSlot)) {
			t.Errorf("%d bytes: not where they belong", n)
		}
		w.completed(a, uint64(i), rdma.WCWrite)
	}
}

func testRead(t *testing.T, w *world) {
	a, b, mr := w.opened(rdma.CapRead, "READ")
	for i, n := range w.sizes() {
		from, to := b.big(1), a.big(2)
		clear(to)
		fill(from[8:][:n], i)
		a.postSend(rdma.SendWR{ID: uint64(i), Op: rdma.OpRead, Data: to[:n], RemoteAddr: mr.RemoteAddr(from[8:]), RKey: mr.RKey, Signaled: true})
		w.completed(a, uint64(i), rdma.WCRead)
		if !bytes.Equal(to[:n], pattern(i, n)) || to[n] != 0 {
			t.Fatalf("%d bytes: others arrived, or more", n)
		}
	}
	w.nothing(b)
}

// More READs and atomics than may be under way: all are done, in order, among sends.
func testManyReads(t *testing.T, w *world) {
	a, b, mr := w.opened(rdma.CapRead|rdma.CapAtomic, "READ and atomics")
	var wrs []rdma.SendWR
	counter := b.big(0)[:8]
	clear(counter)
	for i := range depth {
		wr := rdma.SendWR{ID: uint64(i), RKey: mr.RKey, Signaled: true}
		switch i % 4 {
		case 0, 1:
			wr.Op, wr.Data, wr.RemoteAddr = rdma.OpRead, a.rx(i)[:smallSlot-i], mr.RemoteAddr(fill(b.tx(i), i))
		case 2:
			wr.Op, wr.Data, wr.RemoteAddr, wr.SwapAdd = rdma.OpFetchAdd, a.rx(i)[:8], mr.RemoteAddr(counter), 1
		default:
			wr.Op, wr.Data = rdma.OpSend, fill(a.tx(i)[:100], i)
			b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.rx(i)})
		}
		wrs = append(wrs, wr)
	}
	a.postSend(wrs...)
	for i := range depth {
		w.completed(a, uint64(i), [...]rdma.WCOpcode{rdma.WCRead, rdma.WCRead, rdma.WCFetchAdd, rdma.WCSend}[i%4])
		switch i % 4 {
		case 0, 1:
			if !bytes.Equal(a.rx(i)[:smallSlot-i], pattern(i, smallSlot)[:smallSlot-i]) {
				t.Errorf("READ %d brought other bytes", i)
			}
		case 2:
			if old := binary.NativeEndian.Uint64(a.rx(i)); old != uint64(i/4) {
				t.Errorf("FETCH_ADD %d found %d", i/4, old)
			}
		default:
			w.received(b, uint64(i), b.rx(i), pattern(i, 100))
		}
	}
}

func testAtomics(t *testing.T, w *world) {
	a, b, mr := w.opened(rdma.CapAtomic, "atomics")
	cell := b.big(0)[64:72]
	old := a.big(0)[:8]
	set := func(v uint64) { binary.NativeEndian.PutUint64(cell, v) }
	for i, c := range []struct {
		op                       rdma.Opcode
		was, compare, arg, after uint64
	}{
		{rdma.OpFetchAdd, 40, 0, 2, 42},
		{rdma.OpFetchAdd, 40, 0, 0, 40},
		{rdma.OpFetchAdd, math.MaxUint64, 0, 2, 1},
		{rdma.OpFetchAdd, 1 << 40, 0, math.MaxUint64, 1<<40 - 1},
		{rdma.OpCompareSwap, 0x0102030405060708, 0x0102030405060708, 9, 9},
		{rdma.OpCompareSwap, 0x0102030405060708, 0x0102030405060709, 9, 0x0102030405060708},
		{rdma.OpCompareSwap, 0, 0, math.MaxUint64, math.MaxUint64},
	} {
		set(c.was)
		binary.NativeEndian.PutUint64(old, ^c.was)
		a.postSend(rdma.SendWR{ID: uint64(i), Op: c.op, Data: old, RemoteAddr: mr.RemoteAddr(cell), RKey: mr.RKey, Compare: c.compare, SwapAdd: c.arg, Signaled: true})
		op := rdma.WCFetchAdd
		if c.op == rdma.OpCompareSwap {
			op = rdma.WCCompareSwap
		}
		w.completed(a, uint64(i), op)
		if got := binary.NativeEndian.Uint64(old); got != c.was {
			t.Errorf("%v of %#x: the old value is %#x", c.op, c.was, got)
		}
		if got := binary.NativeEndian.Uint64(cell); got != c.after {
			t.Errorf("%v of %#x: the new value is %#x, want %#x", c.op, c.was, got, c.after)
		}
	}
	for name, wr := range map[string]rdma.SendWR{
		"7 bytes":      {Op: rdma.OpFetchAdd, Data: old[:7], RemoteAddr: mr.RemoteAddr(cell), RKey: mr.RKey},
		"16 bytes":     {Op: rdma.OpFetchAdd, Data: a.big(0)[:16], RemoteAddr: mr.RemoteAddr(cell), RKey: mr.RKey},
		"no multiple":  {Op: rdma.OpCompareSwap, Data: old, RemoteAddr: mr.RemoteAddr(cell) + 4, RKey: mr.RKey},
		"inline":       {Op: rdma.OpFetchAdd, Data: old, RemoteAddr: mr.RemoteAddr(cell), RKey: mr.RKey, Inline: true},
		"inline READ":  {Op: rdma.OpRead, Data: old, RemoteAddr: mr.RemoteAddr(cell), RKey: mr.RKey, Inline: true},
		"foreign READ": {Op: rdma.OpRead, Data: make([]byte, 8), RemoteAddr: mr.RemoteAddr(cell), RKey: mr.RKey},
	} {
		if n, err := a.qp.PostSend([]rdma.SendWR{wr}); n != 0 || err == nil {
			t.Errorf("%s: posted", name)
		}
	}
}

// What a WRITE wrote is there when the SEND behind it has arrived.
func testWriteThenSend(t *testing.T, w *world) {
	a, b, mr := w.opened(rdma.CapWrite, "WRITE")
	n := 5*w.mtu() + 3
	for i := range 20 {
		b.postRecv(rdma.RecvWR{ID: uint64(i), Data: b.rx(0)})
		a.postSend(
			rdma.SendWR{Op: rdma.OpWrite, Data: fill(a.big(0)[:n], i), RemoteAddr: mr.RemoteAddr(b.big(1)), RKey: mr.RKey},
			rdma.SendWR{ID: uint64(i), Data: fill(a.tx(0)[:10], i), Signaled: true})
		w.received(b, uint64(i), b.rx(0), pattern(i, 10))
		if !bytes.Equal(b.big(1)[:n], pattern(i, n)) {
			t.Fatal("the message is there before the bytes")
		}
		w.sent(a, uint64(i))
	}
}

// What a peer is not allowed to do is refused by name, changes nothing, and ends
// that one pair.
func testRemoteRights(t *testing.T, w *world) {
	w.need(rdma.CapWrite|rdma.CapRead|rdma.CapAtomic, "one-sided operations")
	healthy, peer := w.connected()
	open, other := w.b.register(allAccess), w.b.otherDomain()
	mrs := map[rdma.Access]*rdma.MR{}
	for _, acc := range []rdma.Access{0, rdma.RemoteRead, rdma.RemoteWrite, rdma.RemoteAtomic} {
		mrs[acc] = w.b.register(acc)
	}
	last := len(w.b.arena.Bytes())
	cell := w.b.big(1)[:64]
	for _, c := range []struct {
		name   string
		op     rdma.Opcode
		mr     *rdma.MR
		key    uint32 // to add
		addr   uint64
		n      int
		access rdma.Access // of the pair
	}{
		{"READ with another key", rdma.OpRead, open, 1 << 8, open.RemoteAddr(cell), 8, allAccess},
		{"WRITE with another key", rdma.OpWrite, open, 1 << 31, open.RemoteAddr(cell), 8, allAccess},
		{"READ behind the end", rdma.OpRead, open, 0, open.Base + uint64(last), 1, allAccess},
		{"READ across the end", rdma.OpRead, open, 0, open.Base + uint64(last) - 7, 8, allAccess},
		{"WRITE across the end", rdma.OpWrite, open, 0, open.Base + uint64(last) - 7, 8, allAccess},
		{"long WRITE across the end", rdma.OpWrite, open, 0, open.Base + uint64(last) - 4096, 3 * 4096, allAccess},
		{"READ before the start", rdma.OpRead, open, 0, open.Base - 1, 8, allAccess},
		{"WRITE round the end of addresses", rdma.OpWrite, open, 0, math.MaxUint64 - 3, 8, allAccess},
		{"FETCH_ADD behind the end", rdma.OpFetchAdd, open, 0, open.Base + uint64(last), 8, allAccess},
		{"READ of memory for WRITE", rdma.OpRead, mrs[rdma.RemoteWrite], 0, open.RemoteAddr(cell), 8, allAccess},
		{"WRITE to memory for READ", rdma.OpWrite, mrs[rdma.RemoteRead], 0, open.RemoteAddr(cell), 8, allAccess},
		{"WRITE to memory for nobody", rdma.OpWrite, mrs[0], 0, open.RemoteAddr(cell), 8, allAccess},
		{"COMPARE_SWAP in memory for READ", rdma.OpCompareSwap, mrs[rdma.RemoteRead], 0, open.RemoteAddr(cell), 8, allAccess},
		{"READ through a pair for WRITE", rdma.OpRead, open, 0, open.RemoteAddr(cell), 8, rdma.RemoteWrite},
		{"WRITE through a pair for READ", rdma.OpWrite, open, 0, open.RemoteAddr(cell), 8, rdma.RemoteRead},
		{"FETCH_ADD through a pair for READ", rdma.OpFetchAdd, open, 0, open.RemoteAddr(cell), 8, rdma.RemoteRead},
		{"WRITE to another domain", rdma.OpWrite, other, 0, open.RemoteAddr(cell), 8, allAccess},
	} {
		t.Run(c.name, func(t *testing.T) {
			fill(cell, 1)
			a, b := w.a.newOpenEnd(allAccess), w.b.newOpenEnd(c.access)
			w.connect(a, b)
			b.postRecv(rdma.RecvWR{ID: 1, Data: b.rx(0)}) // flushed when the pair is in error
			a.postSend(
				rdma.SendWR{ID: 1, Op: c.op, Data: fill(a.big(0)[:c.n], 2), RemoteAddr: c.addr, RKey: c.mr.RKey + c.key, Signaled: true},
				rdma.SendWR{ID: 2, Data: a.tx(0)[:4], Signaled: true})
			// A device may take a right that the whole pair lacks for a request that cannot be.
			w.failed(a, rdma.WCSend, 2, rdma.RemoteAccessError, rdma.RemoteInvalidReq)
			w.failed(b, rdma.WCRecv, 1, rdma.FlushError, rdma.RemoteAccessError, rdma.LocalAccessError)
			if !bytes.Equal(cell, pattern(1, len(cell))) {
				t.Error("the memory changed")
			}
			for _, e := range [...]*end{a, b} {
				if err := e.qp.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	peer.postRecv(rdma.RecvWR{ID: 7, Data: peer.rx(0)})
	healthy.postSend(rdma.SendWR{ID: 8, Data: fill(healthy.tx(0)[:9], 3), Signaled: true})
	w.received(peer, 7, peer.rx(0), pattern(3, 9))
	w.sent(healthy, 8)
}

// otherDomain registers n's memory in another protection domain.
func (n *node) otherDomain() *rdma.MR {
	n.t.Helper()
	pd, err := n.dev.AllocPD()
	if err != nil {
		n.t.Fatal(err)
	}
	mr, err := pd.RegisterMR(n.arena, allAccess)
	if err != nil {
		n.t.Fatal(err)
	}
	return mr
}

// A region that was closed is no use to anybody.
func testDeregistered(t *testing.T, w *world) {
	w.need(rdma.CapWrite, "WRITE")
	extra, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 1 << 16, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := extra.Close(); err != nil {
			t.Error(err)
		}
	}()
	first, err := w.b.pd.RegisterMR(extra, allAccess)
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.b.pd.RegisterMR(extra, allAccess)
	if err != nil || second != first {
		t.Fatalf("registered twice: %p and %p, %v", first, second, err)
	}
	a, b, _ := w.opened(rdma.CapWrite, "WRITE")
	wr := rdma.SendWR{ID: 1, Op: rdma.OpWrite, Data: fill(a.big(0)[:300], 1), RemoteAddr: first.RemoteAddr(extra.Bytes()[:300]), RKey: first.RKey, Signaled: true}
	for range 2 {
		a.postSend(wr)
		w.completed(a, 1, rdma.WCWrite)
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b.postRecv(rdma.RecvWR{ID: 1, Data: b.rx(0)})
	if n, err := b.qp.PostRecv([]rdma.RecvWR{{ID: 1, Data: extra.Bytes()[:100]}}); n != 0 || err == nil {
		t.Error("a receive into deregistered memory was taken")
	}
	a.postSend(wr)
	w.failed(a, rdma.WCSend, 1, rdma.RemoteAccessError)
	w.failed(b, rdma.WCRecv, 1, rdma.FlushError, rdma.RemoteAccessError, rdma.LocalAccessError)
}

// A pair without room for READs refuses them at the post.
func testReadsNeedLimits(t *testing.T, w *world) {
	w.need(rdma.CapRead, "READ")
	at := w.a.dev.Attr()
	if at.MaxRdAtomic < 1 || at.MaxDestRdAtomic < 1 {
		t.Errorf("limits %+v", at)
	}
	mr := w.b.register(allAccess)
	a, b := w.connected()
	wr := rdma.SendWR{Op: rdma.OpRead, Data: a.tx(0)[:8], RemoteAddr: mr.RemoteAddr(b.tx(0)), RKey: mr.RKey}
	if n, err := a.qp.PostSend([]rdma.SendWR{wr}); n != 0 || err == nil {
		t.Error("a READ was taken by a pair without MaxRdAtomic")
	}
	cq := w.a.newCQ(4)
	for _, n := range [...][2]int{{-1, 0}, {0, -1}, {at.MaxRdAtomic + 1, 0}, {0, at.MaxDestRdAtomic + 1}} {
		if _, err := w.a.pd.CreateQP(rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: 1, RecvWRs: 1, MaxRdAtomic: n[0], MaxDestRdAtomic: n[1]}); err == nil {
			t.Errorf("a pair with %v READs and atomics was made", n)
		}
	}
}
