package hugepages

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzPool runs a sequence of operations against a model: each live Buf's slot
// must overlap no other, keep its bytes, and be counted under its purpose.
func FuzzPool(f *testing.F) {
	f.Add([]byte{0, 1, 0, 2, 1, 0, 0, 9, 2, 0, 1, 1})
	f.Add([]byte{0, 14, 0, 14, 0, 14, 0, 14, 1, 0, 1, 0, 0, 3, 0, 15, 3, 0, 4, 9, 1, 0})
	f.Add(bytes.Repeat([]byte{0, 8, 0, 12, 2, 3, 5, 1, 1, 1}, 40))
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := newTestPool(t, 1<<20)
		type model struct {
			b                 *Buf
			fill              byte
			refs              int32
			start, end, avail int // window and slot end, counted like SetWindow
		}
		var live []*model
		for step := 0; len(ops) >= 2 && step < 512; step++ {
			op, arg := ops[0], int(ops[1])
			ops = ops[2:]
			if op%6 != 0 && len(live) == 0 {
				continue
			}
			var m *model
			i := 0
			if len(live) > 0 {
				i = arg % len(live)
				m = live[i]
			}
			switch op % 6 {
			case 0: // Get
				n := 1<<(arg%22) + int(op)
				b, err := p.Get(n, Purpose(arg%NumPurposes))
				if err != nil {
					if n > p.MaxBytes() != errors.Is(err, ErrTooLarge) || n <= p.MaxBytes() && !errors.Is(err, ErrExhausted) {
						t.Fatalf("Get(%d): %v", n, err)
					}
					if len(live) == 0 && !errors.Is(err, ErrTooLarge) {
						t.Fatalf("Get(%d) of an idle pool: %v", n, err)
					}
					continue
				}
				m = &model{b: b, fill: byte(step), refs: 1, end: n, avail: len(b.slot) - HeadroomBytes}
				live = append(live, m)
			case 1: // Release
				m.b.Release()
				if m.refs--; m.refs == 0 {
					live = append(live[:i], live[i+1:]...)
					continue
				}
			case 2: // Retain
				m.b.Retain()
				m.refs++
			case 3: // Prepend
				n := min(arg, HeadroomBytes+m.start)
				m.b.Prepend(n)
				m.start -= n
			case 4: // TrimFront
				n := min(arg, m.end-m.start)
				m.b.TrimFront(n)
				m.start += n
			case 5: // Resize
				n := min(arg*16, m.avail-m.start)
				m.b.Resize(n)
				m.end = m.start + n
			}
			if m.b.Len() != m.end-m.start || m.b.Headroom() != HeadroomBytes+m.start || m.b.Cap() != m.avail-m.start || m.b.Refs() != m.refs {
				t.Fatalf("step %d: window %d+%d of %d, %d references; model %+v", step, m.b.Headroom(), m.b.Len(), m.b.Cap(), m.b.Refs(), *m)
			}
			for i := range m.b.slot {
				m.b.slot[i] = m.fill
			}
		}
		var counted [NumPurposes]Usage
		for i, m := range live {
			at := p.Arena().Offset(m.b.slot)
			if at < 0 {
				t.Fatal("slot outside the arena")
			}
			for _, o := range live[:i] {
				if other := p.Arena().Offset(o.b.slot); at < other+len(o.b.slot) && other < at+len(m.b.slot) {
					t.Fatalf("slots [%d,+%d) and [%d,+%d) overlap", at, len(m.b.slot), other, len(o.b.slot))
				}
			}
			for _, v := range m.b.slot {
				if v != m.fill {
					t.Fatal("a live slot was written to")
				}
			}
			counted[m.b.Purpose()].Bufs++
			counted[m.b.Purpose()].Bytes += len(m.b.slot)
		}
		for purpose, u := range p.Stats().Purposes {
			if u.Bufs != counted[purpose].Bufs || u.Bytes != counted[purpose].Bytes {
				t.Errorf("%v: %+v, model %+v", Purpose(purpose), u, counted[purpose])
			}
		}
		for _, m := range live {
			for range m.refs {
				m.b.Release()
			}
		}
	})
}
