package seglog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// segmentFiles are the segments of topic t in dir, in order.
func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "topics", "t", "0", "*"+segmentSuffix))
	if err != nil || len(files) == 0 {
		t.Fatal("no segments", err)
	}
	return files
}

// written makes a data directory with topic t and returns what it holds.
func written(t testing.TB, o Options, groups, maxBytes int) (dir string, all []stored) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir, o)
	all = fill(t, create(t, s, "t"), 7, groups, maxBytes)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, all
}

func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ends[i] is where entry i of a segment's bytes ends.
func ends(data []byte) (at []int) {
	rest := data[SegmentHeaderBytes:]
	for {
		_, r, ok := NextEntry(rest)
		if !ok {
			return at
		}
		rest = r
		at = append(at, len(data)-len(rest))
	}
}

// A write can end after any byte: what was whole stays, what was not is cut, and
// the log goes on from there.
func TestTornAtEveryByte(t *testing.T) {
	dir, all := written(t, Options{}, 4, 60)
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bounds := ends(data)
	for cut := range data {
		replace(t, path, data[:cut])
		s, err := tryOpen(dir, Options{})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		whole := 0
		for whole < len(bounds) && bounds[whole] <= cut {
			whole++
		}
		l := s.Topic("t")
		same(t, drain(t, l, 0, 1<<20), all[:whole])
		clean := cut == SegmentHeaderBytes || whole > 0 && bounds[whole-1] == cut
		if r := l.Recovery(); (r.TornBytes == 0) != (clean || cut == 0) {
			t.Fatalf("cut at %d: recovery %+v", cut, r)
		}
		_, next := l.Bounds()
		if base, err := l.Append([]Batch{{Payload: []byte("after"), Records: 1}}); err != nil || base != next {
			t.Fatalf("cut at %d: append: %d, %v", cut, base, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, err = tryOpen(dir, Options{})
		if err != nil {
			t.Fatalf("cut at %d: second open: %v", cut, err)
		}
		same(t, drain(t, s.Topic("t"), 0, 1<<20), append(all[:whole:whole], stored{next, []byte("after")}))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A changed byte is never served and never costs a batch that is still whole:
// either it lies in the last entry, which then is cut, or opening is refused.
func TestFlipEveryByte(t *testing.T) {
	dir, all := written(t, Options{}, 4, 60)
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bounds := ends(data)
	lastStart := bounds[len(bounds)-2]
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		replace(t, path, bad)
		s, err := tryOpen(dir, Options{})
		switch {
		case i < SegmentHeaderBytes:
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "Restore it") {
				t.Fatalf("byte %d of the header: %v", i, err)
			}
		case i < lastStart:
			var ce *CorruptError
			if !errors.As(err, &ce) || ce.Path != path || int(ce.Pos) > i || !strings.Contains(err.Error(), "truncate -s") {
				t.Fatalf("byte %d: %v", i, err)
			}
		case err != nil:
			t.Fatalf("byte %d of the last entry: %v", i, err)
		default:
			same(t, drain(t, s.Topic("t"), 0, 1<<20), all[:len(all)-1])
			if r := s.Topic("t").Recovery(); int(r.TornBytes) != len(data)-lastStart {
				t.Fatalf("byte %d: recovery %+v", i, r)
			}
		}
		if err == nil {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The command that the error names works.
func TestCorruptErrorFix(t *testing.T) {
	dir, all := written(t, Options{}, 4, 60)
	path := segmentFiles(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[ends(data)[0]+EntryHeaderBytes] ^= 1
	replace(t, path, data)
	_, err = tryOpen(dir, Options{})
	var ce *CorruptError
	if !errors.As(err, &ce) {
		t.Fatal(err)
	}
	if err := os.Truncate(ce.Path, ce.Pos); err != nil {
		t.Fatal(err)
	}
	same(t, drain(t, open(t, dir, Options{}).Topic("t"), 0, 1<<20), all[:1])
}

func TestOlderSegmentDamage(t *testing.T) {
	o := Options{SegmentBytes: 4 << 10}
	for _, tc := range []struct {
		name string
		do   func(files []string) error
		text string
	}{
		{"byte changed", func(f []string) error {
			data, err := os.ReadFile(f[1])
			if err != nil {
				return err
			}
			data[len(data)-1] ^= 1
			return os.WriteFile(f[1], data, 0o600)
		}, "does not match its checksum"},
		{"cut", func(f []string) error { return os.Truncate(f[1], 100) }, "the entry has"},
		{"cut to nothing", func(f []string) error { return os.Truncate(f[1], 0) }, "only 0 bytes"},
		{"missing", func(f []string) error { return os.Remove(f[1]) }, "the next one begins"},
		{"foreign file", func(f []string) error { return os.WriteFile(f[0]+".bak", nil, 0o600) }, "does not belong"},
		{"renamed", func(f []string) error { return os.Rename(f[len(f)-1], segmentPath(filepath.Dir(f[0]), 1<<40)) }, "begins with offset"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, _ := written(t, o, 40, 1000)
			files := segmentFiles(t, dir)
			if len(files) < 4 {
				t.Fatal("too few segments", len(files))
			}
			if err := tc.do(files); err != nil {
				t.Fatal(err)
			}
			s, err := tryOpen(dir, o)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// FuzzRecovery puts any bytes behind a good prefix: opening either refuses, or
// keeps the prefix and goes on writing.
func FuzzRecovery(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add([]byte("MLRE"), uint16(0))
	f.Add(appendEntryHeader(nil, 3, Batch{Payload: []byte("hello"), Records: 1}), uint16(0))
	f.Add(append(appendEntryHeader(nil, 3, Batch{Payload: []byte("hello"), Records: 1}), "hello"...), uint16(3))
	f.Add(append([]byte("junk"), append(appendEntryHeader(nil, 9, Batch{Payload: []byte("hello"), Records: 1}), "hello"...)...), uint16(0))
	f.Add(make([]byte, 4096), uint16(30))
	f.Fuzz(func(t *testing.T, tail []byte, cut uint16) {
		dir, all := written(t, Options{}, 1, 40)
		path := segmentFiles(t, dir)[0]
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		keep := max(SegmentHeaderBytes, len(data)-int(cut))
		whole := 0
		for _, e := range ends(data) {
			if e <= keep {
				whole++
			}
		}
		replace(t, path, append(data[:keep:keep], tail...))
		s, err := tryOpen(dir, Options{})
		if err != nil {
			var ce *CorruptError
			if !errors.As(err, &ce) {
				t.Fatal(err)
			}
			return
		}
		l := s.Topic("t")
		got := drain(t, l, 0, 1<<20)
		if len(got) < whole {
			t.Fatalf("%d batches of %d kept", len(got), whole)
		}
		same(t, got[:whole], all[:whole])
		got = append(got, fill(t, l, 1, 2, 40)...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, err = tryOpen(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		same(t, drain(t, s.Topic("t"), 0, 1<<20), got)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
