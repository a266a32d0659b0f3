package verbs_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/verbs"
)

const (
	halfBytes    = 8 << 20 // rdma_rxe's longest message
	allAccess    = rdma.RemoteRead | rdma.RemoteWrite | rdma.RemoteAtomic
	rdAtomics    = 4
	sharedWRs    = 16
	messageBytes = 4096
)

// side is one end of a connection whose memory has two halves: from the first one
// it sends, and in the second one its peer works.
type side struct {
	t     *testing.T
	dev   rdma.Device
	arena *hugepages.Arena
	pd    rdma.PD
	mr    *rdma.MR
	cq    rdma.CQ
	srq   rdma.SRQ // or nil
	qp    rdma.QP
	done  []rdma.WC
}

func newSide(t *testing.T, dev rdma.Device, shared bool) *side {
	t.Helper()
	s := &side{t: t, dev: dev}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.arena, err = hugepages.NewArena(hugepages.ArenaOptions{Bytes: 2 * halfBytes, Backing: hugepages.Ordinary})
	must(err)
	t.Cleanup(func() {
		must(dev.Close())
		must(s.arena.Close())
	})
	s.pd, err = dev.AllocPD()
	must(err)
	s.mr, err = s.pd.RegisterMR(s.arena, allAccess)
	must(err)
	s.cq, err = dev.CreateCQ(64)
	must(err)
	cfg := rdma.QPConfig{SendCQ: s.cq, RecvCQ: s.cq, SendWRs: 16, RecvWRs: 16, Access: allAccess, MaxRdAtomic: rdAtomics, MaxDestRdAtomic: rdAtomics}
	if shared {
		s.srq, err = s.pd.CreateSRQ(rdma.SRQConfig{WRs: sharedWRs})
		must(err)
		cfg.SRQ, cfg.RecvWRs = s.srq, 0
	}
	s.qp, err = s.pd.CreateQP(cfg)
	must(err)
	return s
}

func (s *side) local(n int) []byte { return s.arena.Bytes()[:n] }
func (s *side) work(n int) []byte  { return s.arena.Bytes()[halfBytes:][:n] }

