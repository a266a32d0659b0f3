package hugepages

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	dir2M = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	dir1G = "/sys/kernel/mm/hugepages/hugepages-1048576kB/"
)

// fakeKernel is a system whose files and answers a test chooses; memory is real
// and consists of ordinary pages.
type fakeKernel struct {
	files     map[string]string
	mmapErr   map[int]error // by the flags above MAP_ANONYMOUS
	adviceErr map[int]error
	mbindErr  error
	thpBacked bool                 // smaps says that the first touch got a huge page
	backErr   func(b []byte) error // of MADV_POPULATE_WRITE; may be nil

	mapped map[uintptr]int
	last   [2]uintptr // start and end of the latest madvise
	advice []int      // of every madvise
	bound  [][]int    // nodes of every mbind
}

func (k *fakeKernel) system() system {
	host := hostSystem()
	k.mapped = map[uintptr]int{}
	return system{
		mmap: func(n, flags int) (unsafe.Pointer, error) {
			if err := k.mmapErr[flags]; err != nil {
				return nil, err
			}
			p, err := host.mmap(n, 0)
			k.mapped[uintptr(p)] = n
			return p, err
		},
		munmap: func(p unsafe.Pointer, n int) error { return errors.Join(k.unmapped(uintptr(p), n), host.munmap(p, n)) },
		madvise: func(b []byte, advice int) error {
			at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
			k.last = [2]uintptr{at, at + uintptr(len(b))}
			k.advice = append(k.advice, advice)
			if advice == unix.MADV_POPULATE_WRITE && k.backErr != nil {
				return k.backErr(b)
			}
			if err := k.adviceErr[advice]; err != nil || advice != unix.MADV_DONTNEED {
				return err
			}
			return host.madvise(b, advice)
		},
		mbind: func(p unsafe.Pointer, n int, nodes []int) error {
			k.bound = append(k.bound, nodes)
			return k.mbindErr
		},
		readFile: func(name string) ([]byte, error) {
			if name == "/proc/self/smaps" && k.files[name] == "" {
				kB := 0
				if k.thpBacked {
					kB = 2048
				}
				return fmt.Appendf(nil, "1000-2000 r-xp 00000000 08:01 1 /bin/x\nAnonHugePages:      4096 kB\n%x-%x rw-p 00000000 00:00 0\nRss: 4 kB\nAnonHugePages: %9d kB\nVmFlags: rd wr\n",
					k.last[0], k.last[1], kB), nil
			}
			if s, ok := k.files[name]; ok {
				return []byte(s), nil
			}
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		},
		pageSize: 4096,
	}
}

// unmapped takes [p, p+n) out of the books; it may be an end of a mapping.
func (k *fakeKernel) unmapped(p uintptr, n int) error {
	for at, size := range k.mapped {
		if p < at || p+uintptr(n) > at+uintptr(size) {
			continue
		}
		delete(k.mapped, at)
		if p > at {
			k.mapped[at] = int(p - at)
		}
		if rest := at + uintptr(size) - p - uintptr(n); rest > 0 {
			k.mapped[p+uintptr(n)] = int(rest)
		}
		return nil
	}
	return fmt.Errorf("munmap(%#x, %d) of what is not mapped", p, n)
}

