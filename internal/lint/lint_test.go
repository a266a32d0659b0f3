package lint

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func file(src string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(src)} }

func TestCheckImports(t *testing.T) {
	rooms := map[string][]string{"low": {}, "mid": {"low"}, "top/...": {"low", "mid", "top/..."}}
	for _, c := range []struct {
		name, path, src string
		want            string // part of the one complaint; empty: none
	}{
		{"standard library", "low/a.go", `package low; import "fmt"`, ""},
		{"another module", "low/a.go", `package low; import "m2/top"`, ""},
		{"downwards", "mid/a.go", `package mid; import "m/low"`, ""},
		{"upwards", "low/a.go", `package low; import "m/mid"`, "low must not import mid"},
		{"upwards behind a build tag", "low/a_other.go", "//go:build never\n\npackage low\n\nimport \"m/mid\"", "low must not import mid"},
		{"upwards in a test of the package", "low/a_test.go", `package low; import "m/mid"`, "low must not import mid"},
		{"upwards in an external test", "low/a_test.go", `package low_test; import "m/mid"`, ""},
		{"an external test's name without its file name", "low/a.go", `package low_test; import "m/mid"`, "low must not import mid"},
		{"folder of a tree", "top/cmd/a.go", `package cmd; import "m/top/other"`, ""},
		{"folder below a single room", "mid/sub/a.go", `package sub`, "mid/sub has no room"},
		{"a room does not open what is below it", "mid/a.go", `package mid; import "m/low/deep"`, "mid must not import low/deep"},
		{"test data", "low/testdata/a.go", `package x; import "m/top"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad, err := CheckImports(fstest.MapFS{c.path: file(c.src)}, "m", rooms)
			if err != nil {
				t.Fatal(err)
			}
			if c.want == "" && len(bad) > 0 || c.want != "" && (len(bad) != 1 || !strings.Contains(bad[0], c.want)) {
				t.Errorf("got %q, want %q", bad, c.want)
			}
		})
	}
}

func TestNestedModuleIsNotOurs(t *testing.T) {
	bad, err := CheckImports(fstest.MapFS{"tools/go.mod": file("module x"), "tools/a.go": file("package tools")}, "m", nil)
	if err != nil || len(bad) > 0 {
		t.Errorf("%q, %v", bad, err)
	}
}

func TestRoomsPointDownwards(t *testing.T) {
	// A room that can reach itself through others would allow a cycle of rooms.
	var visit func(room string, path []string)
	visit = func(room string, path []string) {
		for _, p := range path {
			if p == room {
				t.Fatalf("rooms in a circle: %v", append(path, room))
			}
		}
		for r := range Rooms {
			if r != room && allowed(strings.TrimSuffix(r, "/..."), Rooms[room]) {
				visit(r, append(append([]string(nil), path...), room))
			}
		}
	}
	for r := range Rooms {
		visit(r, nil)
	}
}

func TestThisModule(t *testing.T) {
	bad, err := CheckImports(os.DirFS("../.."), "github.com/millrace/millrace", Rooms)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bad {
		t.Error(b)
	}
}
