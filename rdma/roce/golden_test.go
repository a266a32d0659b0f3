package roce

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"testing"
)

// golden is one packet of testdata/golden.json, which testdata/golden.py made with
// scapy and zlib.
type golden struct {
	Name    string
	Opcode  Opcode
	PSN     uint32
	IP      string
	Pad     int
	Payload int

	src, dst netip.AddrPort
	ident    uint16
	packet   []byte // what follows the UDP header
}

func goldenPackets(t testing.TB) []golden {
	b, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var gs []golden
	if err := json.Unmarshal(b, &gs); err != nil {
		t.Fatal(err)
	}
	for i := range gs {
		g := &gs[i]
		ip, err := hex.DecodeString(g.IP)
		if err != nil {
			t.Fatal(err)
		}
		var sa, da netip.Addr
		var udp []byte
		if ip[0]>>4 == 4 {
			sa, da, udp = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20])), ip[20:]
			g.ident = binary.BigEndian.Uint16(ip[4:])
		} else {
			sa, da, udp = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40])), ip[40:]
		}
		g.src = netip.AddrPortFrom(sa, binary.BigEndian.Uint16(udp[0:]))
		g.dst = netip.AddrPortFrom(da, binary.BigEndian.Uint16(udp[2:]))
		g.packet = udp[8:]
	}
	return gs
}

func TestGoldenICRC(t *testing.T) {
	for _, g := range goldenPackets(t) {
		body, want := g.packet[:len(g.packet)-ICRCLen], GetICRC(g.packet[len(g.packet)-ICRCLen:])
		pseudo := AppendPseudo(nil, g.src, g.dst)
		if g.ident == 0 {
			c := NewICRC(pseudo)
			if got := c.Sum(body); got != want {
				t.Errorf("%s: ICRC.Sum = %08x, want %08x", g.Name, got, want)
			}
		} else {
			binary.BigEndian.PutUint16(pseudo[8+4:], g.ident)
		}
		PutPseudoLen(pseudo, len(g.packet))
		if got := Sum(pseudo, body); got != want {
			t.Errorf("%s: Sum = %08x, want %08x", g.Name, got, want)
		}
		body[4] ^= 0xff // congestion bits are not covered
		if got := Sum(pseudo, body); got != want {
			t.Errorf("%s: the ICRC covers the BTH's fifth byte", g.Name)
		}
		body[0] ^= 1
		if got := Sum(pseudo, body); got == want {
			t.Errorf("%s: the ICRC does not cover the opcode", g.Name)
		}
	}
}

func TestGoldenHeaders(t *testing.T) {
	for _, g := range goldenPackets(t) {
		h := (*BTH)(g.packet)
		op := h.Opcode()
		if op != g.Opcode || h.PSN() != g.PSN || h.Pad() != g.Pad || h.TVer() != 0 || h.PKey() != DefaultPKey || !h.MigReq() ||
			h.DestQPN() != 0xabcde0+uint32(op&15) {
			t.Errorf("%s: parsed as %v psn %d pad %d qpn %#x", g.Name, op, h.PSN(), h.Pad(), h.DestQPN())
		}
		if n := len(g.packet) - op.HeaderLen() - g.Pad - ICRCLen; n != g.Payload {
			t.Errorf("%s: payload of %d bytes, want %d", g.Name, n, g.Payload)
		}
		var put BTH
		put.Put(op, g.Pad, h.DestQPN(), h.AckReq(), g.PSN)
		if put != *h {
			t.Errorf("%s: Put gives %x, want %x", g.Name, put, *h)
		}

		ext := g.packet[BTHLen:]
		p := op.Props()
		if p&HasRETH != 0 {
			r := (*RETH)(ext)
			var put RETH
			put.Put(r.VA(), r.RKey(), r.DMALen())
			if put != *r {
				t.Errorf("%s: RETH %x, want %x", g.Name, put, *r)
			}
			ext = ext[RETHLen:]
		}
		if p&HasAtomicETH != 0 {
			a := (*AtomicETH)(ext)
			var put AtomicETH
			put.Put(a.VA(), a.RKey(), a.SwapAdd(), a.Compare())
			if put != *a {
				t.Errorf("%s: AtomicETH %x, want %x", g.Name, put, *a)
			}
		}
		if p&HasAETH != 0 {
			a := (*AETH)(ext)
			var put AETH
			put.Put(a.Syndrome(), a.MSN())
			if put != *a {
				t.Errorf("%s: AETH %x, want %x", g.Name, put, *a)
			}
			ext = ext[AETHLen:]
		}
		if p&HasAtomicAckETH != 0 && (*AtomicAckETH)(ext).Orig() != 0x1122334455667788 {
			t.Errorf("%s: AtomicAckETH %x", g.Name, ext[:8])
		}
		if p&HasImmDt != 0 {
			i := (*ImmDt)(ext)
			var put ImmDt
			put.Put(i.Value())
			if put != *i {
				t.Errorf("%s: ImmDt %x, want %x", g.Name, put, *i)
			}
		}
	}
}
