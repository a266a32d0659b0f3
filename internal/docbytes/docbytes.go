// Package docbytes reads the examples of docs/PROTOCOL.md, so that tests prove
// their bytes against the code. It is for tests.
package docbytes

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Block returns the text of the fenced block of docs/PROTOCOL.md whose opening
// fence says info, for instance "hex hello".
func Block(t testing.TB, info string) string {
	t.Helper()
	// A test runs in its package's folder, somewhere below the module's.
	var doc []byte
	up, err := "", os.ErrNotExist
	for range 8 {
		if doc, err = os.ReadFile(filepath.Join(up, "docs", "PROTOCOL.md")); err == nil {
			break
		}
		up = filepath.Join(up, "..")
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, begins := strings.Cut(string(doc), "\n```"+info+"\n")
	block, _, ends := strings.Cut(rest, "\n```\n")
	if !begins || !ends {
		t.Fatalf("docs/PROTOCOL.md has no block %q", info)
	}
	return block
}

// Hex returns the bytes of the block "hex NAME": pairs of hex digits with one
// space between them, up to two spaces or the end of the line.
func Hex(t testing.TB, name string) []byte {
	t.Helper()
	var all []byte
	for line := range strings.Lines(Block(t, "hex "+name)) {
		digits, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatalf("docs/PROTOCOL.md, block %q, line %q: %v", name, line, err)
		}
		all = append(all, b...)
	}
	return all
}