func TestFallBacksAreReported(t *testing.T) {
	thp := func(more map[string]string) map[string]string {
		m := map[string]string{thpDir + "enabled": "always [madvise] never\n", thpDir + "hpage_pmd_size": "2097152\n"}
		for k, v := range more {
			m[k] = v
		}
		return m
	}
	pool := func(dir string, nr, free, resv int) map[string]string {
		return map[string]string{dir + "nr_hugepages": fmt.Sprintln(nr), dir + "free_hugepages": fmt.Sprintln(free), dir + "resv_hugepages": fmt.Sprintln(resv)}
	}
	no2M := map[int]error{mapHuge2M: unix.ENOMEM}
	tests := []struct {
		name    string
		kernel  fakeKernel
		ask     Backing
		bytes   int
		want    Backing
		size    int
		reasons []string // all must be there; none: the reason is empty
	}{
		{name: "2 MiB as wanted", want: HugeTLB2M, size: 4 << 20},
		{name: "1 GiB as wanted", ask: HugeTLB1G, want: HugeTLB1G, size: 1 << 30},
		{name: "1 GiB falls to 2 MiB", ask: HugeTLB1G, kernel: fakeKernel{files: pool(dir1G, 2, 1, 1), mmapErr: map[int]error{mapHuge1G: unix.ENOMEM}},
			want: HugeTLB2M, size: 4 << 20,
			reasons: []string{"MAP_HUGETLB 1 GiB: cannot allocate memory", "0 pages free of 1 needed", "echo 3 > " + dir1G + "nr_hugepages"}},
		{name: "no 2 MiB pages", kernel: fakeKernel{files: thp(pool(dir2M, 5, 3, 2)), mmapErr: no2M, thpBacked: true},
			want: TransparentHuge, size: 4 << 20,
			reasons: []string{"MAP_HUGETLB 2 MiB: cannot allocate memory", "1 pages free of 2 needed", "echo 6 > /proc/sys/vm/nr_hugepages"}},
		{name: "pages reserved but not to be had (SIGBUS averted)",
			kernel: fakeKernel{files: thp(pool(dir2M, 9, 9, 0)), adviceErr: map[int]error{unix.MADV_POPULATE_WRITE: unix.EFAULT}},
			want:   Ordinary, size: 3 << 20,
			reasons: []string{"MAP_HUGETLB 2 MiB: cannot allocate memory", "cgroup", "cpuset"}},
		{name: "kernel before MADV_POPULATE_WRITE", kernel: fakeKernel{adviceErr: map[int]error{unix.MADV_POPULATE_WRITE: unix.EINVAL}},
			want: HugeTLB2M, size: 4 << 20},
		{name: "kernel without hugetlbfs", kernel: fakeKernel{files: thp(nil), mmapErr: map[int]error{mapHuge2M: unix.EINVAL}, thpBacked: true},
			want: TransparentHuge, size: 4 << 20, reasons: []string{"offers no huge pages of 2 MiB"}},
		{name: "emulator refuses the flag", kernel: fakeKernel{files: thp(pool(dir2M, 9, 9, 0)), mmapErr: map[int]error{mapHuge2M: unix.EINVAL}},
			want: Ordinary, size: 3 << 20, reasons: []string{"refuses the flag", "gave none at the first touch"}},
		{name: "no transparent pages in the kernel", kernel: fakeKernel{mmapErr: no2M},
			want: Ordinary, size: 3 << 20, reasons: []string{"transparent huge pages: this kernel has none"}},
		{name: "transparent pages off", kernel: fakeKernel{files: thp(map[string]string{thpDir + "enabled": "always madvise [never]"}), mmapErr: no2M},
			want: Ordinary, size: 3 << 20, reasons: []string{"turned off; echo madvise > " + thpDir + "enabled"}},
		{name: "MADV_HUGEPAGE refused", kernel: fakeKernel{files: thp(nil), mmapErr: no2M, adviceErr: map[int]error{unix.MADV_HUGEPAGE: unix.EINVAL}},
			want: Ordinary, size: 3 << 20, reasons: []string{"transparent huge pages: invalid argument"}},
		{name: "transparent pages not given", kernel: fakeKernel{files: thp(nil), mmapErr: no2M},
			want: Ordinary, size: 3 << 20, reasons: []string{"gave none at the first touch", "compact_memory"}},
		{name: "transparent pages not verifiable", kernel: fakeKernel{files: thp(map[string]string{"/proc/self/smaps": "garbage\n"}), mmapErr: no2M},
			want: Ordinary, size: 3 << 20, reasons: []string{"cannot be verified"}},
		{name: "transparent pages of an arm64 kernel with 64 KiB pages",
			kernel: fakeKernel{files: thp(map[string]string{thpDir + "hpage_pmd_size": "536870912"}), mmapErr: no2M},
			want:   Ordinary, size: 3 << 20, reasons: []string{"have 512 MiB here, more than the arena"}},
		{name: "transparent asked for", ask: TransparentHuge, kernel: fakeKernel{files: thp(nil), thpBacked: true},
			want: TransparentHuge, size: 4 << 20, reasons: []string{"asked for transparent huge pages"}},
		{name: "ordinary asked for", ask: Ordinary, bytes: 4097, want: Ordinary, size: 8192, reasons: []string{"asked for ordinary pages"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.bytes == 0 {
				tt.bytes = 3 << 20
			}
			a, err := newArena(ArenaOptions{Bytes: tt.bytes, Backing: tt.ask}, tt.kernel.system())
			if err != nil {
				t.Fatal(err)
			}
			r := a.Report()
			if r.Backing != tt.want || r.Bytes != tt.size || len(a.Bytes()) != tt.size {
				t.Errorf("got %v, want %d bytes of %v", r, tt.size, tt.want)
			}
			if len(tt.reasons) == 0 && r.Reason != "" {
				t.Errorf("reason %q for what was wanted", r.Reason)
			}
			for _, part := range tt.reasons {
				if !strings.Contains(r.Reason, part) {
					t.Errorf("reason %q lacks %q", r.Reason, part)
				}
			}
			if at := uintptr(unsafe.Pointer(unsafe.SliceData(a.Bytes()))); r.Backing == TransparentHuge && at%uintptr(r.PageBytes) != 0 {
				t.Errorf("arena at %#x is not aligned to %d", at, r.PageBytes)
			}
			if err := errors.Join(a.Close(), a.Close()); err != nil {
				t.Error(err)
			}
			if len(tt.kernel.mapped) != 0 {
				t.Errorf("mappings left: %v", tt.kernel.mapped)
			}
		})
	}
}

