package porttest

import (
	"errors"
	"os"
	"testing"

	"github.com/millrace/millrace/dpdk"
)

func fakePair(t *testing.T) (dpdk.Port, dpdk.Port) {
	a, b := NewPair("fake", Config{})
	t.Cleanup(func() {
		a.Close()
		b.Close()
		if n := a.Outstanding() + b.Outstanding(); n != 0 {
			t.Errorf("%d frames leaked", n)
		}
	})
	return a, b
}

func TestConform(t *testing.T) { Conform(t, fakePair) }

func TestSendsOn(t *testing.T) { SendsOn(t, fakePair) }

// faults sends n frames through a faulty pair and returns the order of arrival.
func faults(t *testing.T, cfg Config, n int) ([]byte, Stats) {
	a, b := NewPair("fake", cfg)
	var order []byte
	var f [4]dpdk.Frame
	for sent := 0; sent < n; {
		k := a.AllocBurst(f[:min(4, n-sent)])
		for i := range k {
			fill(&f[i], sent+i, 100)
		}
		took := a.TxBurst(f[:k])
		a.FreeBurst(f[took:k])
		sent += took
		for {
			m := b.RxBurst(f[:])
			for i := range m {
				order = append(order, f[i].Data[17])
			}
			b.FreeBurst(f[:m])
			if m == 0 {
				break
			}
		}
	}
	if a.Outstanding()+b.Outstanding() != 0 {
		t.Fatal("frames leaked")
	}
	return order, a.Stats()
}

func TestFaultsAreSeeded(t *testing.T) {
	cfg := Config{Seed: 42, Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, RefuseTx: 0.3, FailAlloc: 0.3}
	one, st := faults(t, cfg, 1000)
	two, _ := faults(t, cfg, 1000)
	if string(one) != string(two) {
		t.Fatal("two runs of one seed differ")
	}
	if st.Lost == 0 || st.Duplicated == 0 || st.Reordered == 0 || st.Sent != 1000 {
		t.Fatalf("faults missing: %+v", st)
	}
	if want := int(st.Sent - st.Lost + st.Duplicated); len(one) != want {
		t.Fatalf("%d frames arrived, want %d", len(one), want)
	}
	cfg.Seed++
	if three, _ := faults(t, cfg, 1000); string(one) == string(three) {
		t.Fatal("two seeds give the same run")
	}
}

func TestMisusePanics(t *testing.T) {
	a, b := NewPair("fake", Config{})
	var f [1]dpdk.Frame
	mustPanic := func(name string, fn func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s went unnoticed", name)
			}
		}()
		fn()
	}
	a.AllocBurst(f[:])
	mustPanic("a foreign frame", func() { b.FreeBurst(f[:]) })
	mustPanic("an empty transmit", func() { a.TxBurst(f[:]) })
	a.FreeBurst(f[:])
	mustPanic("a double free", func() { a.FreeBurst(f[:]) })
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("second Close: %v", err)
	}
}
