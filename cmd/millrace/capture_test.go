package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma/roce"
)

// A capture that could not begin does not claim that it wrote a file.
func TestCaptureOfNothing(t *testing.T) {
	_, said, status := call(t, "", "capture", "--port", "none0", "--write", filepath.Join(t.TempDir(), "x"))
	if status != exitFailed || !strings.Contains(said, "no network device") || strings.Contains(said, "written") {
		t.Errorf("exit status %d, %s", status, said)
	}
}

// What is captured on loopback decodes to what was sent; other traffic is left
// out, and a damaged packet shows.
func TestCaptureAndDecode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("capturing needs root or CAP_NET_RAW")
	}
	inOwnNetwork(t)
	src, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	raw, err := src.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { // identification 0, as every RoCEv2 packet here
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		t.Fatal(err)
	}
	dst, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	from, to := src.LocalAddr().(*net.UDPAddr).AddrPort(), dst.LocalAddr().(*net.UDPAddr).AddrPort()

	packet := make([]byte, roce.BTHLen+5+3+roce.ICRCLen)
	(*roce.BTH)(packet).Put(roce.SendOnly, 3, 0x123456, true, 99)
	copy(packet[roce.BTHLen:], "grist")
	icrc := roce.NewICRC(roce.AppendPseudo(nil, from, to))
	roce.PutICRC(packet[len(packet)-4:], icrc.Sum(packet[:len(packet)-4]))

	file := filepath.Join(t.TempDir(), "x.pcapng")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	sock, ifc, err := openCapture("lo")
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	go func() {
		_, err := writeCapture(ctx, sock, ifc, file, 3)
		done <- err
	}()
	for {
		for _, p := range [][]byte{[]byte("not RoCE, but long enough to be"), packet} {
			if _, err := src.WriteToUDPAddrPort(p, netip.AddrPortFrom(to.Addr(), to.Port())); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := decode(&out, file); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(lines) != 3 {
				t.Fatalf("%d packets:\n%s", len(lines), out.String())
			}
			want := from.String() + " > " + to.String() + " RC_SEND_ONLY qp 0x123456 psn 99 ackreq data 5"
			for _, l := range lines {
				if !strings.HasSuffix(l, want) {
					t.Errorf("got %q\nwant … %q", l, want)
				}
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Packets that were sent as one train are captured as the wire would carry them:
// lengths, identifications and ICRCs of their own.
func TestCutTrain(t *testing.T) {
	from, to := netip.MustParseAddrPort("192.0.2.1:5000"), netip.MustParseAddrPort("192.0.2.2:6000")
	const n, data = 3, 16
	size := roce.BTHLen + data + roce.ICRCLen
	train := make([]byte, vnetHdrLen+ethernetLen)
	train[gsoTypeOff] = gsoUDPL4
	binary.NativeEndian.PutUint16(train[gsoSizeOff:], uint16(size))
	binary.BigEndian.PutUint16(train[vnetHdrLen+12:], etherIPv4)
	pseudo := roce.AppendPseudo(nil, from, to)
	ip := append([]byte(nil), pseudo[8:]...) // with ones where the ICRC does not look
	binary.BigEndian.PutUint16(ip[2:], uint16(20+8+n*size))
	train = append(train, ip...)
	for i := range n {
		p := make([]byte, size)
		(*roce.BTH)(p).Put(roce.SendOnly, 0, 7, false, uint32(i))
		head := append([]byte(nil), pseudo...)
		roce.PutPseudoLen(head, size)
		head[8+5] = byte(i) // identification
		roce.PutICRC(p[size-4:], roce.Sum(head, p[:size-4]))
		train = append(train, p...)
	}
	i := 0
	for frame := range cutTrain(train) {
		p := findRoCE(frame)
		if p == nil || !p.icrcOK || !strings.Contains(p.String(), fmt.Sprintf("psn %d ", i)) || internetChecksum(frame[ethernetLen:ethernetLen+20]) != 0 {
			t.Errorf("packet %d: %v", i, p)
		}
		i++
	}
	if i != n {
		t.Errorf("%d packets, want %d", i, n)
	}
	for frame := range cutTrain(train[:vnetHdrLen+5]) {
		t.Errorf("a runt gave %d bytes", len(frame))
	}
}

// inOwnNetwork gives the test's thread a network of its own, with a loopback
// device that carries nobody else's packets. The thread ends with the test.
func inOwnNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no network namespace can be made here: ", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
}

func TestCaptureErrors(t *testing.T) {
	if _, err := capture(t.Context(), "no-such-device", "x", 0); err == nil || !strings.Contains(err.Error(), "ip link shows") {
		t.Errorf("capture: %v", err)
	}
	file := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(file, []byte("this is no capture, whatever its name"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := decode(&bytes.Buffer{}, file); err == nil || !strings.Contains(err.Error(), "not a pcapng file") {
		t.Errorf("decode: %v", err)
	}
	if err := decode(&bytes.Buffer{}, file+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("decode: %v", err)
	}
}
