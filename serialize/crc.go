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

// mulCRC is the product of two polynomials modulo crcPoly.
func mulCRC(a, b uint32) (p uint32) {
	for range 32 {
		p ^= b & -(a >> 31)
		a <<= 1
		b = b>>1 ^ crcPoly&-(b&1)
	}
	return p
}

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
