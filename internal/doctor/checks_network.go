package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/millrace/millrace/rdma/verbs"
)

// wantBuffers is what a link of user-space RDMA asks for in each direction: the
// socketBytes of rdma/softroce.
const wantBuffers = 8 << 20

func udpBuffers(_ context.Context, h *Host) Check {
	receive, send, err := h.SocketBuffers(wantBuffers)
	if err != nil {
		return Check{Status: Degraded, Found: "cannot be told: " + err.Error(), Means: "see user-space rdma"}
	}
	c := Check{Found: fmt.Sprintf("receive %s, send %s", mebibytes(uint64(receive)), mebibytes(uint64(send)))}
	if receive >= wantBuffers && send >= wantBuffers {
		return c
	}
	c.Status = Degraded
	c.Means = "RDMA over UDP keeps fewer packets on the way, or loses some in bursts and sends them again"
	rmax, okR := h.number("proc/sys/net/core/rmem_max")
	wmax, okW := h.number("proc/sys/net/core/wmem_max")
	if !okR || !okW {
		c.Fix = fmt.Sprintf("on the host, outside this network namespace: sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d; or give the process CAP_NET_ADMIN", wantBuffers, wantBuffers)
		return c
	}
	c.repair = sysctl(h, "net.core.rmem_max", rmax, max(rmax, wantBuffers)).and(sysctl(h, "net.core.wmem_max", wmax, max(wmax, wantBuffers)))
	c.Fix = c.repair.command
	return c
}

// roceOverhead is what of a network device's MTU is not payload, as the kernel's
// rdma_rxe counts (drivers/infiniband/sw/rxe/rxe_param.h, RXE_MAX_HDR_LENGTH).
const roceOverhead = 80

func networkDevices(_ context.Context, h *Host) Check {
	var found []string
	small := false
	for _, name := range h.list("sys/class/net") {
		mtu, ok := h.number("sys/class/net/" + name + "/mtu")
		state, _ := h.read("sys/class/net/" + name + "/operstate")
		if !ok || name == "lo" || state == "down" {
			continue
		}
		found = append(found, fmt.Sprintf("%s MTU %d (RoCE %s)", name, mtu, pathMTU(mtu)))
		small = small || mtu < 4096+roceOverhead
	}
	if len(found) == 0 {
		return Check{Found: "loopback only", Means: "brokers and clients on this machine reach each other; nobody else does"}
	}
	c := Check{Found: strings.Join(found, ", ")}
	if small {
		c.Means = "an MTU of 4200 or more lets RDMA send packets of 4096 bytes; set it only where the whole network allows that (ip link set DEV mtu 9000)"
	}
	return c
}

// pathMTU is the largest packet of RoCE that fits (IBTA vol. 1, §9.7).
func pathMTU(mtu int) string {
	for p := 4096; p >= 256; p /= 2 {
		if mtu >= p+roceOverhead {
			return strconv.Itoa(p)
		}
	}
	return "none"
}

func userSpaceRDMA(_ context.Context, h *Host) Check {
	c := Check{Wanted: true, Found: "UDP sockets can carry RoCEv2"}
	if _, _, err := h.SocketBuffers(wantBuffers); err != nil {
		c.Status, c.Found = Missing, "no UDP socket: "+err.Error()
		c.Means = "rdma:// cannot run without a device of the kernel"
		c.Fix = "allow UDP sockets and their options (seccomp profile, network namespace without loopback: ip link set lo up)"
	}
	return c
}

func udpMailboxes(_ context.Context, h *Host) Check {
	err := h.Mailboxes()
	if err == nil {
		return Check{Found: "lone packets of RDMA over UDP arrive without a system call"}
	}
	return Check{
		Status: Degraded, Found: err.Error(),
		Means: "RDMA over UDP takes a system call for each look and each packet: a spinning round trip is a fifth longer",
		Fix:   "Linux 5.12 or later (arm64: 5.18), and as root or after setcap cap_bpf+ep on the program (in a container: --cap-add BPF)",
	}
}

