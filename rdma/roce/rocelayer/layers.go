// Package rocelayer has gopacket layers for RoCEv2 captures: importing it makes
// gopacket decode UDP port 4791. It is apart from roce so that the data path does
// not link gopacket.
//
// A decoded packet shares the capture's bytes unless gopacket was told to copy.
package rocelayer

import (
	"fmt"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/millrace/millrace/rdma/roce"
)

// Layer types. gopacket keeps 0 to 999 for itself and asks others to choose a
// number between 1000 and 1999.
var (
	LayerTypeBTH          = gopacket.RegisterLayerType(1791, gopacket.LayerTypeMetadata{Name: "BTH", Decoder: gopacket.DecodeFunc(decodeBTH)})
	LayerTypeRETH         = gopacket.RegisterLayerType(1792, gopacket.LayerTypeMetadata{Name: "RETH", Decoder: extension(roce.HasRETH)})
	LayerTypeAtomicETH    = gopacket.RegisterLayerType(1793, gopacket.LayerTypeMetadata{Name: "AtomicETH", Decoder: extension(roce.HasAtomicETH)})
	LayerTypeAETH         = gopacket.RegisterLayerType(1794, gopacket.LayerTypeMetadata{Name: "AETH", Decoder: extension(roce.HasAETH)})
	LayerTypeAtomicAckETH = gopacket.RegisterLayerType(1795, gopacket.LayerTypeMetadata{Name: "AtomicAckETH", Decoder: extension(roce.HasAtomicAckETH)})
	LayerTypeImmDt        = gopacket.RegisterLayerType(1796, gopacket.LayerTypeMetadata{Name: "ImmDt", Decoder: extension(roce.HasImmDt)})
)

func init() {
	layers.RegisterUDPPortLayerType(layers.UDPPort(roce.UDPPort), LayerTypeBTH)
}

// BTH is the base transport header and the ICRC at the packet's end. Its payload
// is what lies between, without the pad.
type BTH struct {
	layers.BaseLayer
	Opcode    roce.Opcode
	Solicited bool
	MigReq    bool
	Pad       int
	TVer      uint8
	PKey      uint16
	FECN      bool
	BECN      bool
	DestQPN   uint32
	AckReq    bool
	PSN       uint32
	ICRC      uint32 // host order; not checked
}

// LayerType is LayerTypeBTH.
func (*BTH) LayerType() gopacket.LayerType { return LayerTypeBTH }

// RETH is the RDMA extended transport header.
type RETH struct {
	layers.BaseLayer
	VA     uint64
	RKey   uint32
	DMALen uint32
}

// LayerType is LayerTypeRETH.
func (*RETH) LayerType() gopacket.LayerType { return LayerTypeRETH }

// AtomicETH is the atomic extended transport header.
type AtomicETH struct {
	layers.BaseLayer
	VA      uint64
	RKey    uint32
	SwapAdd uint64
	Compare uint64
}

// LayerType is LayerTypeAtomicETH.
func (*AtomicETH) LayerType() gopacket.LayerType { return LayerTypeAtomicETH }

// AETH is the acknowledge extended transport header.
type AETH struct {
	layers.BaseLayer
	Syndrome roce.Syndrome
	MSN      uint32
}

// LayerType is LayerTypeAETH.
func (*AETH) LayerType() gopacket.LayerType { return LayerTypeAETH }

// AtomicAckETH is the atomic acknowledge extended transport header.
type AtomicAckETH struct {
	layers.BaseLayer
	Orig uint64
}

// LayerType is LayerTypeAtomicAckETH.
func (*AtomicAckETH) LayerType() gopacket.LayerType { return LayerTypeAtomicAckETH }

// ImmDt is the immediate data header.
type ImmDt struct {
	layers.BaseLayer
	Value uint32
}

// LayerType is LayerTypeImmDt.
func (*ImmDt) LayerType() gopacket.LayerType { return LayerTypeImmDt }

