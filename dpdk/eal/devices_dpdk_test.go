//go:build dpdk && cgo

package eal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/dpdk/porttest"
	"github.com/millrace/millrace/rdma/softroce"
)

// vdev opens a virtual device, or skips the test where libdpdk has no such driver.
func vdev(t *testing.T, name, args string, queues int, o eal.Options) []eal.Port {
	t.Helper()
	needEAL(t)
	ports, err := eal.NewVdev(name, args, queues, o)
	if err != nil && strings.Contains(err.Error(), "no driver name") {
		t.Skipf("this libdpdk lacks the driver: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range ports {
			if err := p.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		}
	})
	return ports
}

// crossed is one end of two net_rings, each of which gives back what it is given:
// one carries what this end sends, the other what it receives.
type crossed struct {
	tx, rx eal.Port
	owner  *sync.Map // of a frame's handle
	other  *crossed
	closed bool
}

func (c *crossed) Info() dpdk.PortInfo { return c.tx.Info() }
func (c *crossed) Up() bool            { return !c.closed && !c.other.closed }
func (c *crossed) Close() error        { c.closed = true; return nil }
func (c *crossed) RxBurst(f []dpdk.Frame) int {
	n := c.rx.RxBurst(f)
	for i := range n {
		c.owner.Store(f[i].Handle, c.rx)
	}
	return n
}
func (c *crossed) TxBurst(f []dpdk.Frame) int { return c.tx.TxBurst(f) }
func (c *crossed) AllocBurst(f []dpdk.Frame) int {
	n := c.tx.AllocBurst(f)
	for i := range n {
		c.owner.Store(f[i].Handle, c.tx)
	}
	return n
}
func (c *crossed) FreeBurst(f []dpdk.Frame) {
	for i := range f {
		p, _ := c.owner.Load(f[i].Handle)
		p.(eal.Port).FreeBurst(f[i : i+1])
	}
}

func rings(t *testing.T) (dpdk.Port, dpdk.Port) {
	one := vdev(t, "net_ring0", "", 1, eal.Options{MTU: 4000})[0]
	two := vdev(t, "net_ring1", "", 1, eal.Options{MTU: 4000})[0]
	a := &crossed{tx: one, rx: two, owner: new(sync.Map)}
	b := &crossed{tx: two, rx: one, owner: a.owner, other: a}
	a.other = b
	return a, b
}

func TestRingConforms(t *testing.T) { porttest.Conform(t, rings) }

func TestRingSendsOn(t *testing.T) { porttest.SendsOn(t, rings) }

