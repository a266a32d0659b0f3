package roce

import "encoding/binary"

const (
	// UDPPort is the destination port that IANA assigned to RoCEv2.
	UDPPort = 4791

	// Lengths of the headers on the wire, bytes (IBTA vol. 1, chapter 9.2–9.3).
	BTHLen          = 12
	AETHLen         = 4
	ImmDtLen        = 4
	RETHLen         = 16
	AtomicETHLen    = 28
	AtomicAckETHLen = 8
	ICRCLen         = 4

	// MinPacket is the shortest packet: a BTH and the ICRC.
	MinPacket = BTHLen + ICRCLen

	// DefaultPKey is the default partition with full membership.
	DefaultPKey = 0xffff

	// MaxQPN is the largest queue pair number and PSNMask the largest packet
	// sequence number: both have 24 bits.
	MaxQPN = 1<<24 - 1
)

// BTH is the base transport header, as it lies on the wire. To view the header
// of a packet of at least BTHLen bytes, convert: (*BTH)(packet).
type BTH [BTHLen]byte

const (
	bthSolicited = 1 << 7
	bthMigReq    = 1 << 6
	bthAckReq    = 1 << 31
	bthUnasked   = 1 << 30
)

// Put writes a header: transport version 0, the default partition, migration
// state "migrated", which is that of a connection without automatic path
// migration (IBTA vol. 1, §9.2.3, §17.2.8). pad is 0 to 3; psn and destQPN are
// taken modulo 2^24.
func (h *BTH) Put(op Opcode, pad int, destQPN uint32, ackReq bool, psn uint32) {
	w := psn & PSNMask
	if ackReq {
		w |= bthAckReq
	}
	binary.BigEndian.PutUint32(h[0:], uint32(op)<<24|bthMigReq<<16|uint32(pad&3)<<20|DefaultPKey)
	binary.BigEndian.PutUint32(h[4:], destQPN&MaxQPN)
	binary.BigEndian.PutUint32(h[8:], w)
}

// Opcode is transport class and operation.
func (h *BTH) Opcode() Opcode { return Opcode(h[0]) }

// Solicited tells whether the sender asks for a completion event.
func (h *BTH) Solicited() bool { return h[1]&bthSolicited != 0 }

// SetSolicited sets the solicited event bit.
func (h *BTH) SetSolicited() { h[1] |= bthSolicited }

// MigReq is the migration state bit.
func (h *BTH) MigReq() bool { return h[1]&bthMigReq != 0 }

// Pad is the number of bytes between payload and ICRC, 0 to 3.
func (h *BTH) Pad() int { return int(h[1] >> 4 & 3) }

// TVer is the transport version; 0 is the only one defined.
func (h *BTH) TVer() uint8 { return h[1] & 0xf }

// PKey is the partition key.
func (h *BTH) PKey() uint16 { return binary.BigEndian.Uint16(h[2:]) }

// FECN and BECN are the congestion notification bits, the only part of the
// header that the ICRC does not cover.
func (h *BTH) FECN() bool { return h[4]&0x80 != 0 }

// BECN is the backward congestion notification bit.
func (h *BTH) BECN() bool { return h[4]&0x40 != 0 }

// DestQPN is the destination queue pair number.
func (h *BTH) DestQPN() uint32 { return binary.BigEndian.Uint32(h[4:]) & MaxQPN }

// AckReq tells whether the sender asks for an acknowledgement.
func (h *BTH) AckReq() bool { return h[8]&0x80 != 0 }

// PutUnasked writes psn, taken modulo 2^24, and that the sender waits for no
// acknowledgement, ever: a bit that the specification reserves and receivers ignore.
func (h *BTH) PutUnasked(psn uint32) { binary.BigEndian.PutUint32(h[8:], psn&PSNMask|bthUnasked) }

// Unasked tells whether PutUnasked wrote the packet sequence number.
func (h *BTH) Unasked() bool { return h[8]&0xc0 == bthUnasked>>24 }

// PSN is the packet sequence number.
func (h *BTH) PSN() uint32 { return binary.BigEndian.Uint32(h[8:]) & PSNMask }

// AETH is the acknowledge extended transport header on the wire.
type AETH [AETHLen]byte

// Put writes a header; msn is taken modulo 2^24.
func (h *AETH) Put(s Syndrome, msn uint32) {
	binary.BigEndian.PutUint32(h[:], uint32(s)<<24|msn&PSNMask)
}

// Syndrome tells what kind of acknowledgement this is.
func (h *AETH) Syndrome() Syndrome { return Syndrome(h[0]) }

// MSN is the message sequence number: messages that the responder finished.
func (h *AETH) MSN() uint32 { return binary.BigEndian.Uint32(h[:]) & PSNMask }

// ImmDt is the immediate data header on the wire.
type ImmDt [ImmDtLen]byte

// Put writes v, which is in host order.
func (h *ImmDt) Put(v uint32) { binary.BigEndian.PutUint32(h[:], v) }

// Value is the immediate data in host order.
func (h *ImmDt) Value() uint32 { return binary.BigEndian.Uint32(h[:]) }

// RETH is the RDMA extended transport header on the wire.
type RETH [RETHLen]byte

// Put writes a header: remote address, remote key, length of the transfer in bytes.
func (h *RETH) Put(va uint64, rkey, dmaLen uint32) {
	binary.BigEndian.PutUint64(h[0:], va)
	binary.BigEndian.PutUint32(h[8:], rkey)
	binary.BigEndian.PutUint32(h[12:], dmaLen)
}

// VA is the remote virtual address.
func (h *RETH) VA() uint64 { return binary.BigEndian.Uint64(h[0:]) }

// RKey is the remote key.
func (h *RETH) RKey() uint32 { return binary.BigEndian.Uint32(h[8:]) }

// DMALen is the length of the whole transfer, bytes.
func (h *RETH) DMALen() uint32 { return binary.BigEndian.Uint32(h[12:]) }

// AtomicETH is the atomic extended transport header on the wire.
type AtomicETH [AtomicETHLen]byte

// Put writes a header. For FETCH_ADD swapAdd is the addend and compare is unused.
func (h *AtomicETH) Put(va uint64, rkey uint32, swapAdd, compare uint64) {
	binary.BigEndian.PutUint64(h[0:], va)
	binary.BigEndian.PutUint32(h[8:], rkey)
	binary.BigEndian.PutUint64(h[12:], swapAdd)
	binary.BigEndian.PutUint64(h[20:], compare)
}

// VA is the remote virtual address.
func (h *AtomicETH) VA() uint64 { return binary.BigEndian.Uint64(h[0:]) }

// RKey is the remote key.
func (h *AtomicETH) RKey() uint32 { return binary.BigEndian.Uint32(h[8:]) }

// SwapAdd is the value to swap in, or to add.
func (h *AtomicETH) SwapAdd() uint64 { return binary.BigEndian.Uint64(h[12:]) }

// Compare is the value to compare with.
func (h *AtomicETH) Compare() uint64 { return binary.BigEndian.Uint64(h[20:]) }

// AtomicAckETH is the atomic acknowledge extended transport header on the wire.
type AtomicAckETH [AtomicAckETHLen]byte

// Put writes the original value.
func (h *AtomicAckETH) Put(orig uint64) { binary.BigEndian.PutUint64(h[:], orig) }

// Orig is what the remote memory held before the operation.
func (h *AtomicAckETH) Orig() uint64 { return binary.BigEndian.Uint64(h[:]) }
