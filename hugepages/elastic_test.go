package hugepages

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An elastic arena has as many pages as its chunks need, stops at its limit, and
// gives back what is free, on whatever pages this machine has.
func TestElasticGrowsAndShrinks(t *testing.T) {
	for _, best := range []Backing{HugeTLB2M, TransparentHuge, Ordinary} {
		t.Run(best.String(), func(t *testing.T) {
			a, err := NewArena(ArenaOptions{Bytes: 16 << 20, Backing: best, Elastic: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(a.Report())
			p, q := NewPool(a), NewPool(a)
			if n := p.Stats().BackedBytes; n != 0 {
				t.Errorf("%d bytes are backed before the first Get", n)
			}
			kept := mustGet(t, q, 1000, Send)
			copy(kept.Bytes(), "kept")
			few := p.Stats().BackedBytes
			if few == 0 || few > 2<<20 {
				t.Errorf("one small Buf takes %d bytes", few)
			}
			for range 3 {
				out := fill(t, p, 100<<10)
				if n := p.Stats().BackedBytes; n < 15<<20 || n > 16<<20 {
					t.Errorf("%d bytes are backed where 16 MiB are in use", n)
				}
				for _, b := range out {
					b.Bytes()[0] = 1
					b.Release()
				}
				trimmed := p.Trim()
				if n := p.Stats().BackedBytes; n > few || trimmed < 13<<20 {
					t.Errorf("Trim gave %d bytes back and left %d, where one small Buf is in use", trimmed, n)
				}
				if string(kept.Bytes()[:4]) != "kept" {
					t.Fatal("Trim took a page in use")
				}
				if n := p.Trim(); n != 0 {
					t.Errorf("a second Trim found %d bytes", n)
				}
			}
			for _, b := range fill(t, p, 5000) { // and they can be used again
				b.Bytes()[0] = 1
				b.Release()
			}
			if len(a.Bytes()) != 16<<20 {
				t.Error("the arena's size changed")
			}
			if n := p.Trim(); n != 0 {
				t.Errorf("Trim gave back %d bytes of an arena that a device may know", n)
			}
			kept.Release()
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			if n := p.Trim(); n != 0 {
				t.Errorf("Trim gave back %d bytes of a closed arena", n)
			}
		})
	}
}

func TestTrimOfAFixedArenaDoesNothing(t *testing.T) {
	p := newTestPool(t, 1<<20)
	mustGet(t, p, 100, Send).Release()
	if n := p.Trim(); n != 0 || p.Stats().BackedBytes != 1<<20 || len(p.Stats().Classes) == 0 {
		t.Errorf("%d bytes given back, %+v", n, p.Stats())
	}
}

// What the system cannot give is ErrExhausted with the reason, and can be had
// later.
func TestElasticWithoutPages(t *testing.T) {
	short := false
	k := fakeKernel{backErr: func(b []byte) error {
		if short {
			return unix.ENOMEM
		}
		return nil
	}}
	a, err := newArena(ArenaOptions{Bytes: 8 << 20, Elastic: true}, k.system())
	if err != nil {
		t.Fatal(err)
	}
	p := NewPool(a)
	one := mustGet(t, p, 1<<20, Send)
	short = true
	_, err = p.Get(4<<20, Send)
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "the system gives no more than 2 MiB of the 8 MiB") {
		t.Errorf("got %v", err)
	}
	short = false
	mustGet(t, p, 4<<20, Send).Release()
	one.Release()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestPrefault(t *testing.T) {
	k := fakeKernel{mmapErr: map[int]error{mapHuge2M: unix.ENOMEM}}
	a, err := newArena(ArenaOptions{Bytes: 3 << 20, Prefault: true}, k.system())
	if err != nil || !slices.Contains(k.advice, unix.MADV_POPULATE_WRITE) || k.last[1]-k.last[0] != 3<<20 {
		t.Errorf("not prefaulted: %v, advice %v of %v", err, k.advice, k.last)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	k = fakeKernel{mmapErr: map[int]error{mapHuge2M: unix.ENOMEM}, adviceErr: map[int]error{unix.MADV_POPULATE_WRITE: unix.ENOMEM}}
	if _, err = newArena(ArenaOptions{Bytes: 3 << 20, Prefault: true}, k.system()); !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), "prefaulting") {
		t.Errorf("got %v", err)
	}
	if len(k.mapped) != 0 {
		t.Errorf("mappings left: %v", k.mapped)
	}
	for _, best := range []Backing{HugeTLB2M, TransparentHuge, Ordinary} {
		a, err := NewArena(ArenaOptions{Bytes: 4 << 20, Backing: best, Prefault: true})
		if err != nil {
			t.Fatal(err)
		}
		if n := residentPages(t, a.Bytes()); n != 4<<20/a.sys.pageSize {
			t.Errorf("%v: %d pages are there", a.Report(), n)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// residentPages is mincore(2).
func residentPages(t *testing.T, mem []byte) (n int) {
	t.Helper()
	v := make([]byte, len(mem)/unix.Getpagesize())
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(mem))), uintptr(len(mem)), uintptr(unsafe.Pointer(&v[0])))
	if e != 0 {
		t.Skipf("mincore: %v", e)
	}
	for _, x := range v {
		n += int(x & 1)
	}
	return n
}

func TestNodes(t *testing.T) {
	files := map[string]string{onlineNodes: "0-1,4\n"}
	k := fakeKernel{files: files}
	a, err := newArena(ArenaOptions{Bytes: 1 << 20, Nodes: []int{1, 4}}, k.system())
	if err != nil {
		t.Fatal(err)
	}
	if r := a.Report(); !slices.Equal(r.Nodes, []int{1, 4}) || !strings.Contains(r.String(), "on NUMA node 1,4") || len(k.bound) != 1 {
		t.Errorf("%v, bound %v", r, k.bound)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := newArena(ArenaOptions{Bytes: 1 << 20, Nodes: []int{2}}, k.system()); err == nil || !strings.Contains(err.Error(), "this machine has node 0,1,4") {
		t.Errorf("got %v", err)
	}
	k = fakeKernel{mbindErr: unix.ENOSYS} // and a kernel that does not list its nodes
	if a, err = newArena(ArenaOptions{Bytes: 1 << 20, Nodes: []int{0}}, k.system()); err != nil {
		t.Fatal(err)
	}
	if r := a.Report(); r.Nodes != nil || !strings.Contains(r.Reason, "not bound to NUMA node 0: mbind: "+unix.ENOSYS.Error()) {
		t.Errorf("%v", r)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// On the machine at hand: the pages lie on the node that was asked for.
func TestNodesOfThisMachine(t *testing.T) {
	nodes, known := hostSystem().nodes()
	if !known {
		t.Skipf("%s cannot be read", onlineNodes)
	}
	for _, n := range nodes {
		for _, best := range []Backing{HugeTLB2M, TransparentHuge, Ordinary} {
			a, err := NewArena(ArenaOptions{Bytes: 4 << 20, Backing: best, Nodes: []int{n}, Prefault: true})
			if err != nil {
				t.Logf("node %d: %v", n, err) // one without memory
				continue
			}
			if a.Report().Nodes == nil {
				t.Logf("not bound: %v", a.Report())
			} else if got, err := nodeOf(a.Bytes()); err != nil {
				t.Logf("get_mempolicy: %v", err)
			} else if got != n {
				t.Errorf("%v lies on node %d", a.Report(), got)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// nodeOf is get_mempolicy(2) with MPOL_F_NODE | MPOL_F_ADDR.
func nodeOf(mem []byte) (int, error) {
	var node int32
	_, _, e := unix.Syscall6(unix.SYS_GET_MEMPOLICY, uintptr(unsafe.Pointer(&node)), 0, 0, uintptr(unsafe.Pointer(unsafe.SliceData(mem))), 1|2, 0)
	if e != 0 {
		return 0, e
	}
	return int(node), nil
}

func TestLocalNodes(t *testing.T) {
	two := map[string]string{onlineNodes: "0-1\n", "/sys/devices/system/node/node0/cpulist": "0-3,8-11\n", "/sys/devices/system/node/node1/cpulist": "4-7,12-15\n"}
	far := map[string]string{onlineNodes: "0,2\n", "/sys/devices/system/node/node0/cpulist": "0-1\n", "/sys/devices/system/node/node2/cpulist": "\n"}
	for name, tc := range map[string]struct {
		files map[string]string
		cpus  []int
		want  []int
	}{
		"all CPUs":          {two, []int{0, 1, 4, 15}, nil},
		"CPUs of one":       {two, []int{5, 12}, []int{1}},
		"memory alone":      {far, []int{0, 1}, []int{0}},
		"it does not tell":  {nil, []int{0}, nil},
		"nonsense":          {map[string]string{onlineNodes: "0-x"}, []int{0}, nil},
		"no list of a node": {map[string]string{onlineNodes: "0-1"}, []int{0}, nil},
	} {
		s := system{readFile: func(name string) ([]byte, error) {
			if f, ok := tc.files[name]; ok {
				return []byte(f), nil
			}
			return nil, unix.ENOENT
		}}
		if got := s.localNodes(func(cpu int) bool { return slices.Contains(tc.cpus, cpu) }); !slices.Equal(got, tc.want) {
			t.Errorf("%s: nodes %v, want %v", name, got, tc.want)
		}
	}
	if nodes := LocalNodes(); nodes != nil {
		a, err := NewArena(ArenaOptions{Bytes: 1 << 20, Nodes: nodes})
		if err != nil {
			t.Fatalf("an arena on nodes %v: %v", nodes, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}
