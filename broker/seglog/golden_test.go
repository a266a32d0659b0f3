package seglog_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/internal/docbytes"
	"github.com/millrace/millrace/serialize"
)

// The example of docs/PROTOCOL.md is what a log writes, where it says, and what a
// log reads.
func TestGoldenSegment(t *testing.T) {
	segment := docbytes.Hex(t, "segment")
	entry, rest, ok := seglog.NextEntry(segment[seglog.SegmentHeaderBytes:])
	if !ok || len(rest) != 0 || entry.Base != 0 || entry.Records != 2 || entry.Verify() != nil {
		t.Fatalf("the entry is read as %+v, %d bytes follow", entry, len(rest))
	}
	if batch, err := serialize.Open(entry.Payload); err != nil || batch.Len() != 2 {
		t.Fatalf("its batch: %v", err)
	}

	dir := t.TempDir()
	s, err := seglog.Open(dir, seglog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Create("orders")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append([]seglog.Batch{{Payload: entry.Payload, Records: entry.Records}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := "topics/orders/0/00000000000000000000.seg"
	if got, err := os.ReadFile(filepath.Join(dir, path)); err != nil || !bytes.Equal(got, segment) {
		t.Errorf("the log writes % x, %v", got, err)
	}
	var files []string
	err = fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, name)
		}
		return err
	})
	if err != nil || !slices.Equal(files, []string{"LOCK", path}) {
		t.Errorf("the data directory holds %q, %v", files, err)
	}

	if err := os.WriteFile(filepath.Join(dir, path), segment, 0o640); err != nil {
		t.Fatal(err)
	}
	if s, err = seglog.Open(dir, seglog.Options{}); err != nil {
		t.Fatal(err)
	}
	if earliest, latest := s.Topic("orders").Bounds(); earliest != 0 || latest != 2 || s.Topic("orders").Recovery().TornBytes != 0 {
		t.Errorf("the log is read as offsets %d to %d", earliest, latest)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
