package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/rdma/roce"
	"github.com/millrace/millrace/rdma/roce/rocelayer"
)

// tsharkFields are compared in this order; see describe.
var tsharkFields = []string{
	"infiniband.bth.opcode", "infiniband.bth.se", "infiniband.bth.m", "infiniband.bth.padcnt", "infiniband.bth.tver",
	"infiniband.bth.p_key", "infiniband.bth.destqp", "infiniband.bth.a", "infiniband.bth.psn",
	"infiniband.reth.va", "infiniband.reth.r_key", "infiniband.reth.dmalen",
	"infiniband.atomiceth.swapdt", "infiniband.atomiceth.cmpdt",
	"infiniband.aeth.syndrome", "infiniband.aeth.msn", "infiniband.atomicacketh.origremdt", "infiniband.immdt",
	"infiniband.invariant.crc", "data.data",
}

// A capture of packets of every opcode, over both IP versions, reads the same in
// our layers and in tshark: every field, and the payload byte by byte.
func TestCaptureReadsLikeTshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("no tshark here to compare with: apt-get install tshark")
	}
	if os.Geteuid() != 0 {
		t.Skip("capturing needs root or CAP_NET_RAW")
	}
	inOwnNetwork(t)
	const each = 3
	file := filepath.Join(t.TempDir(), "every.pcapng")
	captureEveryOpcode(t, file, each)
	ours := readWithLayers(t, file)
	theirs := readWithTshark(t, tshark, file)
	if len(ours) != len(theirs) || len(ours) < each*int(roce.FetchAdd+1) {
		t.Fatalf("%d packets here, %d in tshark", len(ours), len(theirs))
	}
	for i := range ours {
		if ours[i] != theirs[i] {
			t.Errorf("packet %d, in the order of\n       %v\nhere   %s\ntshark %s", i, tsharkFields, ours[i], theirs[i])
		}
	}
}