func decodeBTH(data []byte, p gopacket.PacketBuilder) error {
	if len(data) < roce.MinPacket {
		p.SetTruncated()
		return fmt.Errorf("BTH: %d bytes, want at least %d", len(data), roce.MinPacket)
	}
	h := (*roce.BTH)(data)
	end := len(data) - roce.ICRCLen
	b := &BTH{
		Opcode: h.Opcode(), Solicited: h.Solicited(), MigReq: h.MigReq(), Pad: h.Pad(), TVer: h.TVer(), PKey: h.PKey(),
		FECN: h.FECN(), BECN: h.BECN(), DestQPN: h.DestQPN(), AckReq: h.AckReq(), PSN: h.PSN(), ICRC: roce.GetICRC(data[end:]),
	}
	end -= b.Pad
	if end < roce.BTHLen {
		p.SetTruncated()
		return fmt.Errorf("BTH: %d bytes cannot hold a pad of %d", len(data), b.Pad)
	}
	b.BaseLayer = layers.BaseLayer{Contents: data[:roce.BTHLen], Payload: data[roce.BTHLen:end]}
	p.AddLayer(b)
	return next(p, b.Opcode.Props())
}

// order is how extension headers follow each other (IBTA vol. 1, table 35).
var order = [...]roce.Props{roce.HasRETH, roce.HasAtomicETH, roce.HasAETH, roce.HasAtomicAckETH, roce.HasImmDt}

// next decodes what follows a header, given the properties of which those already
// decoded are removed.
func next(p gopacket.PacketBuilder, rest roce.Props) error {
	for _, bit := range order {
		if rest&bit != 0 {
			return p.NextDecoder(extension(rest))
		}
	}
	return p.NextDecoder(gopacket.LayerTypePayload)
}

// extension decodes the first extension header of rest, then the others.
type extension roce.Props

// Decode implements gopacket.Decoder.
func (e extension) Decode(data []byte, p gopacket.PacketBuilder) error {
	rest := roce.Props(e)
	base := func(n int) (layers.BaseLayer, error) {
		if len(data) < n {
			p.SetTruncated()
			return layers.BaseLayer{}, fmt.Errorf("RoCE extension header: %d bytes, want %d", len(data), n)
		}
		return layers.BaseLayer{Contents: data[:n], Payload: data[n:]}, nil
	}
	var l gopacket.Layer
	var bit roce.Props
	for _, bit = range order {
		if rest&bit != 0 {
			break
		}
	}
	switch bit {
	case roce.HasRETH:
		b, err := base(roce.RETHLen)
		if err != nil {
			return err
		}
		h := (*roce.RETH)(data)
		l = &RETH{BaseLayer: b, VA: h.VA(), RKey: h.RKey(), DMALen: h.DMALen()}
	case roce.HasAtomicETH:
		b, err := base(roce.AtomicETHLen)
		if err != nil {
			return err
		}
		h := (*roce.AtomicETH)(data)
		l = &AtomicETH{BaseLayer: b, VA: h.VA(), RKey: h.RKey(), SwapAdd: h.SwapAdd(), Compare: h.Compare()}
	case roce.HasAETH:
		b, err := base(roce.AETHLen)
		if err != nil {
			return err
		}
		h := (*roce.AETH)(data)
		l = &AETH{BaseLayer: b, Syndrome: h.Syndrome(), MSN: h.MSN()}
	case roce.HasAtomicAckETH:
		b, err := base(roce.AtomicAckETHLen)
		if err != nil {
			return err
		}
		l = &AtomicAckETH{BaseLayer: b, Orig: (*roce.AtomicAckETH)(data).Orig()}
	default:
		b, err := base(roce.ImmDtLen)
		if err != nil {
			return err
		}
		l = &ImmDt{BaseLayer: b, Value: (*roce.ImmDt)(data).Value()}
	}
	p.AddLayer(l)
	return next(p, rest&^bit)
}
