package verbs

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Port is one port of an RDMA device, as sysfs tells (the kernel's
// Documentation/ABI/stable/sysfs-class-infiniband).
type Port struct {
	Device    string // rxe0, mlx5_1
	Num       int    // from 1
	Ports     int    // how many the device has
	Soft      bool   // no hardware behind it: rdma_rxe, siw
	LinkLayer string // Ethernet or InfiniBand
	State     string // ACTIVE, DOWN, INIT, ARMED
	PhysState string // LinkUp, Disabled, Polling, …
	Rate      string // as the driver tells it, "100 Gb/sec (4X EDR)"
	NetDev    string // of the first GID; empty if none
	Uverbs    string // name of the device file in /dev/infiniband; empty without ib_uverbs
	GIDs      []GID
}

// GID is one entry of a port's GID table.
type GID struct {
	Index  int
	Addr   netip.Addr // unmapped: an IPv4 GID is an IPv4 address
	Type   string     // "RoCE v2", "IB/RoCE v1"
	NetDev string
}

const rocev2 = "RoCE v2" // gid_attrs/types, kernel drivers/infiniband/core/cache.c

// Name is the port as ?device= takes it: the device, and the port's number where
// there are several.
func (p *Port) Name() string {
	if p.Ports > 1 {
		return p.Device + ":" + strconv.Itoa(p.Num)
	}
	return p.Device
}

// Active tells whether packets can flow.
func (p *Port) Active() bool { return p.State == "ACTIVE" }

// RoCEv2 lists the GIDs of that type.
func (p *Port) RoCEv2() []GID {
	var out []GID
	for _, g := range p.GIDs {
		if g.Type == rocev2 {
			out = append(out, g)
		}
	}
	return out
}

// describe is "rxe0 (10.0.0.1, fe80::1 on v0)".
func (p *Port) describe() string {
	var addrs []string
	for _, g := range p.RoCEv2() {
		addrs = append(addrs, g.Addr.String())
	}
	if len(addrs) == 0 {
		addrs = []string{"no RoCEv2 address"}
	}
	s := p.Name() + " (" + strings.Join(addrs, ", ")
	if p.NetDev != "" {
		s += " on " + p.NetDev
	}
	return s + ")"
}

// List is the inventory of this machine's RDMA ports, without opening any of
// them. It needs neither libibverbs nor privileges; no device is not an error.
func List() ([]Port, error) { return list(os.DirFS("/")) }

const classDir = "sys/class/infiniband"

func list(root fs.FS) ([]Port, error) {
	devices, err := fs.ReadDir(root, classDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{Op: "list devices", Err: err, Fix: "make /sys readable"}
	}
	uverbs := uverbsNames(root)
	var out []Port
	for _, d := range devices {
		base := path.Join(classDir, d.Name())
		nums, err := fs.ReadDir(root, path.Join(base, "ports"))
		if err != nil {
			continue // went away meanwhile
		}
		for _, n := range nums {
			num, err := strconv.Atoi(n.Name())
			if err != nil {
				continue
			}
			dir := path.Join(base, "ports", n.Name())
			p := Port{
				Device: d.Name(), Num: num, Ports: len(nums), Soft: isSoft(root, base), Uverbs: uverbs[d.Name()],
				LinkLayer: read(root, path.Join(dir, "link_layer")), Rate: read(root, path.Join(dir, "rate")),
				State: enum(read(root, path.Join(dir, "state"))), PhysState: enum(read(root, path.Join(dir, "phys_state"))),
			}
			p.GIDs = gids(root, dir)
			for _, g := range p.GIDs {
				if p.NetDev == "" {
					p.NetDev = g.NetDev
				}
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		if c := strings.Compare(a.Device, b.Device); c != 0 {
			return c
		}
		return a.Num - b.Num
	})
	return out, nil
}

// isSoft: a device of hardware has a parent on a bus, /sys/class/infiniband/X/device.
func isSoft(root fs.FS, base string) bool {
	_, err := fs.Stat(root, path.Join(base, "device"))
	return err != nil
}

func gids(root fs.FS, dir string) []GID {
	files, err := fs.ReadDir(root, path.Join(dir, "gids"))
	if err != nil {
		return nil
	}
	var out []GID
	for _, f := range files {
		index, err := strconv.Atoi(f.Name())
		if err != nil {
			continue
		}
		addr, err := netip.ParseAddr(read(root, path.Join(dir, "gids", f.Name())))
		if err != nil || addr.IsUnspecified() {
			continue // an empty entry
		}
		g := GID{Index: index, Addr: addr.Unmap()}
		// Both fail with EINVAL for entries that have just gone.
		g.Type = read(root, path.Join(dir, "gid_attrs/types", f.Name()))
		g.NetDev = read(root, path.Join(dir, "gid_attrs/ndevs", f.Name()))
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b GID) int { return a.Index - b.Index })
	return out
}

// uverbsNames maps devices to their files in /dev/infiniband.
func uverbsNames(root fs.FS) map[string]string {
	const dir = "sys/class/infiniband_verbs"
	out := map[string]string{}
	entries, err := fs.ReadDir(root, dir)
	if err != nil {
		return out
	}
	for _, e := range entries {
		if dev := read(root, path.Join(dir, e.Name(), "ibdev")); dev != "" {
			out[dev] = e.Name()
		}
	}
	return out
}

// read is a sysfs attribute without its newline; empty if it cannot be read.
func read(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// enum takes "4: ACTIVE" apart.
func enum(s string) string {
	if _, name, ok := strings.Cut(s, ": "); ok {
		return name
	}
	return s
}
