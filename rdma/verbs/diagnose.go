package verbs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	guestFix = "run in a guest that has one: scripts/soft-roce/guest.sh; or use the user-space device"
	upFix    = "scripts/soft-roce/up.sh makes a Soft-RoCE device (modprobe rdma_rxe; rdma link add rxe0 type rxe netdev NETDEV)"
)

// host is what diagnosis looks at; tests make their own.
type host struct {
	root    fs.FS
	release string
	open    func(name string) error // opens a device file for reading and writing
}

func thisHost() host {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail with a valid pointer
	return host{
		root: os.DirFS("/"), release: unix.ByteSliceToString(u.Release[:]),
		open: func(name string) error {
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
	}
}

// noDevice explains an empty inventory.
func (h host) noDevice() error {
	fail := func(what, fix string) error {
		return &Error{Op: "open", Err: fmt.Errorf("%w: %s", ErrNoDevice, what), Fix: fix}
	}
	if _, err := fs.Stat(h.root, "sys/module/rdma_rxe"); err == nil {
		return fail("rdma_rxe is loaded, but nobody has made a device in this network namespace", upFix)
	}
	if h.hasModule("rdma_rxe") {
		return fail("neither hardware nor the module rdma_rxe is there", upFix)
	}
	return fail("there is no hardware, and kernel "+h.release+" has no rdma_rxe module", guestFix)
}

// hasModule tells whether modprobe would find the module.
func (h host) hasModule(name string) bool {
	for _, index := range []string{"modules.dep", "modules.builtin"} {
		text, err := fs.ReadFile(h.root, path.Join("lib/modules", h.release, index))
		if err == nil && bytes.Contains(text, []byte("/"+name+".ko")) {
			return true
		}
	}
	return false
}

// deviceFile checks what libibverbs is going to open.
func (h host) deviceFile(p *Port) error {
	if p.Uverbs == "" {
		return &Error{Op: "open", Device: p.Device, Err: errors.New("the kernel module ib_uverbs is not loaded"), Fix: "modprobe ib_uverbs"}
	}
	name := "/dev/infiniband/" + p.Uverbs
	err := h.open(name)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return &Error{
			Op: "open", Device: p.Device, Err: fmt.Errorf("%s does not exist", name),
			Fix: "in a container: pass --device=" + name + "; else: modprobe ib_uverbs, and start udev (or mknod it with the numbers in /sys/class/infiniband_verbs/" + p.Uverbs + "/dev)",
		}
	case errors.Is(err, fs.ErrPermission):
		return &Error{
			Op: "open", Device: p.Device, Err: err,
			Fix: "let this user read and write it (chmod 0666 " + name + ", or the group of rdma-core's udev rules); in a container its device cgroup must allow it",
		}
	}
	return &Error{Op: "open", Device: p.Device, Err: err}
}

// capIPCLock is CAP_IPC_LOCK of linux/capability.h.
const capIPCLock = 14

// memlock is the limit of locked memory and what lifts it.
type memlock struct {
	limit   uint64 // RLIMIT_MEMLOCK, bytes; ^0 for none
	pinned  uint64 // VmPin of this process, bytes
	ipcLock bool   // CAP_IPC_LOCK in the effective set
}

// parseStatus reads VmPin and CapEff of /proc/PID/status (proc(5)).
func parseStatus(text string) (pinned uint64, ipcLock bool) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "VmPin":
			kB, _ := strconv.ParseUint(strings.TrimSuffix(value, " kB"), 10, 53)
			pinned = kB << 10
		case "CapEff":
			caps, _ := strconv.ParseUint(value, 16, 64)
			ipcLock = caps>>capIPCLock&1 != 0
		}
	}
	return pinned, ipcLock
}

// explain tells whether the limit is what refused to pin size bytes more.
func (m memlock) explain(op, device string, size uint64, err error) error {
	e := &Error{Op: op, Device: device, Err: err}
	if (errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EPERM)) && !m.ipcLock && m.limit != ^uint64(0) && m.pinned+size > m.limit {
		e.Err = fmt.Errorf("%w: %s are to be locked, RLIMIT_MEMLOCK is %s (%s of it in use), and this process has no CAP_IPC_LOCK",
			err, kiB(size), kiB(m.limit), kiB(m.pinned))
		e.Fix = "raise the limit (ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit; docker run --ulimit memlock=-1), or give the capability (setcap cap_ipc_lock+ep FILE; docker run --cap-add IPC_LOCK)"
	}
	return e
}

func kiB(n uint64) string { return strconv.FormatUint((n+1023)>>10, 10) + " KiB" }
