//go:build !race && !invariants

package seglog

import "testing"

// Appending many small batches allocates nothing: a broker does it in each duty cycle.
// What the sparse index takes now and then is less than one for each append.
func TestAppendAllocatesNothing(t *testing.T) {
	l := create(t, open(t, t.TempDir(), Options{}), "t")
	batches := make([]Batch, 64)
	for i := range batches {
		batches[i] = Batch{Payload: make([]byte, 300), Records: 1}
	}
	store := func() {
		if _, err := l.Append(batches); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(200, store); n >= 1 {
		t.Errorf("an append of %d batches allocates %.0f times", len(batches), n)
	}
}
