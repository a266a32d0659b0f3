package hugepages

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	page2M = 2 << 20
	page1G = 1 << 30

	// Log2 of the page size in bits 26..31 of mmap's flags (linux/mman.h,
	// MAP_HUGE_SHIFT).
	mapHuge2M = unix.MAP_HUGETLB | 21<<unix.MAP_HUGE_SHIFT
	mapHuge1G = unix.MAP_HUGETLB | 30<<unix.MAP_HUGE_SHIFT

	thpDir = "/sys/kernel/mm/transparent_hugepage/"
)

// mapBest maps o.Bytes on the best backing that can be had, from o.Backing
// downwards.
func (a *Arena) mapBest(o *ArenaOptions) error {
	var why reasons
	best := o.Backing
	if best > HugeTLB2M {
		why.add("asked for %s", best)
	}
	if best <= HugeTLB1G && a.mapHugeTLB(o, HugeTLB1G, page1G, mapHuge1G, &why) {
		return nil
	}
	if best <= HugeTLB2M && a.mapHugeTLB(o, HugeTLB2M, page2M, mapHuge2M, &why) {
		return nil
	}
	if best <= TransparentHuge {
		if done, err := a.mapTransparent(o, &why); done {
			return err
		}
	}
	n := roundUp(o.Bytes, a.sys.pageSize)
	p, err := a.sys.mmap(n, 0)
	if err != nil {
		return fmt.Errorf("mmap of ordinary pages: %w; ask for less, or raise the memory limit (ulimit -v, cgroup)", err)
	}
	nodes := a.bind(p, n, o.Nodes, &why)
	a.set(p, n, Ordinary, a.sys.pageSize, nodes, why)
	return a.prefault(o)
}

func (a *Arena) set(p unsafe.Pointer, n int, b Backing, pageBytes int, nodes []int, why reasons) {
	a.mem = unsafe.Slice((*byte)(p), n)
	a.report = Report{Backing: b, Bytes: n, PageBytes: pageBytes, Nodes: nodes, Reason: why.String()}
}

// prefault backs the whole arena if that was asked for, and unmaps it if that
// fails.
func (a *Arena) prefault(o *ArenaOptions) error {
	if !o.Prefault {
		return nil
	}
	err := a.sys.populate(a.mem, a.sys.pageSize)
	if err != nil {
		err = fmt.Errorf("prefaulting: %w; ask for less, or raise the memory limit", err)
		return errors.Join(err, a.sys.munmap(unsafe.Pointer(unsafe.SliceData(a.mem)), len(a.mem)))
	}
	return nil
}

// mapHugeTLB maps explicit huge pages, and populates them unless the arena is
// elastic. Without MAP_NORESERVE the mmap itself fails where the pool of huge
// pages is too small.
func (a *Arena) mapHugeTLB(o *ArenaOptions, b Backing, pageBytes, flags int, why *reasons) bool {
	n := roundUp(o.Bytes, pageBytes)
	if o.Elastic {
		flags |= unix.MAP_NORESERVE
	}
	p, err := a.sys.mmap(n, flags)
	if err == nil {
		mem := unsafe.Slice((*byte)(p), n)
		if o.Elastic {
			mem = mem[:pageBytes] // to see that there are any
		}
		nodes := a.bind(p, n, o.Nodes, why)
		if err = a.sys.populate(mem, pageBytes); errors.Is(err, unix.EFAULT) {
			err = unix.ENOMEM // EFAULT is how madvise(2) says that there was no page
		}
		if err == nil && o.Elastic {
			err = a.sys.madvise(mem, unix.MADV_DONTNEED) // since Linux 5.18 for these pages
		}
		if err == nil {
			a.set(p, n, b, pageBytes, nodes, *why)
			return true
		}
		err = errors.Join(err, a.sys.munmap(p, n))
	}
	why.add("MAP_HUGETLB %s: %v: %s", formatBytes(pageBytes), err, a.sys.mendHugeTLB(err, n, pageBytes))
	return false
}

// mendHugeTLB says why mapping n bytes of explicit huge pages failed with err.
func (s system) mendHugeTLB(err error, n, pageBytes int) string {
	dir := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/", pageBytes>>10)
	total, missing := s.readInt(dir + "nr_hugepages")
	if missing != nil {
		return fmt.Sprintf("this kernel offers no huge pages of %s (%v)", formatBytes(pageBytes), missing)
	}
	free, _ := s.readInt(dir + "free_hugepages")
	reserved, _ := s.readInt(dir + "resv_hugepages")
	need, free := n/pageBytes, max(0, free-reserved)
	if !errors.Is(err, unix.ENOMEM) {
		// Measured: qemu-user refuses MAP_HUGETLB with EINVAL whatever the host has.
		return "the kernel, an emulator or a seccomp filter refuses the flag itself"
	}
	if free >= need {
		return fmt.Sprintf("%d pages free of %d needed, but not for this process; see its cgroup's hugetlb limit and cpuset.mems", free, need)
	}
	knob := dir + "nr_hugepages"
	if pageBytes == page2M {
		knob = "/proc/sys/vm/nr_hugepages"
		if size, err := s.readInt(thpDir + "hpage_pmd_size"); err == nil && size != page2M {
			knob = dir + "nr_hugepages" // the default size of /proc/sys/vm is another on this machine
		}
	}
	return fmt.Sprintf("%d pages free of %d needed; echo %d > %s", free, need, total+need-free, knob)
}