func TestNewArenaErrors(t *testing.T) {
	full := fakeKernel{mmapErr: map[int]error{0: unix.ENOMEM, mapHuge2M: unix.ENOMEM}}
	for _, tt := range []struct {
		o    ArenaOptions
		want string
	}{
		{ArenaOptions{}, "Bytes is 0; give 1 to"},
		{ArenaOptions{Bytes: -1}, "Bytes is -1"},
		{ArenaOptions{Bytes: MaxArenaBytes + 1}, "give 1 to"},
		{ArenaOptions{Bytes: 1, Elastic: true, Prefault: true}, "exclude each other"},
		{ArenaOptions{Bytes: 1, Nodes: []int{-1}}, "NUMA node -1"},
		{ArenaOptions{Bytes: 1, Nodes: []int{maxNodes}}, "give 0 to 1023"},
		{ArenaOptions{Bytes: 1, Backing: Ordinary + 1}, "Backing(5); give HugeTLB1G"},
		{ArenaOptions{Bytes: 1 << 20}, "an arena of 1 MiB: mmap of ordinary pages: cannot allocate memory; ask for less"},
	} {
		if _, err := newArena(tt.o, full.system()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v lacks %q", tt.o, err, tt.want)
		}
	}
}

// On the machine at hand: whatever pages it has, they are reported, aligned and
// usable to the last byte.
func TestArenaOfThisMachine(t *testing.T) {
	for _, best := range []Backing{0, HugeTLB1G, HugeTLB2M, TransparentHuge, Ordinary} {
		a, err := NewArena(ArenaOptions{Bytes: 4 << 20, Backing: best})
		if err != nil {
			t.Fatal(err)
		}
		r := a.Report()
		t.Logf("asked for %v: %v", best, r)
		if r.Backing < best || r.Bytes != len(a.Bytes()) || r.Bytes%r.PageBytes != 0 {
			t.Errorf("asked for %v: %+v", best, r)
		}
		if r.Backing != best && best != 0 && r.Reason == "" || r.Backing > HugeTLB2M && r.Reason == "" {
			t.Errorf("%v without a reason", r.Backing)
		}
		m := a.Bytes()
		m[0], m[len(m)-1] = 1, 2
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A page that the kernel cannot provide is an error, not a crash.
func TestTouchSurvivesAFault(t *testing.T) {
	p, err := hostSystem().mmap(8192, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem := unsafe.Slice((*byte)(p), 8192)
	defer unix.MunmapPtr(p, 8192)
	if err := touch(mem, 4096); err != nil {
		t.Error(err)
	}
	if err := unix.Mprotect(mem, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	if err := touch(mem, 4096); err == nil {
		t.Error("no error from memory that cannot be written")
	}
}

func TestContainsAndOffset(t *testing.T) {
	a, err := NewArena(ArenaOptions{Bytes: 1 << 20, Backing: Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	m := a.Bytes()
	beyond := unsafe.Slice(unsafe.SliceData(m), len(m)+1)
	for _, tt := range []struct {
		name string
		p    []byte
		want int
	}{
		{"all", m, 0}, {"first byte", m[:1], 0}, {"middle", m[4096:8192], 4096}, {"last byte", m[len(m)-1:], len(m) - 1},
		{"empty", m[100:100], 100}, {"nil", nil, -1}, {"heap", make([]byte, 64), -1},
		{"over the end", beyond, -1}, {"over the end from inside", beyond[10:], -1},
	} {
		if got := a.Offset(tt.p); got != tt.want || a.Contains(tt.p) != (tt.want >= 0) {
			t.Errorf("%s: offset %d, contains %v, want %d", tt.name, got, a.Contains(tt.p), tt.want)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if a.Contains(m) || a.Contains(nil) {
		t.Error("a closed arena contains something")
	}
}

func TestCloseNamesWhatIsOutstanding(t *testing.T) {
	a, err := NewArena(ArenaOptions{Bytes: 1 << 20, Backing: Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	quiet, p := NewPool(a), NewPool(a) // the quiet pool must come back to life too
	bufs := []*Buf{mustGet(t, p, 100, Receive), mustGet(t, p, 100, Receive), mustGet(t, p, 4000, Batch)}
	mustGet(t, quiet, 10, Send).Release()
	err = a.Close()
	if !errors.Is(err, ErrOutstanding) {
		t.Fatalf("Close: %v", err)
	}
	for _, part := range []string{"2 receive (768 B)", "1 batch (4224 B)"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	for _, q := range []*Pool{quiet, p} { // nothing has changed
		bufs = append(bufs, mustGet(t, q, 4000, Other))
	}
	for _, b := range bufs {
		b.Release()
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Get(1, Send); !errors.Is(err, ErrClosed) {
		t.Errorf("Get after Close: %v", err)
	}
	if _, err := NewPool(a).Get(0, Send); !errors.Is(err, ErrClosed) {
		t.Errorf("Get of a pool made after Close: %v", err)
	}
}

func TestExtents(t *testing.T) {
	e := extents{{0, 100}}
	if got := []int{e.takeLow(10), e.takeHigh(20), e.takeLow(70), e.takeLow(1), e.takeHigh(1)}; !slices.Equal(got, []int{0, 80, 10, -1, -1}) {
		t.Fatalf("took %v", got)
	}
	for _, x := range []extent{{80, 20}, {0, 10}, {40, 40}, {10, 30}} { // alone, alone, right neighbour, both
		e.put(x.off, x.bytes)
	}
	if !slices.Equal(e, extents{{0, 100}}) {
		t.Fatalf("after giving all back: %v", e)
	}
}

func TestStrings(t *testing.T) {
	for got, want := range map[string]string{
		HugeTLB1G.String(): "hugetlb 1 GiB", HugeTLB2M.String(): "hugetlb 2 MiB", TransparentHuge.String(): "transparent huge pages",
		Ordinary.String(): "ordinary pages", Backing(9).String(): "Backing(9)",
		Receive.String(): "receive", Send.String(): "send", Batch.String(): "batch", Frame.String(): "frame", Other.String(): "other",
		Purpose(9).String(): "Purpose(9)", formatBytes(0): "0 B", formatBytes(1023): "1023 B", formatBytes(1536): "1536 B", formatBytes(2 << 10): "2 KiB",
		Report{Backing: Ordinary, Bytes: 1 << 20, Reason: "why"}.String(): "1 MiB of ordinary pages (why)",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if Purpose(NumPurposes-1) != Other {
		t.Error("NumPurposes does not follow the purposes")
	}
}
