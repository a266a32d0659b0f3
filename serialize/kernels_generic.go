package serialize

import "encoding/binary"

// The kernels of this file are the reference that any faster one is tested
// against.

// packColumn writes each value's distance from base to dst, width bytes each.
func packColumn[T uint8 | uint32 | int64](dst []byte, values []T, base T, width int) {
	switch width {
	case 1:
		dst = dst[:len(values)]
		for i, v := range values {
			dst[i] = byte(v - base)
		}
	case 2:
		for i, v := range values {
			binary.LittleEndian.PutUint16(dst[2*i:], uint16(v-base))
		}
	case 4:
		for i, v := range values {
			binary.LittleEndian.PutUint32(dst[4*i:], uint32(v-base))
		}
	case 8:
		for i, v := range values {
			binary.LittleEndian.PutUint64(dst[8*i:], uint64(v-base))
		}
	}
}

// sumColumn adds up a column of width-byte numbers; width 0, 1, 2 or 4.
func sumColumn(col []byte, width int) uint64 {
	var sum uint64
	switch width {
	case 1:
		// Eight bytes at a time in four 16-bit lanes: each step adds at most 2*255 to
		// a lane, so 128 steps cannot overflow one.
		const odd = 0x00ff00ff00ff00ff
		for len(col) >= 8 {
			steps := min(len(col)/8, 128)
			var lanes uint64
			for range steps {
				x := binary.LittleEndian.Uint64(col)
				lanes += x&odd + x>>8&odd
				col = col[8:]
			}
			lanes = lanes&0x0000ffff0000ffff + lanes>>16&0x0000ffff0000ffff
			sum += lanes&0xffffffff + lanes>>32
		}
		for _, v := range col {
			sum += uint64(v)
		}
	case 2:
		for len(col) >= 8 {
			x := binary.LittleEndian.Uint64(col)
			x = x&0x0000ffff0000ffff + x>>16&0x0000ffff0000ffff
			sum += x&0xffffffff + x>>32
			col = col[8:]
		}
		for ; len(col) >= 2; col = col[2:] {
			sum += uint64(binary.LittleEndian.Uint16(col))
		}
	case 4:
		for ; len(col) >= 4; col = col[4:] {
			sum += uint64(binary.LittleEndian.Uint32(col))
		}
	}
	return sum
}

// addColumn adds column values to lens; width 0, 1, 2 or 4.
func addColumn(lens []uint32, col []byte, width int) {
	switch width {
	case 1:
		col = col[:len(lens)]
		for i := range lens {
			lens[i] += uint32(col[i])
		}
	case 2:
		for i := range lens {
			lens[i] += uint32(binary.LittleEndian.Uint16(col[2*i:]))
		}
	case 4:
		for i := range lens {
			lens[i] += binary.LittleEndian.Uint32(col[4*i:])
		}
	}
}

// prefixColumn writes the running sums of a column whose values are base plus
// the stored number, starting at from: ends[i] = from + the sum of values 0…i.
// width 0, 1, 2 or 4.
func prefixColumn(ends []uint32, col []byte, width int, base, from uint32) {
	switch width {
	case 0:
		for i := range ends {
			from += base
			ends[i] = from
		}
	case 1:
		col = col[:len(ends)]
		for i := range ends {
			from += base + uint32(col[i])
			ends[i] = from
		}
	case 2:
		for i := range ends {
			from += base + uint32(binary.LittleEndian.Uint16(col[2*i:]))
			ends[i] = from
		}
	case 4:
		for i := range ends {
			from += base + binary.LittleEndian.Uint32(col[4*i:])
			ends[i] = from
		}
	}
}

// maxColumn is the largest byte of a column.
func maxColumn(col []byte) byte {
	var most byte
	for _, v := range col {
		most = max(most, v)
	}
	return most
}
