package rocelayer

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/millrace/millrace/rdma/roce"
)

func TestGoldenPackets(t *testing.T) {
	raw, err := os.ReadFile("../testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var gs []struct {
		Name, IP     string
		Opcode       roce.Opcode
		PSN          uint32
		Pad, Payload int
	}
	if err := json.Unmarshal(raw, &gs); err != nil {
		t.Fatal(err)
	}
	for _, g := range gs {
		b, err := hex.DecodeString(g.IP)
		if err != nil {
			t.Fatal(err)
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if b[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(b, first, gopacket.Default)
		if e := p.ErrorLayer(); e != nil {
			t.Errorf("%s: %v", g.Name, e.Error())
			continue
		}
		h, ok := p.Layer(LayerTypeBTH).(*BTH)
		if !ok {
			t.Errorf("%s: no BTH in %v", g.Name, p)
			continue
		}
		if h.Opcode != g.Opcode || h.PSN != g.PSN || h.Pad != g.Pad || h.PKey != roce.DefaultPKey || !h.MigReq {
			t.Errorf("%s: %+v", g.Name, h)
		}
		if h.ICRC != roce.GetICRC(b[len(b)-4:]) {
			t.Errorf("%s: ICRC %08x", g.Name, h.ICRC)
		}
		udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !CheckICRC(p.NetworkLayer(), udp, udp.Payload) {
			t.Errorf("%s: a correct ICRC was refused", g.Name)
		}
		udp.Payload[len(udp.Payload)/2] ^= 1
		if CheckICRC(p.NetworkLayer(), udp, udp.Payload) {
			t.Errorf("%s: a flipped bit went unnoticed", g.Name)
		}
		udp.Payload[len(udp.Payload)/2] ^= 1
		n := 0
		if app := p.ApplicationLayer(); app != nil {
			n = len(app.Payload())
		}
		if n != g.Payload {
			t.Errorf("%s: payload of %d bytes, want %d", g.Name, n, g.Payload)
		}
		props := g.Opcode.Props()
		for bit, lt := range map[roce.Props]gopacket.LayerType{
			roce.HasRETH: LayerTypeRETH, roce.HasAtomicETH: LayerTypeAtomicETH, roce.HasAETH: LayerTypeAETH,
			roce.HasAtomicAckETH: LayerTypeAtomicAckETH, roce.HasImmDt: LayerTypeImmDt,
		} {
			if got := p.Layer(lt) != nil; got != (props&bit != 0) {
				t.Errorf("%s: layer %v present: %v", g.Name, lt, got)
			}
		}
		switch g.Name {
		case "write_only_imm_2/v6":
			r, i := p.Layer(LayerTypeRETH).(*RETH), p.Layer(LayerTypeImmDt).(*ImmDt)
			if r.VA != 1<<63 || r.RKey != 7 || r.DMALen != 2 || i.Value != 0x01020304 {
				t.Errorf("%s: %+v %+v", g.Name, r, i)
			}
		case "nak_sequence/v4":
			if a := p.Layer(LayerTypeAETH).(*AETH); a.Syndrome != roce.NAKSequence || a.MSN != 0x010204 {
				t.Errorf("%s: %+v", g.Name, a)
			}
		case "compare_swap/v4":
			if a := p.Layer(LayerTypeAtomicETH).(*AtomicETH); a.VA != 0x1000 || a.SwapAdd != 5 || a.Compare != 6 {
				t.Errorf("%s: %+v", g.Name, a)
			}
		case "atomic_ack/v6":
			if a := p.Layer(LayerTypeAtomicAckETH).(*AtomicAckETH); a.Orig != 0x1122334455667788 {
				t.Errorf("%s: %+v", g.Name, a)
			}
		}
	}
}

// FuzzDecode decodes arbitrary bytes as a packet after the UDP header; gopacket
// turns a panic in a decoder into an error layer unless told not to.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, roce.MinPacket))
	f.Add(append([]byte{byte(roce.WriteOnlyImm), 0x70}, make([]byte, 40)...))
	f.Add(append([]byte{byte(roce.AtomicAcknowledge)}, make([]byte, 18)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := gopacket.NewPacket(data, LayerTypeBTH, gopacket.DecodeOptions{SkipDecodeRecovery: true, NoCopy: true})
		if h, ok := p.Layer(LayerTypeBTH).(*BTH); ok && len(h.Payload)+h.Pad+roce.MinPacket != len(data) {
			t.Fatalf("%d bytes of payload and %d of pad in %d", len(h.Payload), h.Pad, len(data))
		}
	})
}