// mapTransparent maps memory aligned to the transparent huge page and asks for
// such pages. madvise succeeds even where none are ever given, so the first page
// is populated and looked at. done: an error is final.
func (a *Arena) mapTransparent(o *ArenaOptions, why *reasons) (done bool, err error) {
	n := o.Bytes
	pageBytes, err := a.sys.thpBytes()
	if err != nil {
		why.add("transparent huge pages: %v", err)
		return false, nil
	}
	if pageBytes > page2M && n < pageBytes {
		why.add("transparent huge pages have %s here, more than the arena; ask for at least that", formatBytes(pageBytes))
		return false, nil
	}
	n = roundUp(n, pageBytes)
	p, err := a.sys.mmapAligned(n, pageBytes)
	if err != nil {
		why.add("transparent huge pages: mmap: %v", err)
		return false, nil
	}
	nodes := a.bind(p, n, o.Nodes, why)
	mem := unsafe.Slice((*byte)(p), n)
	err = a.sys.madvise(mem, unix.MADV_HUGEPAGE)
	if err == nil {
		if err = a.sys.populate(mem[:pageBytes], a.sys.pageSize); err == nil {
			err = a.sys.isHuge(mem, pageBytes)
		}
	}
	if err != nil {
		why.add("transparent huge pages: %v", errors.Join(err, a.sys.munmap(p, n)))
		return false, nil
	}
	a.set(p, n, TransparentHuge, pageBytes, nodes, *why)
	return true, a.prefault(o)
}

// thpBytes is the size of a transparent huge page, or why there are none.
func (s system) thpBytes() (int, error) {
	mode, err := s.readFile(thpDir + "enabled")
	if err != nil {
		return 0, fmt.Errorf("this kernel has none (%w)", err)
	}
	if bytes.Contains(mode, []byte("[never]")) {
		return 0, fmt.Errorf("turned off; echo madvise > %senabled", thpDir)
	}
	n, err := s.readInt(thpDir + "hpage_pmd_size")
	if err != nil || n <= 0 || n&(n-1) != 0 {
		return 0, fmt.Errorf("%shpage_pmd_size is not readable (%w)", thpDir, err)
	}
	return n, nil
}

// mmapAligned maps n bytes at a multiple of align: it maps more and gives back
// both ends.
func (s system) mmapAligned(n, align int) (unsafe.Pointer, error) {
	p, err := s.mmap(n+align, 0)
	if err != nil {
		return nil, err
	}
	head := int(-uintptr(p) & uintptr(align-1))
	if head > 0 {
		err = s.munmap(p, head)
	}
	q := unsafe.Add(p, head)
	return q, errors.Join(err, s.munmap(unsafe.Add(q, n), align-head))
}

// isHuge looks the mapping up in /proc/self/smaps and returns an error unless the
// kernel has backed at least one huge page of it.
func (s system) isHuge(mem []byte, pageBytes int) error {
	smaps, err := s.readFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("cannot be verified (%w)", err)
	}
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	inside := false
	for line := range strings.Lines(string(smaps)) {
		if lo, hi, ok := parseRange(line); ok {
			inside = lo <= at && at < hi
			continue
		}
		if rest, ok := strings.CutPrefix(line, "AnonHugePages:"); ok && inside {
			kB, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err == nil && kB<<10 >= pageBytes {
				return nil
			}
			return errors.New("the kernel gave none at the first touch; memory may be fragmented " +
				"(echo 1 > /proc/sys/vm/compact_memory) or the process barred from them (PR_SET_THP_DISABLE)")
		}
	}
	return errors.New("cannot be verified (/proc/self/smaps does not list the mapping)")
}

// parseRange reads the head line of a mapping, "7f00-7fff rw-p …".
func parseRange(line string) (lo, hi uint64, ok bool) {
	addrs, _, ok := strings.Cut(line, " ")
	if !ok {
		return 0, 0, false
	}
	from, to, ok := strings.Cut(addrs, "-")
	if !ok {
		return 0, 0, false
	}
	lo, err1 := strconv.ParseUint(from, 16, 64)
	hi, err2 := strconv.ParseUint(to, 16, 64)
	return lo, hi, err1 == nil && err2 == nil
}

func (s system) readInt(name string) (int, error) {
	b, err := s.readFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(b)))
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }
