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

// nativeName is the program beside this one that has the C libraries: libdpdk,
// to which it is linked, and libibverbs, which it loads.
const nativeName = "millrace-native"

// useSibling replaces this process by nativeName beside it where the command may
// need one of the C libraries: the build that links libdpdk does not start on a
// machine without it, so it is a program of its own. It returns if there is no
// need or no such program, or if none starts and no address needs it.
func useSibling(args []string) error {
	if native || !wantsNative(args) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	file, err := sibling(ctx)
	if err != nil {
		if namesNative(args) && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; fix: apt-get install libdpdk-dev, or rebuild for the version that is installed (make build)", err)
		}
		return nil
	}
	return unix.Exec(file, append([]string{file}, args...), os.Environ())
}

// sibling is the program with the C libraries beside this one. The error wraps
// fs.ErrNotExist where there is none, or this is it; else it says why it does not start.
func sibling(ctx context.Context) (file string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	file = filepath.Join(filepath.Dir(self), nativeName)
	if native {
		return "", fs.ErrNotExist
	}
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

// wantsNative tells from the arguments whether a C library may be of use: an address
// that names a device of one, or a benchmark, the doctor.
func wantsNative(args []string) bool {
	if len(args) == 0 {
		return false
	}
	return args[0] == "bench" || args[0] == "doctor" || namesNative(args)
}

// namesNative tells whether an address names a device of a C library.
func namesNative(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		if at := strings.Index(a, "dpdk://"); at >= 0 {
			return transports.NamesLibdpdk(a[at:])
		}
		if at := strings.Index(a, "rdma://"); at >= 0 {
			return transports.NamesVerbs(a[at:])
		}
		return false
	})
}
