package roce

import (
	"bytes"
	"hash/crc32"
	"testing"
)

// FuzzPacket parses arbitrary bytes as a packet: every accessor must stay within
// the length that the opcode's HeaderLen states, and Put must invert parsing.
func FuzzPacket(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, MinPacket))
	f.Add([]byte{0x05, 0x70, 0xff, 0xff, 0, 1, 2, 3, 0x80, 4, 5, 6, 0, 0, 0, 9, 'x', 0, 0, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < MinPacket {
			return
		}
		h := (*BTH)(p)
		op := h.Opcode()
		_ = op.String()
		var put BTH
		put.Put(op, h.Pad(), h.DestQPN(), h.AckReq(), h.PSN())
		if (&put).Opcode() != op || put.Pad() != h.Pad() || put.DestQPN() != h.DestQPN() || put.AckReq() != h.AckReq() || put.PSN() != h.PSN() {
			t.Fatalf("Put gives %x for %x", put, *h)
		}
		pr := op.Props()
		if pr != 0 && len(p) >= op.HeaderLen()+ICRCLen {
			ext := p[BTHLen:op.HeaderLen():op.HeaderLen()]
			if pr&HasRETH != 0 {
				_ = (*RETH)(ext).DMALen()
				ext = ext[RETHLen:]
			}
			if pr&HasAtomicETH != 0 {
				_ = (*AtomicETH)(ext).Compare()
				ext = ext[AtomicETHLen:]
			}
			if pr&HasAETH != 0 {
				_ = (*AETH)(ext).Syndrome().String()
				ext = ext[AETHLen:]
			}
			if pr&HasAtomicAckETH != 0 {
				_ = (*AtomicAckETH)(ext).Orig()
				ext = ext[AtomicAckETHLen:]
			}
			if pr&HasImmDt != 0 {
				_ = (*ImmDt)(ext).Value()
				ext = ext[ImmDtLen:]
			}
			if len(ext) != 0 {
				t.Fatalf("%v: %d bytes of headers unaccounted for", op, len(ext))
			}
		}
		masked := append([]byte(nil), p...)
		masked[4] = 0xff
		if got, want := Sum(nil, p), crc32.ChecksumIEEE(masked); got != want {
			t.Fatalf("Sum = %08x, want %08x", got, want)
		}
		whole := NewICRC(make([]byte, pseudo4Len))
		at := BTHLen + int(p[0])%(len(p)-BTHLen+1)
		end := max(at, len(p)-int(p[1]&3))
		dst := make([]byte, end-at)
		if got, want := whole.SumCopy(p[:at], dst, p[at:end], p[end:]), whole.Sum(p); got != want || !bytes.Equal(dst, p[at:end]) {
			t.Fatalf("SumCopy = %08x, want %08x", got, want)
		}
	})
}
