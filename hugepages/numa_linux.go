package hugepages

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onlineNodes lists the NUMA nodes of the machine, as "0-1,4".
const onlineNodes = "/sys/devices/system/node/online"

// maxNodes is the largest MAX_NUMNODES of a kernel (CONFIG_NODES_SHIFT 10).
const maxNodes = 1024

// maxListed is more than any kernel's nodes and CPUs.
const maxListed = 1 << 16

// mpolBind is MPOL_BIND of include/uapi/linux/mempolicy.h.
const mpolBind = 2

// mbind is mbind(2) with MPOL_BIND, before the pages are touched.
func mbind(p unsafe.Pointer, length int, nodes []int) error {
	var mask [maxNodes / 64]uint64
	for _, n := range nodes {
		mask[n/64] |= 1 << (n % 64)
	}
	// The kernel reads one bit less than maxnode says (get_nodes of mm/mempolicy.c).
	_, _, e := unix.Syscall6(unix.SYS_MBIND, uintptr(p), uintptr(length), mpolBind, uintptr(unsafe.Pointer(&mask)), maxNodes+1, 0)
	if e != 0 {
		return e
	}
	return nil
}

// checkNodes refuses nodes that the machine does not have. Where the kernel does
// not say which it has, bind will tell.
func (s system) checkNodes(nodes []int) error {
	online, known := s.nodes()
	for _, n := range nodes {
		switch {
		case n < 0 || n >= maxNodes:
			return fmt.Errorf("hugepages: NUMA node %d of ArenaOptions.Nodes; give 0 to %d", n, maxNodes-1)
		case known && !slices.Contains(online, n):
			return fmt.Errorf("hugepages: NUMA node %d of ArenaOptions.Nodes is not there; this machine has node %s", n, listNodes(online))
		}
	}
	return nil
}

// nodes are the NUMA nodes of the machine; known is false if it does not tell.
func (s system) nodes() (nodes []int, known bool) {
	b, err := s.readFile(onlineNodes)
	if err != nil {
		return nil, false
	}
	return parseList(string(b))
}

// parseList reads what the kernel writes as "0-1,4", nothing for an empty list.
func parseList(s string) (numbers []int, ok bool) {
	if s = strings.TrimSpace(s); s == "" {
		return nil, true
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		lo, err1 := strconv.Atoi(from)
		hi, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || lo < 0 || hi >= maxListed {
			return nil, false
		}
		for n := lo; n <= hi; n++ {
			numbers = append(numbers, n)
		}
	}
	return numbers, true
}

// LocalNodes are the NUMA nodes of the CPUs that this process may run on, for
// ArenaOptions.Nodes; nil if those are all that the machine has, so that there is
// nothing to choose, or if the kernel does not tell.
func LocalNodes() []int {
	var cpus unix.CPUSet
	if unix.SchedGetaffinity(0, &cpus) != nil {
		return nil
	}
	return hostSystem().localNodes(cpus.IsSet)
}

func (s system) localNodes(mayRun func(cpu int) bool) (local []int) {
	all, known := s.nodes()
	if !known {
		return nil
	}
	for _, n := range all {
		b, err := s.readFile(fmt.Sprintf("/sys/devices/system/node/node%d/cpulist", n))
		cpus, ok := parseList(string(b))
		if err != nil || !ok {
			return nil
		}
		if slices.ContainsFunc(cpus, mayRun) {
			local = append(local, n)
		}
	}
	if len(local) == len(all) {
		return nil
	}
	return local
}

// bind binds a fresh mapping and returns the nodes that it is bound to.
func (a *Arena) bind(p unsafe.Pointer, n int, nodes []int, why *reasons) []int {
	if len(nodes) == 0 {
		return nil
	}
	if err := a.sys.mbind(p, n, nodes); err != nil {
		why.add("not bound to NUMA node %s: mbind: %v (a kernel without CONFIG_NUMA, or a seccomp filter)", listNodes(nodes), err)
		return nil
	}
	return slices.Clone(nodes)
}

// listNodes writes nodes as "0,1,4".
func listNodes(nodes []int) string {
	s := make([]string, len(nodes))
	for i, n := range nodes {
		s[i] = strconv.Itoa(n)
	}
	return strings.Join(s, ",")
}