func rdmaModules(_ context.Context, h *Host) Check {
	var loaded, lacking []string
	for _, m := range []string{"ib_core", "ib_uverbs", "rdma_ucm", "rdma_rxe", "mlx5_ib", "irdma", "bnxt_re", "efa", "siw"} {
		if h.loaded(m) {
			loaded = append(loaded, m)
		} else if m == "ib_uverbs" || m == "rdma_rxe" {
			lacking = append(lacking, m)
		}
	}
	c := Check{Found: "loaded: " + strings.Join(loaded, " ")}
	if len(loaded) == 0 {
		c.Found = "none loaded"
	}
	if len(lacking) == 0 || h.hardwareRDMA() && h.loaded("ib_uverbs") {
		return c
	}
	c.Status = Missing
	c.Means = "the kernel's RDMA is not there; rdma:// runs over UDP in user space"
	// rdma_rxe brings ib_core and ib_uverbs is loaded with it, or by this command.
	var loadable, absent []string
	for _, m := range lacking {
		if h.inIndex("modules.dep", m) {
			loadable = append(loadable, m)
		} else {
			absent = append(absent, m)
		}
	}
	if len(loadable) > 0 {
		c.repair = modprobe(h, loadable)
		c.Fix = c.repair.command
	}
	if len(absent) > 0 {
		c.Found += "; kernel " + h.Release + " has no " + strings.Join(absent, " ") + " here"
		if c.Fix == "" {
			c.Fix = "run in a guest that has them: scripts/soft-roce/guest.sh; or install the kernel's modules (Debian: linux-image-amd64)"
		}
	}
	return c
}

// hardwareRDMA tells whether there is a device with hardware behind it.
func (h *Host) hardwareRDMA() bool {
	for _, d := range h.list("sys/class/infiniband") {
		if h.exists("sys/class/infiniband/" + d + "/device") {
			return true
		}
	}
	return false
}

// loaded tells whether the running kernel has a module: one that is built in need
// not show in /sys.
func (h *Host) loaded(name string) bool {
	return h.exists("sys/module/"+name) || h.inIndex("modules.builtin", name)
}

// inIndex tells whether an index of the kernel's modules lists one.
func (h *Host) inIndex(index, name string) bool {
	text, _ := h.read("lib/modules/" + h.Release + "/" + index)
	return strings.Contains(text, "/"+name+".ko")
}

func rdmaDevices(_ context.Context, h *Host) Check {
	open := h.OpenDevice
	ports, err := verbs.Inspect(h.Root, h.Release, open)
	if err != nil {
		c := Check{Status: Missing, Found: plain(err), Fix: fixOf(err)}
		if errors.Is(err, verbs.ErrNoDevice) {
			c.Means = "rdma:// runs over UDP in user space"
		}
		return c
	}
	usable := 0
	var found, means []string
	fix := ""
	for i := range ports {
		p, err := &ports[i].Port, ports[i].Err
		text := p.Name() + " " + p.State
		if p.Soft {
			text += " (software)"
		}
		var gids []string
		for _, g := range p.RoCEv2() {
			gids = append(gids, g.Addr.String())
		}
		if len(gids) > 0 {
			text += " RoCEv2 " + strings.Join(gids, " ")
		}
		if mtu, ok := h.number("sys/class/net/" + p.NetDev + "/mtu"); ok && p.NetDev != "" {
			text += fmt.Sprintf(" on %s, MTU %d (RoCE %s)", p.NetDev, mtu, pathMTU(mtu))
		}
		found = append(found, text)
		if err == nil {
			usable++
			continue
		}
		means = append(means, p.Name()+": "+plain(err))
		if fix == "" {
			fix = fixOf(err)
		}
	}
	c := Check{Found: strings.Join(found, "; "), Means: strings.Join(means, "; "), Fix: fix}
	switch {
	case usable == 0:
		c.Status = Missing
	case len(means) > 0:
		c.Status = Degraded
	}
	return c
}

// plain is the cause of an error of rdma/verbs without its prefix and fix.
func plain(err error) string {
	var ve *verbs.Error
	if errors.As(err, &ve) {
		return ve.Err.Error()
	}
	return err.Error()
}