// captureEveryOpcode sends random packets of every opcode over loopback and
// captures them.
func captureEveryOpcode(t *testing.T, file string, each int) {
	t.Helper()
	type end struct {
		conn     *net.UDPConn
		from, to netip.AddrPort
	}
	var ends []end
	for _, ip := range []string{"127.0.0.1", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(ip), roce.UDPPort)
		sink, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
		if err != nil {
			t.Logf("no packets over %s: %v", ip, err)
			continue
		}
		defer sink.Close()
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr(), 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if to.Addr().Is4() { // identification 0
			raw, err := c.SyscallConn()
			if err == nil {
				_ = raw.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
				})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		ends = append(ends, end{c, c.LocalAddr().(*net.UDPAddr).AddrPort(), to})
	}
	sock, ifc, err := openCapture("lo")
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	total := len(ends) * each * int(roce.FetchAdd+1)
	done := make(chan error, 1)
	go func() {
		n, err := writeCapture(ctx, sock, ifc, file, total)
		if err == nil && n != total {
			err = fmt.Errorf("%d of %d packets", n, total)
		}
		done <- err
	}()
	rng := rand.New(rand.NewPCG(23, 1))
	for range each {
		for op := roce.SendFirst; op <= roce.FetchAdd; op++ {
			for _, e := range ends {
				if _, err := e.conn.WriteToUDPAddrPort(anyPacket(rng, op, e.from, e.to), e.to); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// anyPacket is a packet of that opcode with random fields.
func anyPacket(rng *rand.Rand, op roce.Opcode, from, to netip.AddrPort) []byte {
	payload := 0
	if op.Props()&roce.HasPayload != 0 {
		payload = 1 + rng.IntN(600)
	}
	p := make([]byte, op.HeaderLen()+payload+(-payload&3)+roce.ICRCLen)
	for i := range p[:op.HeaderLen()+payload] {
		p[i] = byte(rng.Uint32())
	}
	h := (*roce.BTH)(p)
	h.Put(op, -payload&3, rng.Uint32(), rng.IntN(2) == 1, rng.Uint32())
	if rng.IntN(2) == 1 {
		h.SetSolicited()
	}
	covered := p[:len(p)-roce.ICRCLen]
	icrc := roce.NewICRC(roce.AppendPseudo(nil, from, to))
	roce.PutICRC(p[len(covered):], icrc.Sum(covered))
	return p
}

// readWithLayers describes the packets of a capture by our layers.
func readWithLayers(t *testing.T, file string) (lines []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, _, err := r.ReadPacketData()
		if err != nil {
			return lines
		}
		lines = append(lines, describe(gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)))
	}
}

// describe prints a packet in the order of tsharkFields, as tshark prints it; absent
// headers leave their fields empty.
func describe(p gopacket.Packet) string {
	b, ok := p.Layer(rocelayer.LayerTypeBTH).(*rocelayer.BTH)
	if !ok {
		return "no BTH"
	}
	bit := map[bool]string{true: "1", false: "0"}
	f := []string{
		fmt.Sprint(uint8(b.Opcode)), bit[b.Solicited], bit[b.MigReq], fmt.Sprint(b.Pad), fmt.Sprint(b.TVer), fmt.Sprint(b.PKey),
		fmt.Sprintf("0x%06x", b.DestQPN), bit[b.AckReq], fmt.Sprint(b.PSN),
	}
	va, rkey, dmaLen, swap, compare := "", "", "", "", ""
	if r, ok := p.Layer(rocelayer.LayerTypeRETH).(*rocelayer.RETH); ok {
		va, rkey, dmaLen = fmt.Sprintf("0x%016x", r.VA), fmt.Sprintf("0x%08x", r.RKey), fmt.Sprint(r.DMALen)
	}
	if a, ok := p.Layer(rocelayer.LayerTypeAtomicETH).(*rocelayer.AtomicETH); ok {
		va, rkey = fmt.Sprintf("0x%016x", a.VA), fmt.Sprintf("0x%08x", a.RKey)
		swap, compare = fmt.Sprint(a.SwapAdd), fmt.Sprint(a.Compare)
	}
	f = append(f, va, rkey, dmaLen, swap, compare)
	syndrome, msn, orig, imm, payload := "", "", "", "", ""
	if a, ok := p.Layer(rocelayer.LayerTypeAETH).(*rocelayer.AETH); ok {
		syndrome, msn = fmt.Sprint(uint8(a.Syndrome)), fmt.Sprint(a.MSN)
	}
	if a, ok := p.Layer(rocelayer.LayerTypeAtomicAckETH).(*rocelayer.AtomicAckETH); ok {
		orig = fmt.Sprint(a.Orig)
	}
	if i, ok := p.Layer(rocelayer.LayerTypeImmDt).(*rocelayer.ImmDt); ok {
		imm = fmt.Sprintf("%08x", i.Value)
	}
	if app := p.ApplicationLayer(); app != nil {
		payload = fmt.Sprintf("%x", app.Payload()) + strings.Repeat("00", b.Pad) // which tshark counts as data
	}
	crc := binary.LittleEndian.AppendUint32(nil, b.ICRC)
	return strings.Join(append(f, syndrome, msn, orig, imm, fmt.Sprintf("0x%x", crc), payload), "|")
}

func readWithTshark(t *testing.T, tshark, file string) []string {
	t.Helper()
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=|", "-E", "occurrence=f"} // it shows the immediate twice
	// What else tshark might take a random payload for (tshark -G heuristic-decodes).
	for _, guess := range []string{"smc", "smb_direct", "rpcordma", "nvme-rdma", "lnet", "iser", "infiniband_sdp", "fcoib"} {
		args = append(args, "--disable-protocol", guess)
	}
	for _, f := range tsharkFields {
		args = append(args, "-e", f)
	}
	cmd := exec.Command(tshark, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, &errs)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
