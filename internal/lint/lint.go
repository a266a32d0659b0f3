// Package lint holds the rules of architecture that the compiler does not know:
// which room of the module may import which.
package lint

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Rooms says, for each package folder, which other folders of the module its
// code may import: only what lies below it. A folder ending in /... stands for
// itself and everything in it. A package outside every room is an error, so that
// a new one gets its place here.
var Rooms = map[string][]string{
	"internal/lint/...":   {"internal/lint/..."},
	"internal/ccall":      {},
	"internal/docbytes":   {},
	"internal/rtnetlink":  {},
	"internal/ticks":      {},
	"internal/timerslack": {},

	"hugepages":            {},
	"serialize/...":        {"hugepages"},
	"batcher":              {"hugepages", "serialize"},
	"netpoll":              {"hugepages", "internal/ticks"},
	"netpoll/resume":       {"hugepages", "netpoll"},
	"netpoll/looptest":     {"hugepages", "netpoll"},
	"rdma":                 {"hugepages", "netpoll", "rdma/bootstrap"},
	"rdma/bootstrap":       {"netpoll"},
	"rdma/roce/...":        {"rdma/roce/..."},
	"rdma/devicetest":      {"hugepages", "rdma"},
	"rdma/verbs":           {"hugepages", "rdma", "internal/ccall"},
	"rdma/softroce":        {"hugepages", "rdma", "rdma/roce", "internal/rtnetlink"},
	"dpdk":                 {"hugepages", "netpoll", "rdma", "rdma/roce", "rdma/softroce", "internal/rtnetlink"},
	"dpdk/porttest":        {"hugepages", "netpoll", "rdma", "dpdk"},
	"dpdk/eal":             {"hugepages", "dpdk", "dpdk/internal/rundir", "dpdk/porttest", "internal/ccall"},
	"dpdk/memif":           {"hugepages", "dpdk", "dpdk/internal/rundir", "dpdk/porttest"},
	"dpdk/internal/rundir": {},
	"dpdk/afxdp":           {"hugepages", "dpdk", "dpdk/porttest"},
	"broker/...":           {"hugepages", "serialize/...", "batcher", "netpoll", "rdma/...", "dpdk/...", "broker/..."},
	"internal/transports": {
		"hugepages", "netpoll/...", "rdma/...", "dpdk/...",
	},
	"internal/doctor": {"rdma/verbs", "dpdk/eal", "internal/transports"},
	"bench/...": {
		"hugepages", "serialize/...", "batcher", "netpoll", "rdma/...", "dpdk/...", "broker/...", "internal/ticks", "internal/timerslack", "internal/transports", "bench/...",
	},
	"scripts/arm/guest": {},
	"scripts/soft-roce": {},
	"cmd/...": {
		"hugepages", "serialize/...", "batcher", "netpoll", "rdma/...", "dpdk/...", "broker/...", "internal/doctor", "internal/timerslack", "internal/transports", "bench/...", "cmd/...",
	},
}

// CheckImports checks every Go file below root, whatever its build constraints,
// against rooms and returns one line per violation. module is the module's path.
// External test packages (package x_test) may import anything: they are programs
// of their own.
func CheckImports(root fs.FS, module string, rooms map[string][]string) ([]string, error) {
	var bad []string
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := path.Base(name); name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || isModule(root, name)) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		found, err := checkFile(root, name, module, rooms)
		bad = append(bad, found...)
		return err
	})
	sort.Strings(bad)
	return bad, err
}

func isModule(root fs.FS, dir string) bool {
	_, err := fs.Stat(root, path.Join(dir, "go.mod"))
	return err == nil
}

func checkFile(root fs.FS, name, module string, rooms map[string][]string) ([]string, error) {
	src, err := fs.ReadFile(root, name)
	if err != nil {
		return nil, err
	}
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(f.Name.Name, "_test") && strings.HasSuffix(name, "_test.go") {
		return nil, nil
	}
	dir := filepath.ToSlash(path.Dir(name))
	room, ok := find(dir, rooms)
	if !ok {
		return []string{fmt.Sprintf("%s: package folder %s has no room: say in internal/lint what it may import", name, dir)}, nil
	}
	var bad []string
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		target, ours := strings.CutPrefix(p, module+"/")
		if !ours || allowed(target, rooms[room]) {
			continue
		}
		may := strings.Join(rooms[room], ", ")
		if may == "" {
			may = "nothing of this module"
		}
		bad = append(bad, fmt.Sprintf("%s: %s must not import %s: imports point downwards only; %s may import %s", name, dir, target, room, may))
	}
	return bad, nil
}

// find returns the room of dir: its own entry, or that of the nearest folder
// above it which takes in everything below.
func find(dir string, rooms map[string][]string) (string, bool) {
	if _, ok := rooms[dir]; ok {
		return dir, true
	}
	for d := dir; d != "."; d = path.Dir(d) {
		if _, ok := rooms[d+"/..."]; ok {
			return d + "/...", true
		}
	}
	return "", false
}

func allowed(target string, may []string) bool {
	for _, m := range may {
		tree, isTree := strings.CutSuffix(m, "/...")
		if target == tree || isTree && strings.HasPrefix(target, tree+"/") {
			return true
		}
	}
	return false
}
