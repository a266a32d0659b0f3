package serialize

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// encode builds one batch of rs in a buffer of room bytes.
func encode(t testing.TB, room int, rs ...Record) []byte {
	t.Helper()
	b, err := NewBuilder(max(1, len(rs)))
	if err != nil {
		t.Fatal(err)
	}
	b.Reset(make([]byte, room))
	for i := range rs {
		if err := b.Append(&rs[i]); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	want := b.Size()
	out := b.Finish()
	if len(rs) > 0 && len(out) != want {
		t.Fatalf("Size said %d, Finish made %d", want, len(out))
	}
	return out
}

func sameBytes(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func sameRecord(a, b Record) bool {
	return sameBytes(a.Key, b.Key) && sameBytes(a.Value, b.Value) && bytes.Equal(a.Headers, b.Headers) && a.Timestamp == b.Timestamp
}

// checkBatch compares every way of reading b with rs.
func checkBatch(t testing.TB, b *Batch, rs []Record) {
	t.Helper()
	if b.Len() != len(rs) {
		t.Fatalf("%d records, want %d", b.Len(), len(rs))
	}
	c := b.Cursor()
	for i, want := range rs {
		if !c.Next() || c.Index() != i {
			t.Fatalf("cursor stops before record %d", i)
		}
		for name, got := range map[string]Record{
			"Record": b.Record(i), "Cursor.Record": c.Record(),
			"accessors": {Key: b.Key(i), Value: b.Value(i), Headers: b.Headers(i), Timestamp: b.Timestamp(i)},
		} {
			if !sameRecord(got, want) {
				t.Fatalf("record %d by %s: %s, want %s", i, name, show(got), show(want))
			}
		}
		if !sameBytes(c.Value(), want.Value) || c.Timestamp() != want.Timestamp {
			t.Fatalf("record %d by cursor: %q at %d, want %s", i, c.Value(), c.Timestamp(), show(want))
		}
	}
	for range 3 {
		if c.Next() {
			t.Fatal("cursor goes on beyond the end")
		}
	}
	n := 0
	for i, r := range b.All() {
		if i != n || !sameRecord(r, rs[i]) {
			t.Fatalf("All yields record %d as %d: %s", i, n, show(r))
		}
		n++
	}
	if n != len(rs) {
		t.Fatalf("All yields %d records, want %d", n, len(rs))
	}
	n = 0
	for v := range b.Values() {
		if n == len(rs) || !sameBytes(v, rs[n].Value) {
			t.Fatalf("Values yields value %d of %d as %q", n, len(rs), v)
		}
		n++
	}
	if n != len(rs) {
		t.Fatalf("Values yields %d values, want %d", n, len(rs))
	}
	for range b.Values() {
		n--
		break
	}
	if n != len(rs)-1 {
		t.Fatal("Values goes on after a break")
	}
}

func show(r Record) string {
	return fmt.Sprintf("{key %q value %q headers %q at %d}", r.Key, r.Value, r.Headers, r.Timestamp)
}

// shape says what random records look like.
type shape struct {
	name                 string
	minValue, maxValue   int
	keys, nulls, headers float64 // share of records with them
	maxKey               int
	timeBase, timeSpread int64
}

var shapes = []shape{
	{name: "constant", minValue: 100, maxValue: 100, timeBase: 1_700_000_000_000},
	{name: "empty values", timeBase: -5},
	{name: "one-byte lengths", minValue: 10, maxValue: 200, timeBase: 1_700_000_000_000, timeSpread: 200},
	{name: "two-byte lengths", minValue: 0, maxValue: 3000, timeBase: 1_700_000_000_000, timeSpread: 60_000},
	{name: "four-byte lengths", minValue: 0, maxValue: 70_000, timeBase: 0, timeSpread: 1 << 31},
	{name: "timestamps of all sizes", minValue: 0, maxValue: 20, timeBase: -1 << 62, timeSpread: 1<<63 - 1},
	{name: "keys everywhere", minValue: 10, maxValue: 20, keys: 1, maxKey: 16, timeSpread: 10},
	{name: "keys here and there", minValue: 10, maxValue: 20, keys: 0.1, maxKey: 16, timeSpread: 10},
	{name: "deletions", minValue: 0, maxValue: 3, keys: 0.9, maxKey: 300, nulls: 0.3},
	{name: "four-bit lengths", minValue: 3, maxValue: 15, timeBase: 1_700_000_000_000, timeSpread: 9, keys: 1, maxKey: 3},
	{name: "one-bit lengths", minValue: 40, maxValue: 41, timeBase: 1_700_000_000_000, timeSpread: 3},
	{name: "headers", minValue: 0, maxValue: 300, keys: 0.5, maxKey: 3, nulls: 0.1, headers: 0.4},
}

func (s shape) records(rng *rand.Rand, n int) []Record {
	fill := func(n int) []byte {
		p := make([]byte, n)
		if n > 0 {
			p[rng.IntN(n)], p[0] = byte(rng.Uint32()), byte(rng.Uint32())
		}
		return p
	}
	rs := make([]Record, n)
	for i := range rs {
		r := &rs[i]
		r.Timestamp = s.timeBase
		if s.timeSpread > 0 {
			r.Timestamp += rng.Int64N(s.timeSpread)
		}
		r.Value = fill(s.minValue + rng.IntN(s.maxValue-s.minValue+1))
		if rng.Float64() < s.nulls {
			r.Value = nil
		}
		if rng.Float64() < s.keys {
			r.Key = fill(rng.IntN(s.maxKey + 1))
		}
		if rng.Float64() < s.headers {
			for range 1 + rng.IntN(3) {
				r.Headers = AppendHeader(r.Headers, fmt.Sprint("h", rng.IntN(100)), fill(rng.IntN(20)))
			}
		}
	}
	return rs
}

// payloadBytes is what the records' own bytes come to.
func payloadBytes(rs []Record) int {
	n := 0
	for i := range rs {
		n += len(rs[i].Key) + len(rs[i].Value) + len(rs[i].Headers)
	}
	return n
}
