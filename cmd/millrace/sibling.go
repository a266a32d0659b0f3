package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// useSibling replaces this process by millrace-dpdk beside it where the command
// may need a port of libdpdk: the build that links libdpdk does not start on a
// machine without it, so it is a program of its own. It returns if there is no
// need, no such program, or none that starts.
func useSibling(args []string) error {
	if linkedDPDK || !wantsLibdpdk(args) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	sibling := filepath.Join(filepath.Dir(self), "millrace-dpdk")
	if info, err := os.Stat(sibling); err != nil || info.IsDir() {
		return nil
	}
	// The loader fails where libdpdk is missing.
	if exec.Command(sibling, "--version").Run() != nil {
		return nil
	}
	return unix.Exec(sibling, append([]string{sibling}, args...), os.Environ())
}

// wantsLibdpdk tells from the arguments whether libdpdk may be of use: an address
// that names one of its ports, or a benchmark, the doctor.
func wantsLibdpdk(args []string) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case "bench", "doctor":
		return true
	}
	return slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "dpdk://") })
}
