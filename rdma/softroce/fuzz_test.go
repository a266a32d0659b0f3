package softroce

import (
	"encoding/binary"
	"testing"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// blindLink does not see the identifications of what it receives.
type blindLink struct {
	Link
	idents *Idents
}

func (l blindLink) Rx(frames []Frame) int {
	n := l.Link.Rx(frames)
	for i := range frames[:n] {
		frames[i].Idents = l.idents
	}
	return n
}

// FuzzReceive feeds a device with live queue pairs a sequence of packets. Each is
// one length byte and that many bytes, of which the first choose how it is
// finished: bit 0, a valid ICRC; bit 1, addressed to the queue pair; bit 2, PSN near
// the expected one; bit 3, PSN near those in flight; bit 4, a valid remote key and an
// address near the memory behind it. So random bytes come past the checks. An odd
// number of bytes in all: the pair takes its receives from a shared queue.
//
// Whatever arrives, the device must not panic, must complete at most what was
// posted, must write nowhere but where it may, and must hold every frame.
func FuzzReceive(f *testing.F) {
	to := func(op roce.Opcode, psn byte, ext ...byte) []byte {
		b := append([]byte{0, 7 | 16, byte(op), 0, 0xff, 0xff, 0, 0, 0, 0, 0x80, 0, 0, psn}, ext...)
		b[0] = byte(len(b) - 2)
		return b
	}
	reth := func(bytes byte) []byte { return append(make([]byte, 15), bytes) }
	answer := func(op roce.Opcode, psn byte, ext ...byte) []byte {
		b := to(op, psn, ext...)
		b[1] = 1 | 2 | 8
		return b
	}
	f.Add([]byte{})
	f.Add([]byte{20, 7, byte(roce.SendOnly), 0, 0xff, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0, 'd', 'a', 't', 'a', 0, 0, 0, 0})
	for _, syn := range []roce.Syndrome{roce.SyndromeACK, roce.SyndromeRNR | 1, roce.NAKSequence, roce.NAKInvalidRequest, roce.NAKRemoteAccess, roce.NAKRemoteOperational, roce.NAKInvalidRD} {
		for psn := range byte(8) {
			f.Add(answer(roce.Acknowledge, psn, byte(syn), 0, 0, 1))
		}
	}
	f.Add(append(to(roce.WriteOnly, 0, append(reth(4), 'd', 'a', 't', 'a')...), to(roce.WriteOnlyImm, 0, append(reth(4), 0, 0, 0, 7, 'd', 'a', 't', 'a')...)...))
	f.Add(append(to(roce.ReadRequest, 0, reth(200)...), to(roce.ReadRequest, 0xff, reth(200)...)...))
	f.Add(append(to(roce.FetchAdd, 0, make([]byte, 28)...), to(roce.CompareSwap, 0, make([]byte, 28)...)...))
	f.Add(append(to(roce.FetchAdd, 0, make([]byte, 28)...), to(roce.FetchAdd, 0xff, make([]byte, 28)...)...))
	f.Add(append(answer(roce.ReadResponseOnly, 6, append([]byte{31, 0, 0, 1}, make([]byte, 200)...)...), answer(roce.AtomicAcknowledge, 0, 31, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9)...))
	f.Add(answer(roce.AtomicAcknowledge, 7, 31, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9))
	f.Fuzz(func(t *testing.T, data []byte) {
		const open = 4096
		in := newInjectorWith(t, options{open: open, rdAtomic: 2, small: true, shared: len(data)%2 == 1})
		in.b.dev.link = blindLink{in.b.dev.link, &Idents{}}
		q := in.b.qp.(*queuePair)
		for i := range 3 {
			in.b.send(t, i, make([]byte, 300))
		}
		at, key := in.a.openMR.RemoteAddr(in.a.open), in.a.openMR.RKey
		if _, err := in.b.qp.PostSend([]rdma.SendWR{
			{ID: 3, Op: rdma.OpRead, Data: in.b.sendSlot(3)[:200], RemoteAddr: at, RKey: key, Signaled: true},
			{ID: 4, Op: rdma.OpFetchAdd, Data: in.b.sendSlot(4)[:8], RemoteAddr: at, RKey: key, Signaled: true},
			{ID: 5, Op: rdma.OpRead, Data: in.b.sendSlot(5)[:1000], RemoteAddr: at, RKey: key, Signaled: true},
			{ID: 6, Op: rdma.OpWrite, Data: in.b.sendSlot(6)[:1000], RemoteAddr: at, RKey: key, Signaled: true},
		}); err != nil {
			t.Fatal(err)
		}
		canaries := [][]byte{in.b.sendSlot(3)[200:], in.b.sendSlot(4)[8:], in.b.sendSlot(5)[1000:], in.b.sendSlot(6), in.b.sendSlot(7), in.b.recvSlot(4), in.b.recvSlot(7)}
		for _, c := range canaries {
			copy(c, "canary")
		}
		now := in.net.Now()
		in.b.dev.Progress(now)
		for len(data) > 1 {
			n := min(int(data[0]), len(data)-2)
			how, b := data[1], append([]byte(nil), data[2:2+n]...)
			data = data[2+n:]
			if len(b) >= roce.BTHLen {
				if how&2 != 0 {
					copy(b[5:8], []byte{byte(q.num >> 16), byte(q.num >> 8), byte(q.num)})
				}
				if how&12 != 0 {
					near := q.expected
					if how&8 != 0 {
						near = q.una
					}
					psn := roce.PSNAdd(near, uint32(int32(int8(b[11]))))
					copy(b[9:12], []byte{byte(psn >> 16), byte(psn >> 8), byte(psn)})
				}
				if props := roce.Opcode(b[0]).Props(); how&16 != 0 && props&(roce.HasRETH|roce.HasAtomicETH) != 0 && len(b) >= roce.BTHLen+roce.RETHLen {
					va := in.b.openMR.RemoteAddr(in.b.open) + uint64(b[18])<<8 + uint64(b[19]) - 128
					binary.BigEndian.PutUint64(b[12:], va)
					binary.BigEndian.PutUint32(b[20:], in.b.openMR.RKey)
				}
				if how&1 != 0 {
					b = in.seal(b)
				}
			}
			in.inject(b, in.a.dev.attr.Local)
			now += int64(how) * 100_000
			in.net.Advance(now)
			in.a.dev.Progress(now)
		}
		in.b.dev.Progress(now)
		sends, recvs := 0, 0
		for _, wc := range in.b.poll() {
			if wc.Op.IsRecv() {
				recvs++
			} else {
				sends++
			}
		}
		if sends > 7 || recvs > 4 {
			t.Fatalf("%d sends and %d receives completed of 7 and 4", sends, recvs)
		}
		for i, c := range canaries {
			if string(c[:6]) != "canary" {
				t.Fatalf("canary %d is dead", i)
			}
		}
		if d := roce.PSNDiff(q.high, q.una); d < 0 || roce.PSNDiff(q.next, q.una) < 0 || roce.PSNDiff(q.next, q.high) > 0 {
			t.Fatalf("una %#x next %#x high %#x", q.una, q.next, q.high)
		}
		held := 0
		for _, d := range []*Device{in.a.dev, in.b.dev} {
			held += d.txAlloc - d.txHead
		}
		for _, l := range in.net.links {
			held += int(l.tail - l.head)
		}
		if free := in.net.FreeFrames(); free+held != in.net.faults.Frames {
			t.Fatalf("%d frames free and %d held of %d", free, held, in.net.faults.Frames)
		}
	})
}