func fixOf(err error) string {
	var ve *verbs.Error
	if errors.As(err, &ve) {
		return ve.Fix
	}
	return ""
}

func libibverbs(_ context.Context, h *Host) Check {
	if !h.HasVerbs {
		return Check{
			Status: Missing, Found: "neither in this program nor beside it as millrace-native",
			Means: "RDMA devices of the kernel are listed and not used",
			Fix:   fixOf(verbs.ErrNotBuilt),
		}
	}
	for _, dir := range []string{"usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "lib64"} {
		if h.exists(dir + "/libibverbs.so.1") {
			return Check{Found: "/" + dir + "/libibverbs.so.1"}
		}
	}
	return Check{
		Status: Degraded, Found: "not in the usual folders",
		Means: "RDMA devices of the kernel cannot be used where the loader does not find it either",
		Fix:   "apt-get install libibverbs1 ibverbs-providers",
	}
}

// socketPath is how long the path of a socket may be (unix(7)) less what a port's
// own names take below the folder.
const socketPath = 107 - 52

func memifPort(_ context.Context, h *Host) Check {
	c := Check{Wanted: true, Found: "shared memory and sockets in " + h.TempDir}
	missing := func(found, fix string) Check {
		c.Status, c.Found, c.Fix = Missing, found, fix
		c.Means = "dpdk:// between processes of this machine cannot run"
		return c
	}
	if err := h.SharedMemory(); err != nil {
		return missing(err.Error(), "allow memfd_create and its seals (seccomp profile), and a kernel from 3.17 on")
	}
	if err := h.Writable(h.TempDir); err != nil {
		return missing(err.Error(), "choose another folder with TMPDIR")
	}
	if len(h.TempDir) > socketPath {
		return missing(h.TempDir+" is too long for the path of a socket", "choose another folder with TMPDIR")
	}
	return c
}

func libdpdk(ctx context.Context, h *Host) Check {
	if h.Libdpdk != "" {
		return Check{Found: "libdpdk " + h.Libdpdk + " is in this program"}
	}
	file, err := h.Sibling(ctx)
	c := Check{Status: Missing, Means: "ports of libdpdk (net_memif0, network cards) are not there; dpdk:// runs on memif in pure Go"}
	switch {
	case err == nil:
		return Check{Found: file + " has it; it starts by itself for an address that names such a port"}
	case errors.Is(err, fs.ErrNotExist):
		c.Found, c.Fix = "neither in this program nor beside it as millrace-native", "apt-get install libdpdk-dev gcc pkg-config && make build"
	default:
		c.Found, c.Fix = err.Error(), "apt-get install libdpdk-dev, or rebuild for the version that is installed: make build"
	}
	return c
}

func afXDP(_ context.Context, h *Host) Check {
	c := Check{Status: Missing, Means: "a network device cannot hand its packets to this process past the kernel's stack"}
	if err := h.XDPSocket(); err != nil {
		c.Found = "no socket: " + err.Error()
		if v, ok := kernelVersion(h.Release); ok && older(v, [2]int{5, 4}) {
			c.Fix = "a kernel from 5.4 on"
		} else if errors.Is(err, fs.ErrPermission) {
			c.Fix = xdpFix
		} else {
			c.Fix = "a kernel with CONFIG_XDP_SOCKETS"
		}
		return c
	}
	var lacking []string
	if !h.capable(capNetAdmin) {
		lacking = append(lacking, "CAP_NET_ADMIN")
	}
	if !h.capable(capNetRaw) {
		lacking = append(lacking, "CAP_NET_RAW")
	}
	if !h.capable(capBPF) && !h.capable(capSysAdmin) {
		lacking = append(lacking, "CAP_BPF")
	}
	if len(lacking) > 0 {
		c.Found, c.Fix = "the kernel has it; this process has no "+strings.Join(lacking, ", "), xdpFix
		return c
	}
	return Check{Found: "the kernel has it, and this process may use it"}
}

const xdpFix = "run as root, or setcap cap_net_admin,cap_net_raw,cap_bpf+ep FILE (docker run --cap-add NET_ADMIN --cap-add NET_RAW --cap-add BPF)"
