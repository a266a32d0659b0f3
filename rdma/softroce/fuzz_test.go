package softroce

import (
	"testing"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// FuzzReceive feeds a device with live queue pairs a sequence of packets. Each is
// one length byte and that many bytes, of which the first choose how it is
// finished: bit 0, a valid ICRC; bit 1, addressed to the queue pair; bit 2, PSN near
// the expected one; bit 3, PSN near those in flight. So random bytes come past the
// checks. Whatever arrives, the device must not panic, must complete at most what
// was posted, and must hold every frame.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{20, 7, byte(roce.SendOnly), 0, 0xff, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0, 'd', 'a', 't', 'a', 0, 0, 0, 0})
	f.Add([]byte{16, 11, byte(roce.Acknowledge), 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, byte(roce.SyndromeACK), 0, 0, 1})
	f.Add([]byte{16, 11, byte(roce.Acknowledge), 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 2, byte(roce.NAKSequence), 0, 0, 1})
	f.Add([]byte{16, 11, byte(roce.Acknowledge), 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, byte(roce.SyndromeRNR) | 1, 0, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := newInjector(t)
		in.b.dev.attr.Numbered = true
		q := in.b.qp.(*queuePair)
		for i := range 3 {
			in.b.send(t, i, make([]byte, 300))
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
			if wc.Op == rdma.WCSend {
				sends++
			} else {
				recvs++
			}
		}
		if sends > 3 || recvs > 4 {
			t.Fatalf("%d sends and %d receives completed of 3 and 4", sends, recvs)
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
