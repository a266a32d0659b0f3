package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// topology is where the two halves of a benchmark live: near holds clients and
// proxy, far the broker or whatever answers.
type topology struct {
	name           string
	nearNS, farNS  string // network namespaces; empty: this one
	nearIP, farIP  string
	remove         func()
	nearCPU, proxy []int
	farCPU         []int
}

// place distributes cpus. With two, the client shares the proxy's: what the
// comparison is about, the broker's end of the link, has one of its own.
func (t *topology) place(cpus []int) {
	at := func(i int) []int { return []int{cpus[i%len(cpus)]} }
	switch {
	case len(cpus) == 1:
		t.nearCPU, t.proxy, t.farCPU = at(0), at(0), at(0)
	case len(cpus) == 2:
		t.nearCPU, t.proxy, t.farCPU = at(0), at(0), at(1)
	default:
		t.nearCPU, t.proxy, t.farCPU = at(0), at(2), at(1)
	}
}

func localTopology() *topology {
	return &topology{name: "local", nearIP: "127.0.0.1", farIP: "127.0.0.1", remove: func() {}}
}

// netnsPrefix begins the names of namespaces that a benchmark makes; the process
// id follows, so that those of a killed one can be told and removed.
const netnsPrefix = "millrace-"

// netnsVeth is the network device of both namespaces, the two ends of one wire.
const netnsVeth = "veth0"

// The address block is reserved for benchmarks (RFC 2544).
const (
	netnsNear = "198.18.0.1"
	netnsFar  = "198.18.0.2"
)

// netnsTopology makes two namespaces joined by a veth pair.
func netnsTopology() (*topology, error) {
	if err := canNetns(); err != nil {
		return nil, err
	}
	removeStale()
	base := netnsPrefix + strconv.Itoa(os.Getpid())
	t := &topology{name: "netns", nearNS: base + "-a", farNS: base + "-b", nearIP: netnsNear, farIP: netnsFar}
	t.remove = func() {
		for _, ns := range []string{t.nearNS, t.farNS} {
			_ = ip("netns", "del", ns) // the veth pair goes with them
		}
	}
	for _, args := range [][]string{
		{"netns", "add", t.nearNS},
		{"netns", "add", t.farNS},
		{"-n", t.nearNS, "link", "add", netnsVeth, "type", "veth", "peer", "name", netnsVeth, "netns", t.farNS},
		{"-n", t.nearNS, "addr", "add", netnsNear + "/30", "dev", netnsVeth},
		{"-n", t.farNS, "addr", "add", netnsFar + "/30", "dev", netnsVeth},
		{"-n", t.nearNS, "link", "set", "lo", "up"},
		{"-n", t.farNS, "link", "set", "lo", "up"},
		{"-n", t.nearNS, "link", "set", netnsVeth, "up"},
		{"-n", t.farNS, "link", "set", netnsVeth, "up"},
	} {
		if err := ip(args...); err != nil {
			t.remove()
			return nil, err
		}
	}
	return t, nil
}

// canNetns tells whether this process may make network namespaces.
func canNetns() error {
	if unix.Geteuid() != 0 {
		return errors.New("network namespaces need root: run it with sudo")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("the ip command is missing: apt-get install iproute2")
	}
	return nil
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// removeStale removes the namespaces of benchmarks that were killed.
func removeStale() {
	names, _ := filepath.Glob("/run/netns/" + netnsPrefix + "*")
	for _, n := range names {
		name := filepath.Base(n)
		pid, err := strconv.Atoi(strings.TrimRight(strings.TrimPrefix(name, netnsPrefix), "-ab"))
		if err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			_ = ip("netns", "del", name)
		}
	}
}
