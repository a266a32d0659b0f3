package eal

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// memoryMB is what libdpdk may use without huge pages: address space, of which
// only what pools and rings touch becomes memory.
const memoryMB = 512

// initArgs completes the arguments of rte_eal_init. cpus are those that libdpdk's
// threads may run on; hugepages tells whether there are free ones. private tells
// that libdpdk shares nothing with other processes and keeps no files.
func initArgs(args []string, cpus []int, hugepages bool) (full []string, private bool) {
	has := func(opts ...string) bool {
		for _, a := range args {
			for _, o := range opts {
				if a == o || strings.HasPrefix(a, o+"=") {
					return true
				}
			}
		}
		return false
	}
	out := []string{"millrace"}
	if !has("--no-telemetry", "--telemetry") {
		out = append(out, "--no-telemetry")
	}
	if !has("--lcores", "-l", "-c") {
		// One lcore that may run anywhere: no thread of libdpdk is pinned.
		list := make([]string, len(cpus))
		for i, c := range cpus {
			list[i] = strconv.Itoa(c)
		}
		out = append(out, "--lcores", "0@("+strings.Join(list, ",")+")")
	}
	private = !has("--proc-type")
	switch {
	case has("--no-huge", "--in-memory", "--huge-dir", "--file-prefix", "--socket-mem", "--legacy-mem"):
		private = false
	case hugepages:
		out = append(out, "--in-memory") // leaves no file behind
	default:
		// --in-memory is refused together with --no-huge; without it no shared
		// configuration is what keeps libdpdk from leaving files behind.
		out = append(out, "--no-huge", "--no-shconf")
		if !has("-m") {
			out = append(out, "-m", strconv.Itoa(memoryMB))
		}
	}
	if !has("--no-pci", "-a", "--allow") {
		out = append(out, "--no-pci")
	}
	return append(out, args...), private
}

// oneLine is libdpdk's log for an error message, without the page of options that it
// prints with a wrong argument, what it says of every machine, and repetitions.
func oneLine(log string) string {
	var keep []string
	usage := false
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\n")
		usage = (usage || strings.HasPrefix(line, "Usage: ")) && !strings.HasPrefix(line, "EAL: ")
		if line != "" && !usage && !strings.HasPrefix(line, "EAL: Detected ") && !slices.Contains(keep, line) {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "; ")
}

// memifArgs are the arguments of a net_memif device.
func memifArgs(role Role, m Memif, o Options) string {
	return fmt.Sprintf("role=%s,id=%d,socket=%s,socket-abstract=no,secret=%s,bsize=%d,rsize=%d",
		role, m.ID, m.Socket, m.Secret, o.FrameBytes, log2ceil(o.Ring))
}

// log2ceil is the smallest n with 1<<n ≥ v.
func log2ceil(v int) int { return bits.Len(uint(v - 1)) }

// validMemif checks what came from a peer before it goes into an argument string.
func validMemif(m Memif) error {
	const sockaddrPath = 107 // sun_path without its NUL
	switch {
	case !strings.HasPrefix(m.Socket, "/") || len(m.Socket) > sockaddrPath || strings.ContainsAny(m.Socket, ",=[]\x00"):
		return fmt.Errorf("dpdk/eal: %q is not a memif socket: want an absolute path of at most %d bytes without , = [ ]", m.Socket, sockaddrPath)
	case len(m.Secret) == 0 || len(m.Secret) > 23 || strings.ContainsAny(m.Secret, ",=[]\x00"):
		return fmt.Errorf("dpdk/eal: the memif secret has %d bytes: want 1…23 without , = [ ]", len(m.Secret))
	}
	return nil
}
