package softroce

import (
	"fmt"
	"testing"

	"github.com/millrace/millrace/rdma"
)

// flow is a steady one-way flow of one size for benchmarks and allocation counts.
type flow struct {
	p    *pair
	wrs  []rdma.SendWR
	rwrs []rdma.RecvWR
	wcs  [64]rdma.WC
	now  int64
}

func newFlow(t testing.TB, p *pair, size, batch int) *flow {
	f := &flow{p: p, now: p.net.Now()}
	for i := range batch {
		f.wrs = append(f.wrs, rdma.SendWR{ID: uint64(i), Data: p.a.sendSlot(i)[:size], Op: rdma.OpSendImm, Signaled: i == batch-1})
	}
	p.b.postRecvs(t, p.b.depth)
	return f
}

// round sends a batch and runs until it is received and acknowledged.
func (f *flow) round(t testing.TB) {
	if _, err := f.p.a.qp.PostSend(f.wrs); err != nil {
		t.Fatal(err)
	}
	got := 0
	for acked := false; !acked; {
		f.now += 1000
		f.p.net.now = f.now
		f.p.a.dev.Progress(f.now)
		f.p.b.dev.Progress(f.now)
		n := f.p.b.cq.Poll(f.wcs[:])
		got += n
		f.rwrs = f.rwrs[:0]
		for i := range f.wcs[:n] {
			f.rwrs = append(f.rwrs, rdma.RecvWR{ID: f.wcs[i].ID, Data: f.p.b.recvSlot(int(f.wcs[i].ID))})
		}
		if _, err := f.p.b.qp.PostRecv(f.rwrs); err != nil {
			t.Fatal(err)
		}
		acked = f.p.a.cq.Poll(f.wcs[:]) > 0
	}
	if got != len(f.wrs) {
		t.Fatalf("%d of %d messages", got, len(f.wrs))
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	for _, size := range []int{128, 4000} {
		p := newPair(t, 1, Faults{}, 1024, options{})
		f := newFlow(t, p, size, 16)
		if n := testing.AllocsPerRun(200, func() { f.round(t) }); n != 0 {
			t.Errorf("%d B: %v allocations per 16 messages", size, n)
		}
	}
}

// BenchmarkMessage is the engine alone: both ends' whole cost of a message sent,
// received and acknowledged, over a link that only passes a buffer on.
func BenchmarkMessage(b *testing.B) {
	for _, size := range []int{128, 1024, 4096, 65536} {
		for _, batch := range []int{1, 16} {
			b.Run(fmt.Sprintf("%dB/batch%d", size, batch), func(b *testing.B) {
				p := newPair(b, 1, Faults{}, 4096, options{slot: max(size, 128), ackDelay: -1})
				f := newFlow(b, p, size, batch)
				b.SetBytes(int64(size * batch))
				b.ReportAllocs()
				for b.Loop() {
					f.round(b)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/msg")
			})
		}
	}
}

// BenchmarkLinkAlone is what the link takes of BenchmarkMessage: the same frames,
// 16 messages and an acknowledgement, through the same calls.
func BenchmarkLinkAlone(b *testing.B) {
	p := newPair(b, 1, Faults{}, 4096, options{})
	there, back := p.a.qp.(*queuePair), p.b.qp.(*queuePair)
	var frames [burst]Frame
	pass := func(from, to *queuePair, n, bytes int) {
		l := from.dev.link
		for i := range frames[:l.TxAlloc(frames[:n])] {
			frames[i].Len, frames[i].Path = bytes, &from.path
		}
		l.Tx(frames[:n])
		l = to.dev.link
		l.RxFree(frames[:l.Rx(frames[:])])
	}
	for b.Loop() {
		pass(there, back, 16, 148)
		pass(back, there, 1, 20)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*16), "ns/msg")
}
