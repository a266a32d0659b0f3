package serialize

import (
	"hash/crc32"
	"sync"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// updateCRCGeneric is the reference of updateCRC: the CRC32C of what crc is the
// CRC32C of, followed by p.
func updateCRCGeneric(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

// The checksum of a run of bytes is a polynomial over GF(2) modulo crcPoly. With n
// bytes behind them, the bytes count x^8n times as much; so checksums of pieces
// are put together without reading the pieces again.
const crcPoly = 0x82f63b78 // reflected: bit 31 is x^0

// mulCRC is the product of two polynomials modulo crcPoly. The four bytes of a go
// side by side.
func mulCRC(a, b uint32) (p uint32) {
	b8 := timesX8(b)
	b16 := timesX8(b8)
	b24 := timesX8(b16)
	for range 8 {
		p ^= b&-(a>>31) ^ b8&-(a>>23&1) ^ b16&-(a>>15&1) ^ b24&-(a>>7&1)
		a <<= 1
		b, b8, b16, b24 = timesX(b), timesX(b8), timesX(b16), timesX(b24)
	}
	return p
}

func timesX(a uint32) uint32 { return a>>1 ^ crcPoly&-(a&1) }

func timesX8(a uint32) uint32 { return a>>8 ^ castagnoli[byte(a)] }

// crcPowers[k][i] is x^(8·i·256^k).
var crcPowers = sync.OnceValue(func() *[4][256]uint32 {
	var t [4][256]uint32
	step := uint32(1 << 31 >> 8) // x^8
	for k := range t {
		t[k][0] = 1 << 31
		for i := 1; i < 256; i++ {
			t[k][i] = mulCRC(t[k][i-1], step)
		}
		step = mulCRC(t[k][255], step)
	}
	return &t
})

// shiftCRC is what crc contributes to the checksum of a run that goes on for n
// more bytes: CRC(a ‖ b) = shiftCRC(CRC(a), len(b)) ^ CRC(b).
func shiftCRC(crc uint32, n int) uint32 {
	t := crcPowers()
	for k := 0; n > 0; k++ {
		if i := n & 255; i != 0 {
			crc = mulCRC(crc, t[k][i])
		}
		n >>= 8
	}
	return crc
}
