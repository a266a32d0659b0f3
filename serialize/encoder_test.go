package serialize

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// newEncoder makes an encoder that shares batches of any size.
func newEncoder(t testing.TB, workers, chunkRecords int) *Encoder {
	t.Helper()
	e, err := NewEncoder(workers)
	if err != nil {
		t.Fatal(err)
	}
	e.limits = limits{0, 0, chunkRecords}
	t.Cleanup(e.Close)
	return e
}

// The bytes are a Builder's, whatever the number of workers and the cut.
func TestEncoderMakesTheBytesOfABuilder(t *testing.T) {
	rng := rand.New(rand.NewPCG(21, 22))
	var encoders []*Encoder
	for _, workers := range []int{1, 2, 3, 8} {
		for _, chunk := range []int{32, 64, 1024} {
			encoders = append(encoders, newEncoder(t, workers, chunk))
		}
	}
	for _, s := range shapes {
		for _, n := range []int{1, 2, 31, 32, 33, 65, 300, 1025} {
			if s.maxValue > 10_000 && n > 300 {
				continue
			}
			rs := s.records(rng, n)
			room := HeaderBytes + payloadBytes(rs) + 30*n
			want := encode(t, room, rs...)
			for _, e := range encoders {
				dst := bytes.Repeat([]byte{0xa5}, len(want)+16)
				got, err := e.Encode(dst[:len(want)], rs)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("%s, %d records, %d helpers, chunks of %d: other bytes than a Builder's", s.name, n, e.helpers, e.chunkRecords)
				}
				if !bytes.Equal(dst[len(want):], bytes.Repeat([]byte{0xa5}, 16)) {
					t.Fatalf("%s, %d records: written beyond the room", s.name, n)
				}
				if _, err := e.Encode(dst[:len(want)-1], rs); !errors.Is(err, ErrFull) {
					t.Fatalf("one byte too little: %v", err)
				}
			}
		}
	}
}

// A block whose records all have headers, and then one that has none.
func TestEncoderForgetsNoHeaders(t *testing.T) {
	rs := make([]Record, 64)
	for i := range rs {
		rs[i].Value = []byte("v")
		if i < 32 {
			rs[i].Headers = AppendHeader(nil, "h", nil)
		}
	}
	want := encode(t, 1<<16, rs...)
	got, err := newEncoder(t, 1, 1024).Encode(make([]byte, len(want)), rs)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatal("other bytes than a Builder's", err)
	}
}

func TestEncoderBounds(t *testing.T) {
	for _, workers := range []int{0, -1, 1<<10 + 1} {
		if _, err := NewEncoder(workers); err == nil {
			t.Errorf("an encoder with %d workers", workers)
		}
	}
	e := newEncoder(t, 2, 32)
	if got, err := e.Encode(nil, nil); got != nil || err != nil {
		t.Errorf("no records: %x, %v", got, err)
	}
	if _, err := e.Encode(make([]byte, 10), []Record{{}}); !errors.Is(err, ErrFull) {
		t.Errorf("no room for a header: %v", err)
	}
	if _, err := e.Encode(nil, make([]Record, MaxRecords+1)); !errors.Is(err, ErrFull) {
		t.Errorf("too many records: %v", err)
	}
}

// Workers are woken for large batches only, and go with Close.
func TestEncoderWorkers(t *testing.T) {
	defer goleak.VerifyNone(t)
	e, err := NewEncoder(4)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	e.wakeBytes = 1 << 20
	rs := benchRecords(20_000, 130)
	want := encode(t, 4<<20, rs...)
	dst := make([]byte, len(want))
	for range 20 {
		got, err := e.Encode(dst, rs)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatal("other bytes than a Builder's", err)
		}
		if len(e.chunks) < 8 {
			t.Fatalf("%d bytes in %d chunks", len(want), len(e.chunks))
		}
		clear(dst)
		if _, err := e.Encode(dst, rs[:100]); err != nil {
			t.Fatal(err)
		}
		if len(e.chunks) != 1 {
			t.Fatalf("a small batch in %d chunks", len(e.chunks))
		}
	}
	if n := testing.AllocsPerRun(20, func() {
		if _, err := e.Encode(dst, rs); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for int(e.parked.Load()) < e.helpers { // idle helpers sleep, or the test does not end
		time.Sleep(time.Millisecond)
	}
}
