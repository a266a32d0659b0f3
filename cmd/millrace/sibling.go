package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/internal/transports"
)

// useSibling replaces this process by millrace-dpdk beside it where the command
// may need a port of libdpdk: the build that links libdpdk does not start on a
// machine without it, so it is a program of its own. It returns if there is no
// need or no such program, or if none starts and no address needs it.
func useSibling(args []string) error {
	if linkedDPDK || !wantsLibdpdk(args) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	file, err := sibling(ctx)
	if err != nil {
		if namesLibdpdk(args) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; fix: apt-get install libdpdk-dev, or rebuild for the version that is installed (make build)", err)
		}
		return nil
	}
	return unix.Exec(file, append([]string{file}, args...), os.Environ())
}

// sibling is the program with libdpdk beside this one. The error wraps
// fs.ErrNotExist where there is none; else it says why it does not start.
func sibling(ctx context.Context) (file string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	file = filepath.Join(filepath.Dir(self), "millrace-dpdk")
	if _, err := os.Stat(file); err != nil {
		return "", err
	}
	// The loader fails where libdpdk is missing.
	if out, err := exec.CommandContext(ctx, file, "--version").CombinedOutput(); err != nil {
		text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("%s does not start: %w: %s", file, err, text)
	}
	return file, nil
}

// wantsLibdpdk tells from the arguments whether libdpdk may be of use: an address
// that names one of its ports, or a benchmark, the doctor.
func wantsLibdpdk(args []string) bool {
	if len(args) == 0 {
		return false
	}
	return args[0] == "bench" || args[0] == "doctor" || namesLibdpdk(args)
}

// namesLibdpdk tells whether an address names a port of libdpdk.
func namesLibdpdk(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		if at := strings.Index(a, "dpdk://"); at >= 0 {
			return transports.NamesLibdpdk(a[at:])
		}
		return false
	})
}