// libdpdk keeps a net_ring's rings when the device goes. Frames of a port that is gone
// used to come out of the next one of that name, and to crash the process.
func TestRingForgetsFramesOfClosedPorts(t *testing.T) {
	for range 3 {
		p := vdev(t, "net_ring3", "", 1, eal.Options{})[0]
		var f [8]dpdk.Frame
		if n := p.RxBurst(f[:]); n != 0 {
			t.Fatalf("%d frames of an earlier port", n)
		}
		n := p.AllocBurst(f[:])
		for i := range n {
			f[i].Len = 60
		}
		if sent := p.TxBurst(f[:n]); sent != n { // receives at once, into its stash
			t.Fatalf("%d of %d frames sent", sent, n)
		}
		n = p.AllocBurst(f[:])
		for i := range n {
			f[i].Len = 60
		}
		if sent := p.TxBurst(f[:n]); sent != n { // these stay in the ring
			t.Fatalf("%d of %d frames sent", sent, n)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMTUIsTheDevices(t *testing.T) {
	for _, tc := range []struct {
		o    eal.Options
		want int
	}{{eal.Options{}, 1500}, {eal.Options{MTU: 4096}, 4096}, {eal.Options{FrameBytes: 1014}, 1000}} {
		p := vdev(t, "net_ring2", "", 1, tc.o)[0]
		if got := p.Info().MTU; got != tc.want {
			t.Errorf("%+v: MTU %d, want %d", tc.o, got, tc.want)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A recorded capture is played into a link, which counts what is not for it, and
// what the link sends is recorded.
func TestPcapReplays(t *testing.T) {
	needEAL(t)
	dir := t.TempDir()
	in := filepath.Join(dir, "in.pcap")
	file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	file = append(file, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0)
	for i := range 20 {
		frame := bytes.Repeat([]byte{byte(i)}, 64+i)
		file = append(file, make([]byte, 8)...)
		file = binary.LittleEndian.AppendUint32(file, uint32(len(frame)))
		file = binary.LittleEndian.AppendUint32(file, uint32(len(frame)))
		file = append(file, frame...)
	}
	if err := os.WriteFile(in, file, 0o600); err != nil {
		t.Fatal(err)
	}
	p := vdev(t, "net_pcap0", "rx_pcap="+in+",tx_pcap="+filepath.Join(dir, "out.pcap"), 1, eal.Options{})[0]
	l, err := dpdk.NewLink(p, dpdk.LinkConfig{Local: netip.MustParseAddrPort("192.0.2.1:4791")})
	if err != nil {
		t.Fatal(err)
	}
	var rx [64]softroce.Frame
	for range 100 {
		if n := l.Rx(rx[:]); n != 0 {
			t.Fatalf("%d packets out of noise", n)
		}
	}
	st := l.Stats()
	var dropped uint64
	for _, n := range st.Dropped {
		dropped += n
	}
	if st.RxFrames != 20 || dropped != 20 {
		t.Errorf("%+v", st)
	}
	if _, err := l.Path(netip.MustParseAddrPort("192.0.2.2:4791")); err != nil { // asks
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(filepath.Join(dir, "out.pcap"))
	if err != nil || !bytes.Contains(out, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}) {
		t.Errorf("no ARP request in what was sent: % x, %v", out, err)
	}
}

func TestNullSwallows(t *testing.T) {
	p := vdev(t, "net_null0", "no-rx=1", 2, eal.Options{})[1]
	var f [8]dpdk.Frame
	for range 1000 { // more than the pool has
		n := p.AllocBurst(f[:])
		for i := range n {
			f[i].Len = 60
		}
		if sent := p.TxBurst(f[:n]); sent != n || n != len(f) || p.RxBurst(f[:]) != 0 {
			t.Fatalf("%d of %d frames swallowed", sent, n)
		}
	}
}

var vethNumber atomic.Uint32

// veth makes two network devices joined by a wire, or skips the test.
func veth(t *testing.T) (a, b string) {
	t.Helper()
	base := fmt.Sprintf("mr%d-%d", os.Getpid(), vethNumber.Add(1))
	a, b = base+"a", base+"b"
	if out, err := exec.Command("ip", "link", "add", a, "type", "veth", "peer", "name", b).CombinedOutput(); err != nil {
		t.Skipf("no veth pair here (it takes root and iproute2): %v: %s", err, out)
	}
	t.Cleanup(func() { run(t, "ip", "link", "del", a) })
	run(t, "ip", "link", "set", a, "up")
	run(t, "ip", "link", "set", b, "up")
	return a, b
}

func run(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", command, err, out)
	}
}

// The kernel at the other end of the wire is the judge: it finds the port by ARP and
// neighbour discovery, and pings it.
func TestKernelPingsPort(t *testing.T) {
	needEAL(t)
	for _, tc := range []struct {
		name, kernel, port string
		vlan               uint16
	}{{"IPv4", "10.213.77.1/24", "10.213.77.2", 0}, {"IPv6", "fd77:213::1/64", "fd77:213::2", 0}, {"IPv4 with VLAN", "10.213.78.1/24", "10.213.78.2", 5}} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := veth(t)
			dev := b
			if tc.vlan != 0 {
				dev = b + "v"
				if out, err := exec.Command("ip", "link", "add", "link", b, "name", dev, "type", "vlan", "id", fmt.Sprint(tc.vlan)).CombinedOutput(); err != nil {
					t.Skipf("no VLAN devices here: %s", out)
				}
				run(t, "ip", "link", "set", dev, "up")
			}
			add := []string{"ip", "addr", "add", tc.kernel, "dev", dev}
			if strings.Contains(tc.kernel, ":") {
				if out, err := exec.Command("ip", append(add[1:], "nodad")...).CombinedOutput(); err != nil {
					t.Skipf("no IPv6 here: %s", out)
				}
			} else {
				run(t, add...)
			}
			p := vdev(t, "net_af_packet0", "iface="+a, 1, eal.Options{})[0]
			l, err := dpdk.NewLink(p, dpdk.LinkConfig{Local: netip.AddrPortFrom(netip.MustParseAddr(tc.port), 4791), VLAN: tc.vlan})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- ping(tc.port) }()
			var rx [64]softroce.Frame
			for {
				l.RxFree(rx[:l.Rx(rx[:])])
				select {
				case err := <-done:
					if err != nil {
						t.Errorf("%v; %+v", err, l.Stats())
					}
					if l.Stats().Answered < 2 {
						t.Errorf("%+v", l.Stats())
					}
					return
				default:
				}
			}
		})
	}
}

// ping asks for an echo through the kernel, as the program of that name does.
func ping(addr string) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if strings.Contains(addr, ":") {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	msg := append([]byte{request, 0, 0, 0, 0x4d, 0x52, 0, 1}, bytes.Repeat([]byte{0x2a, 0x17}, 500)...)
	sum := uint32(0)
	for i := 0; i < len(msg); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(msg[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(msg[2:], ^uint16(sum+sum>>16)) // for IPv6 the kernel does it
	if _, err := c.Write(msg); err != nil {
		return err
	}
	buf := make([]byte, 2000)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	for {
		n, _, err := c.(*net.IPConn).ReadFromIP(buf) // without the IP header
		if err != nil {
			return err
		}
		if n == len(msg) && buf[0] == reply && bytes.Equal(buf[4:n], msg[4:]) {
			return nil
		}
	}
}
