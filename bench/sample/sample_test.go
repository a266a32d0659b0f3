package sample

import (
	"bytes"
	"testing"
)

func TestFilesAreWhatTheGeneratorMakes(t *testing.T) {
	l, e := Generate()
	if !bytes.Equal(l, logs) || !bytes.Equal(e, events) {
		t.Error("files differ from the generator's: go generate ./bench/sample")
	}
	if n := len(Messages()); n != logLines+eventLines {
		t.Errorf("%d messages", n)
	}
	if n := len(logs) + len(events); n > 300<<10 {
		t.Errorf("the sample has %d bytes; keep it below 300 KiB", n)
	}
}
