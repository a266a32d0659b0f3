package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ailing is a machine on which everything that --fix does is to be done.
func ailing() *Host {
	h := machine(wellServer().with(bare).with(files{
		hugeDir + "nr_hugepages": "0", hugeDir + "free_hugepages": "0", "proc/sys/vm/nr_hugepages": "0",
		"proc/sys/net/core/rmem_max": "212992", "proc/sys/net/core/wmem_max": "16777216",
		modules + "modules.dep": "kernel/x/rdma_rxe.ko: kernel/x/ib_uverbs.ko\nkernel/x/ib_uverbs.ko:",
	}))
	smallBuffers(h)
	return h
}

func number(t *testing.T, h *Host, name string, want int) {
	t.Helper()
	if got, _ := h.number(name); got != want {
		t.Errorf("/%s is %d, want %d", name, got, want)
	}
}

func TestFixAsRoot(t *testing.T) {
	h := ailing()
	var ran [][]string
	h.Run = func(_ context.Context, command ...string) error {
		ran = append(ran, command)
		return nil
	}
	r := Fix(t.Context(), h, Examine(t.Context(), h))
	want := []Repair{
		{Check: "huge pages", Command: "sysctl -w vm.nr_hugepages=128", Undo: "sysctl -w vm.nr_hugepages=0", Done: true},
		{Check: "udp buffers", Command: "sysctl -w net.core.rmem_max=8388608 && sysctl -w net.core.wmem_max=16777216",
			Undo: "sysctl -w net.core.wmem_max=16777216 && sysctl -w net.core.rmem_max=212992", Done: true},
		{Check: "rdma modules", Command: "modprobe -a ib_uverbs rdma_rxe", Undo: "modprobe -r -a ib_uverbs rdma_rxe", Done: true},
	}
	if !slices.Equal(r.Repairs, want) {
		t.Errorf("got  %+v\nwant %+v", r.Repairs, want)
	}
	number(t, h, "proc/sys/vm/nr_hugepages", 128)
	number(t, h, "proc/sys/net/core/rmem_max", 8388608)
	number(t, h, "proc/sys/net/core/wmem_max", 16777216)
	if len(ran) != 1 || strings.Join(ran[0], " ") != "modprobe -a ib_uverbs rdma_rxe" {
		t.Errorf("ran %q", ran)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"done: huge pages: sysctl -w vm.nr_hugepages=128", "undo: sysctl -w vm.nr_hugepages=0", "undo: modprobe -r"} {
		if !strings.Contains(text.String(), w) {
			t.Errorf("the text does not say %q", w)
		}
	}
}

func TestFixWithoutRootChangesNothing(t *testing.T) {
	h := ailing()
	h.UID = 1000
	h.Write = func(string, string) error { t.Error("wrote"); return nil }
	h.Run = func(context.Context, ...string) error { t.Error("ran"); return nil }
	r := Fix(t.Context(), h, Examine(t.Context(), h))
	if len(r.Repairs) != 3 {
		t.Fatalf("%+v", r.Repairs)
	}
	for _, p := range r.Repairs {
		if p.Done || !strings.Contains(p.Why, "sudo "+strings.Fields(p.Command)[0]) {
			t.Errorf("%+v", p)
		}
	}
	if w := r.Repairs[1].Why; strings.Count(w, "sudo") != 2 {
		t.Errorf("%q does not give each command root", w)
	}
}

func TestFixThatFails(t *testing.T) {
	h := ailing()
	write := h.Write
	h.Write = func(name, value string) error {
		switch {
		case strings.HasSuffix(name, "nr_hugepages"):
			return write(name, "50") // all that there was
		case strings.HasSuffix(name, "wmem_max"):
			return &fs.PathError{Op: "open", Path: "/" + name, Err: unix.EROFS}
		}
		return write(name, value)
	}
	h.Run = func(context.Context, ...string) error { return errors.New("exit status 1: Operation not permitted") }
	r := Fix(t.Context(), h, Examine(t.Context(), h))
	if p := r.Repairs[0]; !p.Done || p.Why != "the kernel gave 50 of 128" {
		t.Errorf("%+v", p)
	}
	if p := r.Repairs[1]; p.Done || !strings.Contains(p.Why, "read-only file system") {
		t.Errorf("%+v", p)
	}
	number(t, h, "proc/sys/net/core/rmem_max", 212992) // both or none
	if p := r.Repairs[2]; p.Done || !strings.Contains(p.Why, "not permitted") {
		t.Errorf("%+v", p)
	}
	if !r.OK {
		t.Error("a repair that failed is no reason to be unwell")
	}
}

func TestFixOfAWellMachineDoesNothing(t *testing.T) {
	h := machine(wellServer())
	if r := Fix(t.Context(), h, Examine(t.Context(), h)); len(r.Repairs) != 0 || !r.OK {
		t.Errorf("%+v", r.Repairs)
	}
}

// The names in the JSON are what users' scripts read.
func TestJSONIsStable(t *testing.T) {
	h := ailing()
	h.UID = 1000
	r := Fix(t.Context(), h, Examine(t.Context(), h))
	var got bytes.Buffer
	if err := r.WriteJSON(&got); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "ailing.json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the report differs from %s (UPDATE_GOLDEN=1 writes it):\n%s", golden, got.Bytes())
	}
	var back Report
	if err := json.Unmarshal(want, &back); err != nil || len(back.Checks) != len(checks) {
		t.Errorf("%d checks, %v", len(back.Checks), err)
	}
}

func TestTextExplainsWhatIsAmiss(t *testing.T) {
	h := ailing()
	noUDP(h)
	r := Examine(t.Context(), h)
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{
		"missing   user-space rdma", "fix:   sysctl -w vm.nr_hugepages=128\n           (millrace doctor --fix does it, until the next boot)",
		"ok        tcp://", "epoll: runs (default)", "Something that millrace wants by default is missing.",
	} {
		if !strings.Contains(b.String(), w) {
			t.Errorf("the text lacks %q:\n%s", w, b.String())
		}
	}
}

// This machine, whatever it is: every check has an answer.
func TestThisMachine(t *testing.T) {
	h := This()
	h.Sibling = func(context.Context) (string, error) { return "", fs.ErrNotExist }
	h.Probe = machine(nil).Probe
	r := Examine(t.Context(), h)
	for _, c := range r.Checks {
		if c.Found == "" || strings.Contains(c.Found, "mistake") {
			t.Errorf("%+v", c)
		}
	}
	if len(r.Transports) < 3 {
		t.Errorf("%+v", r.Transports)
	}
}
