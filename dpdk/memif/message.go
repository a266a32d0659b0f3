package memif

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Control messages are 128 bytes, little-endian, one per SOCK_SEQPACKET packet
// (memif.h: memif_msg_t).
const (
	messageBytes = 128

	typeAck        = 1
	typeHello      = 2
	typeInit       = 3
	typeAddRegion  = 4
	typeAddRing    = 5
	typeConnect    = 6
	typeConnected  = 7
	typeDisconnect = 8

	protocolVersion = 2 << 8
	modeEthernet    = 0
	nameBytes       = 32
	secretBytes     = 24
	reasonBytes     = 96

	ringFlagClientToServer = 1
)

type message [messageBytes]byte

func (m *message) kind() uint16 { return binary.LittleEndian.Uint16(m[:]) }

func newMessage(kind uint16) *message {
	m := new(message)
	binary.LittleEndian.PutUint16(m[:], kind)
	return m
}

func (m *message) u16(at int) uint16       { return binary.LittleEndian.Uint16(m[at:]) }
func (m *message) u32(at int) uint32       { return binary.LittleEndian.Uint32(m[at:]) }
func (m *message) u64(at int) uint64       { return binary.LittleEndian.Uint64(m[at:]) }
func (m *message) put16(at int, v uint16)  { binary.LittleEndian.PutUint16(m[at:], v) }
func (m *message) put32(at int, v uint32)  { binary.LittleEndian.PutUint32(m[at:], v) }
func (m *message) put64(at int, v uint64)  { binary.LittleEndian.PutUint64(m[at:], v) }
func (m *message) text(at, n int) string   { return cString(m[at : at+n]) }
func (m *message) put(at, n int, s string) { copy(m[at:at+n-1], s) }

func cString(p []byte) string {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	return string(bytes.ToValidUTF8(p, []byte("?")))
}

type hello struct {
	name                   string
	minVersion, maxVersion uint16
	maxRegion              uint16
	maxM2S, maxS2M         uint16
	maxLog2Ring            uint8
}

func (h hello) encode() *message {
	m := newMessage(typeHello)
	m.put(2, nameBytes, h.name)
	m.put16(34, h.minVersion)
	m.put16(36, h.maxVersion)
	m.put16(38, h.maxRegion)
	m.put16(40, h.maxM2S)
	m.put16(42, h.maxS2M)
	m[44] = h.maxLog2Ring
	return m
}

func decodeHello(m *message) hello {
	return hello{
		name: m.text(2, nameBytes), minVersion: m.u16(34), maxVersion: m.u16(36), maxRegion: m.u16(38),
		maxM2S: m.u16(40), maxS2M: m.u16(42), maxLog2Ring: m[44],
	}
}

type initialize struct {
	version uint16
	id      uint32
	mode    uint8
	secret  string
	name    string
}

func (i initialize) encode() *message {
	m := newMessage(typeInit)
	m.put16(2, i.version)
	m.put32(4, i.id)
	m[8] = i.mode
	m.put(9, secretBytes, i.secret)
	m.put(33, nameBytes, i.name)
	return m
}

func decodeInit(m *message) initialize {
	return initialize{version: m.u16(2), id: m.u32(4), mode: m[8], secret: m.text(9, secretBytes), name: m.text(33, nameBytes)}
}

type addRegion struct {
	index uint16
	size  uint64
}

func (a addRegion) encode() *message {
	m := newMessage(typeAddRegion)
	m.put16(2, a.index)
	m.put64(4, a.size)
	return m
}

func decodeAddRegion(m *message) addRegion { return addRegion{index: m.u16(2), size: m.u64(4)} }

type addRing struct {
	flags, index, region uint16
	offset               uint32
	log2                 uint8
}

func (a addRing) encode() *message {
	m := newMessage(typeAddRing)
	m.put16(2, a.flags)
	m.put16(4, a.index)
	m.put16(6, a.region)
	m.put32(8, a.offset)
	m[12] = a.log2
	return m
}

func decodeAddRing(m *message) addRing {
	return addRing{flags: m.u16(2), index: m.u16(4), region: m.u16(6), offset: m.u32(8), log2: m[12]}
}

func named(kind uint16, name string) *message {
	m := newMessage(kind)
	m.put(2, nameBytes, name)
	return m
}

func disconnect(reason string) *message {
	m := newMessage(typeDisconnect)
	m.put(6, reasonBytes, reason)
	return m
}

func disconnectReason(m *message) string { return m.text(6, reasonBytes) }

func kindName(k uint16) string {
	names := [...]string{"NONE", "ACK", "HELLO", "INIT", "ADD_REGION", "ADD_RING", "CONNECT", "CONNECTED", "DISCONNECT"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("message type %d", k)
}
