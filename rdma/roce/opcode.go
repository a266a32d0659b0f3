package roce

import "fmt"

// Opcode is the first byte of the BTH: the transport class in bits 7:5, the
// operation in bits 4:0 (IBTA vol. 1, table 35).
type Opcode uint8

// Operations of reliable connections.
const (
	SendFirst          Opcode = 0x00
	SendMiddle         Opcode = 0x01
	SendLast           Opcode = 0x02
	SendLastImm        Opcode = 0x03
	SendOnly           Opcode = 0x04
	SendOnlyImm        Opcode = 0x05
	WriteFirst         Opcode = 0x06
	WriteMiddle        Opcode = 0x07
	WriteLast          Opcode = 0x08
	WriteLastImm       Opcode = 0x09
	WriteOnly          Opcode = 0x0a
	WriteOnlyImm       Opcode = 0x0b
	ReadRequest        Opcode = 0x0c
	ReadResponseFirst  Opcode = 0x0d
	ReadResponseMiddle Opcode = 0x0e
	ReadResponseLast   Opcode = 0x0f
	ReadResponseOnly   Opcode = 0x10
	Acknowledge        Opcode = 0x11
	AtomicAcknowledge  Opcode = 0x12
	CompareSwap        Opcode = 0x13
	FetchAdd           Opcode = 0x14
	classShift                = 5
	maxRC                     = FetchAdd
)

// Class is the transport class of an opcode.
type Class uint8

// Transport classes.
const (
	RC Class = iota
	UC
	RD
	UD
)

// Class is the opcode's transport class; values above UD are reserved or the
// manufacturer's, except 0x81, the congestion notification packet.
func (o Opcode) Class() Class { return Class(o >> classShift) }

// Props tells what a packet of an opcode consists of and where in a message it
// stands.
type Props uint16

const (
	HasImmDt        Props = 1 << iota // an ImmDt follows
	HasRETH                           // a RETH follows
	HasAETH                           // an AETH follows
	HasAtomicETH                      // an AtomicETH follows
	HasAtomicAckETH                   // an AtomicAckETH follows the AETH
	HasPayload                        // a payload may follow
	Start                             // the message's first packet
	End                               // the message's last packet
	IsRequest                         // requester to responder
	IsResponse                        // responder to requester
	IsSend                            // consumes a receive buffer: the SEND operations
)

var props = [32]Props{
	SendFirst:          IsRequest | IsSend | HasPayload | Start,
	SendMiddle:         IsRequest | IsSend | HasPayload,
	SendLast:           IsRequest | IsSend | HasPayload | End,
	SendLastImm:        IsRequest | IsSend | HasPayload | End | HasImmDt,
	SendOnly:           IsRequest | IsSend | HasPayload | Start | End,
	SendOnlyImm:        IsRequest | IsSend | HasPayload | Start | End | HasImmDt,
	WriteFirst:         IsRequest | HasPayload | Start | HasRETH,
	WriteMiddle:        IsRequest | HasPayload,
	WriteLast:          IsRequest | HasPayload | End,
	WriteLastImm:       IsRequest | HasPayload | End | HasImmDt,
	WriteOnly:          IsRequest | HasPayload | Start | End | HasRETH,
	WriteOnlyImm:       IsRequest | HasPayload | Start | End | HasRETH | HasImmDt,
	ReadRequest:        IsRequest | Start | End | HasRETH,
	ReadResponseFirst:  IsResponse | HasPayload | Start | HasAETH,
	ReadResponseMiddle: IsResponse | HasPayload,
	ReadResponseLast:   IsResponse | HasPayload | End | HasAETH,
	ReadResponseOnly:   IsResponse | HasPayload | Start | End | HasAETH,
	Acknowledge:        IsResponse | Start | End | HasAETH,
	AtomicAcknowledge:  IsResponse | Start | End | HasAETH | HasAtomicAckETH,
	CompareSwap:        IsRequest | Start | End | HasAtomicETH,
	FetchAdd:           IsRequest | Start | End | HasAtomicETH,
}

var headerLens = func() (t [32]uint8) {
	for op, p := range props {
		n := BTHLen
		for _, x := range []struct {
			bit Props
			len int
		}{{HasImmDt, ImmDtLen}, {HasRETH, RETHLen}, {HasAETH, AETHLen}, {HasAtomicETH, AtomicETHLen}, {HasAtomicAckETH, AtomicAckETHLen}} {
			if p&x.bit != 0 {
				n += x.len
			}
		}
		t[op] = uint8(n)
	}
	return t
}()

// Props describes an opcode of class RC; it is 0 for one that is not defined or
// of another class.
func (o Opcode) Props() Props {
	if o > maxRC {
		return 0
	}
	return props[o&31]
}

// HeaderLen is the length of BTH and extension headers of an opcode of class RC.
func (o Opcode) HeaderLen() int { return int(headerLens[o&31]) }

var opNames = [...]string{
	"SEND_FIRST", "SEND_MIDDLE", "SEND_LAST", "SEND_LAST_WITH_IMMEDIATE", "SEND_ONLY", "SEND_ONLY_WITH_IMMEDIATE",
	"RDMA_WRITE_FIRST", "RDMA_WRITE_MIDDLE", "RDMA_WRITE_LAST", "RDMA_WRITE_LAST_WITH_IMMEDIATE", "RDMA_WRITE_ONLY",
	"RDMA_WRITE_ONLY_WITH_IMMEDIATE", "RDMA_READ_REQUEST", "RDMA_READ_RESPONSE_FIRST", "RDMA_READ_RESPONSE_MIDDLE",
	"RDMA_READ_RESPONSE_LAST", "RDMA_READ_RESPONSE_ONLY", "ACKNOWLEDGE", "ATOMIC_ACKNOWLEDGE", "COMPARE_SWAP", "FETCH_ADD",
}

var classNames = [...]string{"RC", "UC", "RD", "UD"}

// String is the specification's name, for instance RC_SEND_ONLY.
func (o Opcode) String() string {
	c, op := int(o.Class()), int(o&31)
	if c >= len(classNames) || op >= len(opNames) {
		return fmt.Sprintf("opcode %#02x", uint8(o))
	}
	return classNames[c] + "_" + opNames[op]
}
