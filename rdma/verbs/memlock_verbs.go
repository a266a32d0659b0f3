//go:build verbs && cgo

package verbs

import (
	"os"

	"golang.org/x/sys/unix"
)

// ownMemlock is the limit of this process.
func ownMemlock() memlock {
	m := memlock{limit: ^uint64(0)}
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r) == nil {
		m.limit = r.Cur
	}
	text, err := os.ReadFile("/proc/self/status")
	if err == nil {
		m.pinned, m.ipcLock = parseStatus(string(text))
	}
	return m
}
