package softroce

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
)

// model is random operations of one end on the other, and what they must do: it
// executes each at the post, on a copy of the peer's memory. That is right because
// requests are executed in order, with one exception that the model keeps clear of:
// a READ under way may see what later requests write.
type model struct {
	from, to  *node
	rng       *rand.Rand
	count     int
	mem       []byte // what to.open must be in the end
	ops       []modelOp
	posted    int
	done      int // completed
	got       int // receives completed
	messages  []modelMessage
	unposted  []int // receives to be posted again
	unsignals int
}

// modelOp is a request under way, by its number modulo depth.
type modelOp struct {
	op       rdma.Opcode
	off      int    // in open
	want     []byte // READ: the bytes; atomics: the old value
	signaled bool
}

// modelMessage is what a receive completes with.
type modelMessage struct {
	data   []byte // SEND
	bytes  int
	imm    uint32
	hasImm bool
	write  bool
}

func newModel(seed uint64, count int, from, to *node) *model {
	return &model{
		from: from, to: to, rng: rand.New(rand.NewPCG(seed, 3)), count: count,
		mem: bytes.Clone(to.open), ops: make([]modelOp, from.depth),
	}
}

func (m *model) random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.rng.Uint32())
	}
	return b
}

// size is small as a rule.
func (m *model) size() int {
	if m.rng.IntN(4) > 0 {
		return m.rng.IntN(200)
	}
	return m.rng.IntN(m.from.slot + 1)
}

// free finds a place for n bytes that no READ under way reads; false if there was
// none at hand.
func (m *model) free(n int) (off int, ok bool) {
	off = m.rng.IntN(len(m.mem) - n + 1)
	for i := m.done; i < m.posted; i++ {
		if o := &m.ops[i%m.from.depth]; o.op == rdma.OpRead && off < o.off+len(o.want) && o.off < off+n {
			return 0, false
		}
	}
	return off, true
}

// next makes the next request.
func (m *model) next() (rdma.SendWR, bool) {
	i := m.posted
	slot := m.from.sendSlot(i)
	wr := rdma.SendWR{ID: uint64(i), Op: rdma.Opcode(m.rng.IntN(int(rdma.OpFetchAdd) + 1)), RKey: m.to.openMR.RKey, Imm: m.rng.Uint32()}
	o := modelOp{op: wr.Op}
	switch wr.Op {
	case rdma.OpSend, rdma.OpSendImm:
		data := m.random(m.size())
		m.messages = append(m.messages, modelMessage{data: data, bytes: len(data), imm: wr.Imm, hasImm: wr.Op == rdma.OpSendImm})
		wr.Data = data
	case rdma.OpWrite, rdma.OpWriteImm:
		data := m.random(m.size())
		off, ok := m.free(len(data))
		if !ok {
			return wr, false
		}
		o.off = off
		copy(m.mem[off:], data)
		if wr.Op == rdma.OpWriteImm {
			m.messages = append(m.messages, modelMessage{bytes: len(data), imm: wr.Imm, hasImm: true, write: true})
		}
		wr.Data = data
	case rdma.OpRead:
		n := m.size()
		o.off = m.rng.IntN(len(m.mem) - n + 1)
		o.want = bytes.Clone(m.mem[o.off:][:n])
	default:
		off, ok := m.free(16)
		if !ok {
			return wr, false
		}
		o.off = (off + 7) &^ 7
		cell := m.mem[o.off:][:8]
		o.want = bytes.Clone(cell)
		old := binary.NativeEndian.Uint64(cell)
		wr.SwapAdd = m.rng.Uint64()
		switch {
		case wr.Op == rdma.OpFetchAdd:
			binary.NativeEndian.PutUint64(cell, old+wr.SwapAdd)
		case m.rng.IntN(2) == 0:
			wr.Compare = old
			binary.NativeEndian.PutUint64(cell, wr.SwapAdd)
		default:
			wr.Compare = old + 1
		}
	}
	wr.RemoteAddr = m.to.openMR.RemoteAddr(m.to.open[o.off:])
	if wr.Op >= rdma.OpRead {
		wr.Data = slot[:len(o.want)]
		for k := range wr.Data {
			wr.Data[k] = ^o.want[k]
		}
		wr.Signaled = true
	} else if len(wr.Data) <= MaxInline && m.rng.IntN(4) == 0 {
		wr.Inline = true
	} else {
		wr.Data = slot[:copy(slot, wr.Data)]
	}
	if m.unsignals++; m.unsignals == 8 || i == m.count-1 || m.rng.IntN(2) == 0 {
		wr.Signaled = true
	}
	if wr.Signaled {
		m.unsignals = 0
	}
	o.signaled = wr.Signaled
	m.ops[i%m.from.depth] = o
	return wr, true
}

func (m *model) post(t testing.TB) {
	for m.posted < m.count && m.posted-m.done < m.from.depth {
		wr, ok := m.next()
		if !ok {
			continue
		}
		if _, err := m.from.qp.PostSend([]rdma.SendWR{wr}); err != nil {
			t.Fatal(err)
		}
		m.posted++
	}
}

