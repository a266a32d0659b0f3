package seglog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var quiet = slog.New(slog.DiscardHandler)

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := tryOpen(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func tryOpen(dir string, o Options) (*Store, error) {
	o.Logger = quiet
	return Open(dir, o)
}

func create(t testing.TB, s *Store, topic string) *Log {
	t.Helper()
	l, err := s.Create(topic)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// stored is one batch as a test knows it.
type stored struct {
	base    uint64
	payload []byte
}

// fill appends groups of batches with recognisable payloads of up to maxBytes.
func fill(t testing.TB, l *Log, seed uint64, groups, maxBytes int) []stored {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	var all []stored
	for range groups {
		var bs []Batch
		for range 1 + rng.IntN(4) {
			p := make([]byte, 1+rng.IntN(maxBytes))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			bs = append(bs, Batch{Payload: p, Records: 1 + uint32(rng.IntN(5))})
		}
		base, err := l.Append(bs)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bs {
			all = append(all, stored{base, b.Payload})
			base += uint64(b.Records)
		}
	}
	return all
}

// drain reads everything from offset on.
func drain(t testing.TB, l *Log, offset uint64, maxBytes int) []stored {
	t.Helper()
	var all []stored
	for {
		span, err := l.Find(offset, maxBytes)
		if err != nil {
			t.Fatal(err)
		}
		if span.Bytes() == 0 {
			return all
		}
		entries, next, err := l.Read(&span, make([]byte, span.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if next <= offset {
			t.Fatalf("a read at %d made no progress", offset)
		}
		for {
			e, rest, ok := NextEntry(entries)
			if !ok {
				if len(rest) > 0 {
					t.Fatal("Read returned a part of an entry")
				}
				break
			}
			if err := e.Verify(); err != nil {
				t.Fatal(err)
			}
			all = append(all, stored{e.Base, bytes.Clone(e.Payload)})
			entries = rest
		}
		offset = next
	}
}

func same(t testing.TB, got, want []stored) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d batches, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i].base != want[i].base || !bytes.Equal(got[i].payload, want[i].payload) {
			t.Fatalf("batch %d: offset %d, want %d, or other bytes", i, got[i].base, want[i].base)
		}
	}
}

func TestAppendReadReopen(t *testing.T) {
	for _, d := range []Durability{PageCache, Fsync} {
		t.Run(d.String(), func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Durability: d, SegmentBytes: 8 << 10}
			s := open(t, dir, o)
			l := create(t, s, "orders")
			all := fill(t, l, 1, 60, 3000)
			last := all[len(all)-1]
			for _, max := range []int{1, 100, 5000, 1 << 20} {
				same(t, drain(t, l, 0, max), all)
			}
			if len(l.segments) < 5 {
				t.Errorf("only %d segments", len(l.segments))
			}
			if st := l.Stats(); int(st.Batches) != len(all) || (st.Syncs == 0) != (d == PageCache) {
				t.Errorf("stats %+v", st)
			}
			// Any record of a batch finds its batch.
			for _, b := range all {
				span, err := l.Find(b.base, 1)
				if err != nil || span.Bytes() != EntryHeaderBytes+len(b.payload) {
					t.Fatalf("offset %d: %d bytes, %v", b.base, span.Bytes(), err)
				}
			}
			_, latest := l.Bounds()
			if got := drain(t, l, latest-1, 1); len(got) != 1 || got[0].base != last.base {
				t.Errorf("the last offset gives %d batches", len(got))
			}
			var re *RangeError
			if _, err := l.Find(latest+1, 1); !errors.As(err, &re) || re.Latest != latest {
				t.Errorf("beyond the end: %v", err)
			}
			if span, err := l.Find(latest, 1); err != nil || span.Bytes() != 0 {
				t.Errorf("at the end: %d bytes, %v", span.Bytes(), err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			s = open(t, dir, o)
			l = s.Topic("orders")
			same(t, drain(t, l, 0, 4000), all)
			if r := l.Recovery(); r.Entries != len(all) || r.TornBytes != 0 || r.Segments != len(l.segments) {
				t.Errorf("recovery %+v", r)
			}
			more := fill(t, l, 2, 10, 3000)
			same(t, drain(t, l, 0, 4000), append(all, more...))
		})
	}
}

// Large and small entries across index gaps, at offsets read at random.
func TestFindThroughSparseIndex(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	l := create(t, s, "t")
	all := fill(t, l, 3, 400, 400)
	all = append(all, fill(t, l, 4, 20, 60_000)...)
	all = append(all, fill(t, l, 5, 400, 100)...)
	rng := rand.New(rand.NewPCG(9, 9))
	for range 500 {
		i := rng.IntN(len(all))
		span, err := l.Find(all[i].base, 1)
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := l.Read(&span, make([]byte, span.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if e, _, ok := NextEntry(p); !ok || e.Base != all[i].base || !bytes.Equal(e.Payload, all[i].payload) {
			t.Fatalf("offset %d: wrong entry", all[i].base)
		}
	}
}

func TestRefusals(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxTopics: 2})
	l := create(t, s, "a")
	for _, bs := range [][]Batch{nil, {{}}, {{Payload: []byte("x")}}, {{Payload: make([]byte, MaxPayloadBytes+1), Records: 1}}} {
		if _, err := l.Append(bs); !errors.Is(err, ErrBatch) {
			t.Errorf("%v", err)
		}
	}
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "a b", "ä", strings.Repeat("x", 201)} {
		if _, err := s.Create(name); !errors.Is(err, ErrTopicName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	create(t, s, "b")
	if _, err := s.Create("c"); !errors.Is(err, ErrTooManyTopics) {
		t.Errorf("third of two topics: %v", err)
	}
	if got := s.Topics(); len(got) != 2 || got[0] != "a" {
		t.Errorf("topics %v", got)
	}
	for _, o := range []Options{{SegmentBytes: 1}, {SegmentBytes: 1 << 40}, {Durability: 9}, {MaxTopics: -1}} {
		if _, err := tryOpen(t.TempDir(), o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
}

func TestLockedDirectory(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{})
	_, err := tryOpen(dir, Options{})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second owner: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryOpen(file, Options{}); err == nil || !strings.Contains(err.Error(), "choose one") {
		t.Errorf("a file as data directory: %v", err)
	}
}
