package rundir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAbandonedDirectoriesGo(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	mkdir := func(name string, mode os.FileMode) string {
		p := filepath.Join(tmp, name)
		if err := os.Mkdir(p, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p, "socket"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	abandoned := mkdir("millrace-x-1", 0o700)
	foreign := mkdir("millrace-x-2", 0o755)
	other := mkdir("millrace-y-1", 0o700)
	fresh := mkdir(".millrace-x-1", 0o700)
	stale := mkdir(".millrace-x-2", 0o700)
	old := time.Now().Add(-2 * unlockedFor)
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(tmp, "millrace-x-3")
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}

	a, err := Make("x")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Make("x")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		abandoned: false, stale: false, foreign: true, other: true, fresh: true, link: true, a.Path: true, b.Path: true,
	} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: exists %v, want %v", path, err == nil, want)
		}
	}
	if info, err := os.Stat(a.Path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
	for range 2 {
		if err := a.Remove(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(a.Path); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if err := b.Remove(); err != nil {
		t.Error(err)
	}
}

func TestUnusableFolderIsNamed(t *testing.T) {
	for _, tmp := range []string{"/no-such-folder", "/tmp/" + strings.Repeat("long", 20)} {
		t.Setenv("TMPDIR", tmp)
		d, err := Make("x")
		if err == nil {
			t.Errorf("made %s", d.Path)
			continue
		}
		if !strings.Contains(err.Error(), tmp) || !strings.Contains(err.Error(), "TMPDIR") {
			t.Errorf("%q names neither %s nor TMPDIR", err, tmp)
		}
	}
}
