package roce

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// scapy is a Python that has scapy.contrib.roce; the test skips if there is none.
func scapy(t *testing.T) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} { // Debian's scapy is Debian's Python's
		if exec.Command(python, "-c", "import scapy.contrib.roce").Run() == nil {
			return python
		}
	}
	t.Skip("no scapy here to compare with: apt-get install python3-scapy")
	return ""
}

// randomPacket is an IP packet with a RoCEv2 packet of that opcode, whatever may vary
// in it at random, and our ICRC.
func randomPacket(rng *rand.Rand, op Opcode, v6 bool) []byte {
	fill := func(b []byte) []byte {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	addr := func() netip.Addr {
		if v6 {
			return netip.AddrFrom16([16]byte(fill(make([]byte, 16))))
		}
		return netip.AddrFrom4([4]byte(fill(make([]byte, 4))))
	}
	src, dst := netip.AddrPortFrom(addr(), uint16(49152+rng.IntN(1<<14))), netip.AddrPortFrom(addr(), UDPPort)

	pad, payload := 0, 0
	if op.Props()&HasPayload != 0 {
		payload = rng.IntN(4097)
		pad = -payload & 3
	}
	p := fill(make([]byte, op.HeaderLen()+payload+pad+ICRCLen))
	h := (*BTH)(p)
	h.Put(op, pad, rng.Uint32(), rng.IntN(2) == 1, rng.Uint32())
	if rng.IntN(2) == 1 {
		h.SetSolicited()
	}
	binary.BigEndian.PutUint16(p[2:], uint16(rng.Uint32())) // P_Key
	h[4] = byte(rng.Uint32()) & 0xc0                        // FECN, BECN

	pseudo := AppendPseudo(nil, src, dst)
	PutPseudoLen(pseudo, len(p))
	if !v6 {
		binary.BigEndian.PutUint16(pseudo[lrhLen+4:], uint16(rng.Uint32())) // identification
		pseudo[lrhLen+6] = byte(rng.IntN(2)) << 6                           // don't fragment
	}
	PutICRC(p[len(p)-ICRCLen:], Sum(pseudo, p[:len(p)-ICRCLen]))

	ip := append(bytes.Clone(pseudo[lrhLen:]), p...)
	if v6 {
		binary.BigEndian.PutUint32(ip, 6<<28|rng.Uint32()>>4)
		ip[7], ip[ipv6Len+6], ip[ipv6Len+7] = byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())
	} else {
		ip[1], ip[8] = byte(rng.Uint32()), byte(rng.Uint32())
		fill(ip[10:12])
		fill(ip[ipv4Len+6 : ipv4Len+8])
	}
	return ip
}

// Our ICRCs are those that scapy computes, for packets of every opcode with random
// content, addresses, identification and congestion bits.
func TestICRCAgreesWithScapy(t *testing.T) {
	python := scapy(t)
	const each = 12
	rng := rand.New(rand.NewPCG(17, 1))
	var packets [][]byte
	var in strings.Builder
	for op := range maxRC + 1 {
		for i := range 2 * each {
			ip := randomPacket(rng, op, i%2 == 1)
			packets = append(packets, ip)
			in.WriteString(hex.EncodeToString(ip) + "\n")
		}
	}
	cmd := exec.Command(python, "testdata/scapy_icrc.py")
	cmd.Stdin = strings.NewReader(in.String())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	sums := strings.Fields(string(out))
	if len(sums) != len(packets) {
		t.Fatalf("%d answers for %d packets\n%s", len(sums), len(packets), &errs)
	}
	for i, ip := range packets {
		if got := hex.EncodeToString(ip[len(ip)-ICRCLen:]); got != sums[i] {
			t.Errorf("IPv%c packet %d, %v: ICRC %s, scapy has %s", "46"[i%2], i, Opcode(i/(2*each)), got, sums[i])
		}
	}
}
