package messages

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"a\nb\n", []string{"a", "b"}},
		{"a\nb", []string{"a", "b"}},
		{"\n", []string{""}},
		{"a\n\nb", []string{"a", "", "b"}},
		{"a\r\nb\r", []string{"a\r", "b\r"}},
	} {
		s := NewScanner(strings.NewReader(c.in))
		var got []string
		for s.Scan() {
			got = append(got, string(s.Bytes()))
		}
		if s.Err() != nil || strings.Join(got, "|") != strings.Join(c.want, "|") || len(got) != len(c.want) {
			t.Errorf("%q: scanned %q, %v", c.in, got, s.Err())
		}
		name := filepath.Join(t.TempDir(), "in")
		if err := os.WriteFile(name, []byte(c.in), 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := ReadFile(name)
		if len(c.want) == 0 {
			if err == nil {
				t.Errorf("%q: no error", c.in)
			}
			continue
		}
		if err != nil || string(bytes.Join(all, []byte("|"))) != strings.Join(c.want, "|") || len(all) != len(c.want) {
			t.Errorf("%q: read %q, %v", c.in, all, err)
		}
	}
}

func TestTooLong(t *testing.T) {
	long := bytes.Repeat([]byte("x"), MaxMessageBytes)
	s := NewScanner(bytes.NewReader(append(long, '\n')))
	if !s.Scan() || len(s.Bytes()) != MaxMessageBytes {
		t.Error("a line of just the limit was refused:", s.Err())
	}
	s = NewScanner(bytes.NewReader(append(long, "xx\n"...)))
	for s.Scan() {
		t.Error("a line over the limit was read")
	}
	if !errors.Is(s.Err(), ErrTooLong) {
		t.Error(s.Err())
	}
}

func TestLoad(t *testing.T) {
	sized, err := Load("", 100)
	if err != nil || MeanBytes(sized) != 100 || bytes.Equal(sized[0], sized[1]) {
		t.Errorf("messages of a size: %v", err)
	}
	if s, err := Load("", 0); err != nil || len(s) < 1000 {
		t.Errorf("sample: %d, %v", len(s), err)
	}
	if _, err := Load("/nonexistent", 0); err == nil {
		t.Error("no error for a missing file")
	}
	if MeanBytes(nil) != 0 {
		t.Error("mean of nothing")
	}
}