// sent checks a completion of from's.
func (m *model) sent(t testing.TB, wc *rdma.WC) {
	id := int(wc.ID)
	if wc.Status != rdma.Success || id < m.done || id >= m.posted {
		t.Fatalf("completion %+v, %d of %d done", wc, m.done, m.posted)
	}
	for i := m.done; i < id; i++ {
		if o := &m.ops[i%m.from.depth]; o.signaled {
			t.Fatalf("%v %d has no completion before that of %d", o.op, i, id)
		}
	}
	o := &m.ops[id%m.from.depth]
	if wc.Op != wcOps[o.op] || !o.signaled {
		t.Fatalf("completion %+v of a %v", wc, o.op)
	}
	if o.op >= rdma.OpRead && !bytes.Equal(m.from.sendSlot(id)[:len(o.want)], o.want) {
		t.Fatalf("%v %d of %d bytes brought other bytes", o.op, id, len(o.want))
	}
	m.done = id + 1
}

// received checks a receive's completion of to's.
func (m *model) received(t testing.TB, wc *rdma.WC) {
	if m.got == len(m.messages) {
		t.Fatalf("completion %+v of what nobody sent", wc)
	}
	w := &m.messages[m.got]
	op := rdma.WCRecv
	if w.write {
		op = rdma.WCRecvWriteImm
	}
	if wc.Status != rdma.Success || wc.Op != op || wc.Bytes != w.bytes || wc.HasImm != w.hasImm || w.hasImm && wc.Imm != w.imm {
		t.Fatalf("message %d: completion %+v", m.got, wc)
	}
	if !w.write && !bytes.Equal(m.to.recvSlot(int(wc.ID))[:wc.Bytes], w.data) {
		t.Fatalf("message %d has other bytes", m.got)
	}
	w.data = nil
	m.got++
	m.unposted = append(m.unposted, int(wc.ID))
}

// repost posts receives again, now and then late.
func (m *model) repost(t testing.TB) {
	if m.rng.IntN(8) > 0 {
		return
	}
	for _, i := range m.unposted {
		m.to.postRecv(t, i)
	}
	m.unposted = m.unposted[:0]
}

func (m *model) finished() bool { return m.done == m.count && m.got == len(m.messages) }

// models runs operations both ways between two nodes.
type models [2]*model

func newModels(t testing.TB, seed uint64, count int, a, b *node) models {
	for _, n := range [...]*node{a, b} {
		for i := range n.open {
			n.open[i] = byte(i * 7)
		}
		n.postRecvs(t, n.depth)
	}
	return models{newModel(seed, count, a, b), newModel(seed+1000, count, b, a)}
}

func (ms models) pump(t testing.TB) (done bool) {
	var wcs [16]rdma.WC
	for i, m := range ms {
		m.post(t)
		for n := m.from.cq.Poll(wcs[:]); n > 0; n = m.from.cq.Poll(wcs[:]) {
			for k := range wcs[:n] {
				if wcs[k].Op.IsRecv() {
					ms[1-i].received(t, &wcs[k])
				} else {
					m.sent(t, &wcs[k])
				}
			}
		}
		m.repost(t)
	}
	return ms[0].finished() && ms[1].finished()
}

func (ms models) check(t testing.TB) {
	t.Helper()
	for i, m := range ms {
		if !bytes.Equal(m.mem, m.to.open) {
			t.Errorf("direction %d: the memory differs from the model's", i)
		}
	}
}

// badNets runs random operations over nets of every loss rate with duplication,
// corruption and reordering.
func badNets(t *testing.T, seeds, count int) {
	for _, loss := range []float64{0.001, 0.01, 0.05, 0.2} {
		for seed := range uint64(seeds) {
			t.Run(fmt.Sprintf("%g%% seed %d", loss*100, seed), func(t *testing.T) {
				mtu := []int{256, 512, 1024, 2048, 4096}[seed%5]
				p := newPair(t, seed, Faults{
					Loss: loss, Duplicate: 0.02, Corrupt: 0.01, Reorder: 0.05, ReorderBy: 50 * time.Microsecond, Delay: 5 * time.Microsecond,
				}, mtu, options{
					slot: 6000, depth: 16 << (seed % 4), window: 16 << (seed % 5), open: 64 << 10, rdAtomic: 1 << (seed % 6), shared: seed%2 == 1,
				})
				ms := newModels(t, seed, count, p.a, p.b)
				for !ms.pump(t) {
					if p.step(); p.net.Now() > int64(time.Hour) {
						t.Fatalf("%d and %d of %d after an hour\na: %+v\nb: %+v", ms[0].done, ms[1].done, count, p.a.dev.Stats(), p.b.dev.Stats())
					}
				}
				checkNothingLeft(t, p)
				ms.check(t)
				a, b := p.a.dev.Stats(), p.b.dev.Stats()
				if a.BadResponses+b.BadResponses+a.BadRequests+b.BadRequests > 0 {
					t.Errorf("refused\na: %+v\nb: %+v", a, b)
				}
			})
		}
	}
}

// TestBadNets: whatever the net does, every operation is done once, in order.
func TestBadNets(t *testing.T) {
	count := 200
	if raceDetector {
		count = 150
	}
	badNets(t, 10, count)
}