// connectSides takes both queue pairs to RTS.
func connectSides(t *testing.T, a, b *side) {
	t.Helper()
	mtu := min(a.dev.Attr().PathMTU, b.dev.Attr().PathMTU)
	for _, ends := range [][2]*side{{a, b}, {b, a}} {
		at := ends[1].dev.Attr()
		err := ends[0].qp.Connect(rdma.Remote{
			Addr: at.GID, UDPPort: at.UDPPort, QPN: ends[1].qp.Num(), StartPSN: ends[1].qp.StartPSN(), PathMTU: mtu, MaxDestRdAtomic: rdAtomics,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (s *side) recv(n int) {
	s.t.Helper()
	wrs := []rdma.RecvWR{{ID: 99, Data: s.work(n)}}
	post := s.qp.PostRecv
	if s.srq != nil {
		post = s.srq.PostRecv
	}
	if _, err := post(wrs); err != nil {
		s.t.Fatal(err)
	}
}

func (s *side) post(wr rdma.SendWR) {
	s.t.Helper()
	wr.Signaled = true
	if _, err := s.qp.PostSend([]rdma.SendWR{wr}); err != nil {
		s.t.Fatalf("%v of %d bytes: %v", wr.Op, len(wr.Data), err)
	}
}

// completion runs both devices until s has one of kind op.
func (s *side) completion(peer *side, op rdma.WCOpcode) rdma.WC {
	s.t.Helper()
	start := time.Now()
	for {
		for _, x := range []*side{s, peer} {
			x.dev.Progress(int64(time.Since(began)) + 1)
			var wcs [16]rdma.WC
			x.done = append(x.done, wcs[:x.cq.Poll(wcs[:])]...)
		}
		if len(s.done) > 0 {
			wc := s.done[0]
			s.done = s.done[1:]
			if wc.Status != rdma.Success || wc.Op != op || wc.QPN != s.qp.Num() {
				s.t.Fatalf("completion %+v, want success of kind %d", wc, op)
			}
			return wc
		}
		if time.Since(start) > patience {
			s.t.Fatalf("no completion of kind %d within %v", op, patience)
		}
	}
}

var began = time.Now()

func fillPattern(p []byte, seed int) []byte {
	for i := range p {
		p[i] = byte(seed*131 + i*7 + i>>8)
	}
	return p
}

// everyOperation does what reliable connections can with n bytes, a to b, and looks
// at what the memories hold then.
func everyOperation(t *testing.T, a, b *side, n int) {
	t.Helper()
	same := func(what string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Fatalf("%s of %d bytes: other bytes arrived", what, n)
		}
	}
	remote := func(wr rdma.SendWR, at int) rdma.SendWR {
		wr.RemoteAddr, wr.RKey = b.mr.RemoteAddr(b.work(at + 8)[at:]), b.mr.RKey
		return wr
	}
	want := fillPattern(make([]byte, n), n)

	clear(b.work(n))
	b.recv(n)
	a.post(rdma.SendWR{Op: rdma.OpSendImm, Imm: 7, Data: fillPattern(a.local(n), n)})
	if wc := b.completion(a, rdma.WCRecv); wc.Bytes != n || wc.Imm != 7 || wc.ID != 99 {
		t.Fatalf("SEND of %d bytes arrived as %+v", n, wc)
	}
	a.completion(b, rdma.WCSend)
	same("SEND", b.work(n), want)

	clear(b.work(n))
	b.recv(1)
	a.post(remote(rdma.SendWR{Op: rdma.OpWrite, Data: a.local(n)}, 0))
	a.completion(b, rdma.WCWrite)
	same("WRITE", b.work(n), want)
	clear(b.work(n))
	a.post(remote(rdma.SendWR{Op: rdma.OpWriteImm, Imm: 8, Data: a.local(n)}, 0))
	if wc := b.completion(a, rdma.WCRecvWriteImm); wc.Bytes != n || wc.Imm != 8 {
		t.Fatalf("WRITE_WITH_IMM of %d bytes arrived as %+v", n, wc)
	}
	a.completion(b, rdma.WCWrite)
	same("WRITE_WITH_IMM", b.work(n), want)

	clear(a.local(n))
	a.post(remote(rdma.SendWR{Op: rdma.OpRead, Data: a.local(n)}, 0))
	a.completion(b, rdma.WCRead)
	same("READ", a.local(n), want)

	word := b.work(16)[8:]
	binary.NativeEndian.PutUint64(word, 1000)
	a.post(remote(rdma.SendWR{Op: rdma.OpFetchAdd, Data: a.local(8), SwapAdd: 5}, 8))
	a.completion(b, rdma.WCFetchAdd)
	old := binary.NativeEndian.Uint64(a.local(8))
	a.post(remote(rdma.SendWR{Op: rdma.OpCompareSwap, Data: a.local(8), Compare: 1005, SwapAdd: 9}, 8))
	a.completion(b, rdma.WCCompareSwap)
	if again, now := binary.NativeEndian.Uint64(a.local(8)), binary.NativeEndian.Uint64(word); old != 1000 || again != 1005 || now != 9 {
		t.Fatalf("atomics found %d and %d and left %d; want 1000, 1005, 9", old, again, now)
	}
}

var operationSizes = []int{1, 2, 3, 4, 127, 128, 1023, 1024, 1025, 4096, 8188, 65536, 1<<20 + 3, halfBytes}

func TestEveryOperation(t *testing.T) {
	needDevice(t)
	for _, shared := range []bool{false, true} {
		a, b := newSide(t, openDevice(t, verbs.Choice{}), shared), newSide(t, openDevice(t, verbs.Choice{}), shared)
		connectSides(t, a, b)
		for _, n := range operationSizes {
			everyOperation(t, a, b, n)
		}
	}
}

// A queue pair that closes gives the receives that it took, and nobody has polled,
// back to the owner of the shared queue.
func TestClosedPairGivesSharedReceivesBack(t *testing.T) {
	needDevice(t)
	a, b := newSide(t, openDevice(t, verbs.Choice{}), false), newSide(t, openDevice(t, verbs.Choice{}), true)
	connectSides(t, a, b)
	b.recv(messageBytes)
	a.post(rdma.SendWR{Data: fillPattern(a.local(100), 1)})
	a.completion(b, rdma.WCSend)
	if b.done = b.done[:0]; b.srq == nil {
		t.Fatal("no shared queue")
	}
	b.recv(messageBytes)
	a.post(rdma.SendWR{Data: a.local(100)})
	// Not polled at b before it closes.
	for start := time.Now(); ; {
		var wcs [1]rdma.WC
		if a.cq.Poll(wcs[:]) == 1 {
			break
		}
		if time.Since(start) > patience {
			t.Fatal("no completion")
		}
	}
	if err := b.qp.Close(); err != nil {
		t.Fatal(err)
	}
	var wcs [4]rdma.WC
	if n := b.cq.Poll(wcs[:]); n != 1 || wcs[0].ID != 99 || wcs[0].QPN != 0 || wcs[0].Status != rdma.FlushError {
		t.Errorf("%d completions after the close: %+v", n, wcs[:n])
	}
	for range sharedWRs {
		b.recv(messageBytes)
	}
	if err := b.srq.Close(); err != nil {
		t.Error(err)
	}
}

// A completion queue grows with what a shared queue may complete on it.
func TestSharedQueueDeeperThanCompletions(t *testing.T) {
	needDevice(t)
	dev := openDevice(t, verbs.Choice{})
	t.Cleanup(func() { dev.Close() })
	pd, err := dev.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	srq, err := pd.CreateSRQ(rdma.SRQConfig{WRs: 1024})
	if err != nil {
		t.Fatal(err)
	}
	cq, err := dev.CreateCQ(64)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := pd.CreateQP(rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: 16, SRQ: srq}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pd.CreateQP(rdma.QPConfig{SendCQ: cq, RecvCQ: cq, SendWRs: 2048, SRQ: srq}); err == nil {
		t.Error("more sends than the completion queue has entries")
	}
}

// A falling shared queue says so, once.
func TestSharedQueueLimit(t *testing.T) {
	needDevice(t)
	a, b := newSide(t, openDevice(t, verbs.Choice{}), false), newSide(t, openDevice(t, verbs.Choice{}), true)
	connectSides(t, a, b)
	for range 4 {
		b.recv(messageBytes)
	}
	if err := b.srq.SetLimit(3); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		a.post(rdma.SendWR{Data: a.local(10)})
		a.completion(b, rdma.WCSend)
	}
	start, limits := time.Now(), 0
	for limits == 0 && time.Since(start) < patience {
		b.dev.Progress(int64(time.Since(began)) + 1)
		var es [8]rdma.Event
		for _, e := range es[:b.dev.PollEvents(es[:])] {
			if e.Kind == rdma.EventSRQLimit && e.SRQ == b.srq {
				limits++
			}
		}
	}
	if limits != 1 {
		t.Errorf("%d limit events, want 1", limits)
	}
}
