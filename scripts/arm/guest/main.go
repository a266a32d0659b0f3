// Command guest runs programs in an emulated arm64 machine. On the host it packs
// an initial file system; in the guest it is the first process, runs the programs
// one after the other, and turns the machine off.
//
//	guest OUT INIT PROGRAM ARGUMENTS…
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() == 1 {
		run()
		return
	}
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: guest OUT INIT PROGRAM ARGUMENTS…")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// run is the guest's first process.
func run() {
	// Errors show in what the program does without them.
	_ = unix.Mount("proc", "/proc", "proc", 0, "")
	_ = unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	args, err := os.ReadFile("/arguments")
	if err == nil {
		c := exec.Command("/program", strings.Split(string(args), "\n")...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		err = c.Run()
	}
	fmt.Println("guest: end:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// pack writes a cpio archive ("newc", as the kernel unpacks it).
func pack(out, init, program string, args []string) error {
	var b bytes.Buffer
	entry := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			b.Len(), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, dir := range []string{"proc", "dev", "tmp"} {
		entry(dir, unix.S_IFDIR|0o755, nil)
	}
	for name, file := range map[string]string{"init": init, "program": program} {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		entry(name, unix.S_IFREG|0o755, data)
	}
	entry("arguments", unix.S_IFREG|0o644, []byte(strings.Join(args, "\n")))
	entry("TRAILER!!!", 0, nil)
	return os.WriteFile(out, b.Bytes(), 0o644)
}
