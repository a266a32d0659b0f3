package verbs_test

import (
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/verbs"
)

// benchEnd is one end of a bare queue pair, without loop and message protocol:
// what perftest measures too.
type benchEnd struct {
	dev   rdma.Device
	arena *hugepages.Arena
	cq    rdma.CQ
	qp    rdma.QP
	wcs   [64]rdma.WC
	sent  int
}

// pongSignals is how many messages of the ping-pong share a completion.
const pongSignals = 32

const (
	benchBytes = 128
	benchSends = 128 // perftest's default depths: --tx-depth, --rx-depth
	benchRecvs = 512
)

// benchPair makes two connected ends with devices of their own.
func benchPair(b *testing.B) (ends [2]*benchEnd) {
	needDevice(b)
	for i := range ends {
		e := &benchEnd{dev: openDevice(b, verbs.Choice{})}
		var err error
		if e.arena, err = hugepages.NewArena(hugepages.ArenaOptions{Bytes: 1 << 20, Backing: hugepages.Ordinary}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := e.dev.Close(); err != nil {
				b.Error(err)
			}
			if err := e.arena.Close(); err != nil {
				b.Error(err)
			}
		})
		pd, err := e.dev.AllocPD()
		if err != nil {
			b.Fatal(err)
		}
		if _, err = pd.RegisterMR(e.arena, 0); err != nil {
			b.Fatal(err)
		}
		if e.cq, err = e.dev.CreateCQ(benchSends + benchRecvs); err != nil {
			b.Fatal(err)
		}
		if e.qp, err = pd.CreateQP(rdma.QPConfig{SendCQ: e.cq, RecvCQ: e.cq, SendWRs: benchSends, RecvWRs: benchRecvs}); err != nil {
			b.Fatal(err)
		}
		ends[i] = e
	}
	for i, e := range ends {
		peer := ends[1-i]
		a := peer.dev.Attr()
		err := e.qp.Connect(rdma.Remote{Addr: a.GID, UDPPort: a.UDPPort, QPN: peer.qp.Num(), StartPSN: peer.qp.StartPSN(), PathMTU: a.PathMTU})
		if err != nil {
			b.Fatal(err)
		}
	}
	return ends
}

// slot is the i-th of the end's buffers.
func (e *benchEnd) slot(i int) []byte { return e.arena.Bytes()[i*benchBytes:][:benchBytes] }

func (e *benchEnd) recv(b *testing.B, slots ...int) {
	var wrs [64]rdma.RecvWR
	for i, s := range slots {
		wrs[i] = rdma.RecvWR{ID: uint64(s), Data: e.slot(s)}
	}
	if _, err := e.qp.PostRecv(wrs[:len(slots)]); err != nil {
		b.Error(err)
	}
}

func (e *benchEnd) send(b *testing.B) {
	e.sent++
	wrs := [1]rdma.SendWR{{Data: e.slot(benchRecvs), Signaled: e.sent%pongSignals == 0}}
	if _, err := e.qp.PostSend(wrs[:]); err != nil {
		b.Error(err)
	}
}

// message waits for the next message, and gives its slot; false if the pair broke or
// the other end has stopped.
func (e *benchEnd) message(b *testing.B, stopped *atomic.Bool) (slot int, ok bool) {
	for i := 0; ; i++ {
		for _, wc := range e.wcs[:e.cq.Poll(e.wcs[:])] {
			if wc.Status != rdma.Success {
				b.Errorf("completion %+v", wc)
				return 0, false
			}
			if wc.Op == rdma.WCRecv { // one at most: the other end waits for the answer
				slot, ok = int(wc.ID), true
			}
		}
		if ok {
			return slot, true
		}
		if i&1023 == 0 && stopped.Load() {
			return 0, false
		}
	}
}

// reportMedian adds the median of rounds, in nanoseconds.
func reportMedian(b *testing.B, rounds []time.Duration) {
	if len(rounds) > 0 {
		slices.Sort(rounds)
		b.ReportMetric(float64(rounds[len(rounds)/2]), "median-ns")
	}
}

// BenchmarkBareRoundTrip is a ping-pong on bare queue pairs, receives posted again behind
// the answers; compare with ib_send_lat.
func BenchmarkBareRoundTrip(b *testing.B) {
	ends := benchPair(b)
	for _, e := range ends {
		for s := range 16 {
			e.recv(b, s)
		}
	}
	var stopped atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			slot, ok := ends[1].message(b, &stopped)
			if !ok {
				return
			}
			ends[1].send(b)
			ends[1].recv(b, slot)
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rounds := make([]time.Duration, 0, b.N)
	for b.Loop() {
		began := time.Now()
		ends[0].send(b)
		slot, ok := ends[0].message(b, &stopped)
		if !ok {
			break
		}
		rounds = append(rounds, time.Since(began))
		ends[0].recv(b, slot)
	}
	stopped.Store(true)
	<-done
	reportMedian(b, rounds)
}

// BenchmarkBareSendRate is a stream of messages in lists, one signalled in each;
// compare with ib_send_bw.
func BenchmarkBareSendRate(b *testing.B) {
	const list = 32
	ends := benchPair(b)
	from, to := ends[0], ends[1]
	var all [64]int
	for s := 0; s < benchRecvs; s += len(all) {
		for i := range all {
			all[i] = s + i
		}
		to.recv(b, all[:]...)
	}
	var posted, taken atomic.Int64 // receives posted and messages taken, in all
	posted.Store(benchRecvs)
	var stopped atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var slots [64]int
		for !stopped.Load() {
			n := to.cq.Poll(to.wcs[:])
			for i, wc := range to.wcs[:n] {
				if wc.Status != rdma.Success {
					b.Errorf("completion %+v", wc)
					return
				}
				slots[i] = int(wc.ID)
			}
			if n == 0 {
				// The receives last for ten times as long; who spins takes from the sender what
				// processors share, which in an emulated machine is a lot.
				_ = unix.Nanosleep(&unix.Timespec{Nsec: 200_000}, nil) // EINTR: the runtime's preemption signal
				continue
			}
			to.recv(b, slots[:n]...)
			taken.Add(int64(n))
			posted.Add(int64(n))
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var wrs [list]rdma.SendWR
	for i := range wrs {
		wrs[i].Data = from.slot(benchRecvs + i)
	}
	wrs[list-1].Signaled = true
	sent, room := int64(0), benchSends
	reap := func() {
		for _, wc := range from.wcs[:from.cq.Poll(from.wcs[:])] {
			if wc.Status != rdma.Success {
				b.Fatalf("completion %+v", wc)
			}
			room += list
		}
	}
	began := time.Now()
	for b.Loop() { // one list
		for room < list || posted.Load()-sent < list {
			reap()
		}
		if _, err := from.qp.PostSend(wrs[:]); err != nil {
			b.Fatal(err)
		}
		sent += list
		room -= list
	}
	for room < benchSends {
		reap()
	}
	b.ReportMetric(float64(sent)/time.Since(began).Seconds(), "messages/s")
	for taken.Load() < sent && !b.Failed() {
		runtime.Gosched()
	}
	stopped.Store(true)
	<-done
}
