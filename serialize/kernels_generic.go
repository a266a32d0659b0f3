package serialize

import (
	"encoding/binary"
	"math/bits"
)

// The kernels of this file are the reference that any faster one is tested
// against.

// packLengthsGeneric is packColumn of lengths, the columns that are long.
func packLengthsGeneric(dst []byte, values []uint32, base uint32, width int) {
	packColumn(dst, values, base, width)
}

// packColumn writes each value's distance from base to dst, width bits each;
// width 0 or a power of two up to 64. dst is as long as columnBytes says.
func packColumn[T uint8 | uint32 | int64](dst []byte, values []T, base T, width int) {
	switch width {
	case 1, 2, 4:
		packSmall(dst, values, base, width)
	case 8:
		dst = dst[:len(values)]
		for i, v := range values {
			dst[i] = byte(v - base)
		}
	case 16:
		for i, v := range values {
			binary.LittleEndian.PutUint16(dst[2*i:], uint16(v-base))
		}
	case 32:
		for i, v := range values {
			binary.LittleEndian.PutUint32(dst[4*i:], uint32(v-base))
		}
	case 64:
		for i, v := range values {
			binary.LittleEndian.PutUint64(dst[8*i:], uint64(v-base))
		}
	}
}

// packSmall is packColumn of width 1, 2 or 4. The first number lies in a byte's
// lowest bits. Whole bytes are written out, for a shift by a variable and a loop per
// byte take several times as long.
func packSmall[T uint8 | uint32 | int64](dst []byte, values []T, base T, width int) {
	switch width {
	case 1:
		for ; len(values) >= 8; dst, values = dst[1:], values[8:] {
			v := values[:8]
			dst[0] = byte(v[0]-base) | byte(v[1]-base)<<1 | byte(v[2]-base)<<2 | byte(v[3]-base)<<3 |
				byte(v[4]-base)<<4 | byte(v[5]-base)<<5 | byte(v[6]-base)<<6 | byte(v[7]-base)<<7
		}
	case 2:
		for ; len(values) >= 4; dst, values = dst[1:], values[4:] {
			v := values[:4]
			dst[0] = byte(v[0]-base) | byte(v[1]-base)<<2 | byte(v[2]-base)<<4 | byte(v[3]-base)<<6
		}
	case 4:
		for ; len(values) >= 2; dst, values = dst[1:], values[2:] {
			dst[0] = byte(values[0]-base) | byte(values[1]-base)<<4
		}
	}
	if len(values) > 0 {
		var x byte
		for k, v := range values {
			x |= byte(v-base) << (k * width)
		}
		dst[0] = x
	}
}

// sumColumn adds up the first n numbers of a column, modulo 2^64.
func sumColumn(col []byte, n, width int) uint64 {
	var sum uint64
	switch width {
	case 1, 2, 4:
		for rest := n * width; rest > 0; rest -= 64 {
			sum += sumSmall(upTo8(col)&(1<<min(rest, 64)-1), width)
			col = col[min(8, len(col)):]
		}
	case 8:
		// Eight bytes at a time in four 16-bit lanes: each step adds at most 2*255 to
		// a lane, so 128 steps cannot overflow one.
		const odd = 0x00ff00ff00ff00ff
		col = col[:n]
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
	case 16:
		for col = col[:2*n]; len(col) >= 8; col = col[8:] {
			x := binary.LittleEndian.Uint64(col)
			x = x&0x0000ffff0000ffff + x>>16&0x0000ffff0000ffff
			sum += x&0xffffffff + x>>32
		}
		for ; len(col) >= 2; col = col[2:] {
			sum += uint64(binary.LittleEndian.Uint16(col))
		}
	case 32:
		for col = col[:4*n]; len(col) >= 4; col = col[4:] {
			sum += uint64(binary.LittleEndian.Uint32(col))
		}
	case 64:
		for col = col[:8*n]; len(col) >= 8; col = col[8:] {
			sum += binary.LittleEndian.Uint64(col)
		}
	}
	return sum
}

// upTo8 is the first eight bytes of p, those that are not there being 0.
func upTo8(p []byte) (x uint64) {
	if len(p) >= 8 {
		return binary.LittleEndian.Uint64(p)
	}
	for i, v := range p {
		x |= uint64(v) << (8 * i)
	}
	return x
}

// sumSmall adds up the numbers of width 1, 2 or 4 in x.
func sumSmall(x uint64, width int) uint64 {
	switch width {
	case 1:
		return uint64(bits.OnesCount64(x))
	case 2:
		x = x&0x3333333333333333 + x>>2&0x3333333333333333
	}
	x = x&0x0f0f0f0f0f0f0f0f + x>>4&0x0f0f0f0f0f0f0f0f
	return x * 0x0101010101010101 >> 56 // at most 16·15: it fits the byte
}

// addColumn adds the numbers of a column to lens; width at most 32.
func addColumn(lens []uint32, col []byte, width int) {
	switch width {
	case 1, 2, 4:
		for i := range lens {
			lens[i] += small(col, i, width)
		}
	case 8:
		col = col[:len(lens)]
		for i := range lens {
			lens[i] += uint32(col[i])
		}
	case 16:
		for i := range lens {
			lens[i] += uint32(binary.LittleEndian.Uint16(col[2*i:]))
		}
	case 32:
		for i := range lens {
			lens[i] += binary.LittleEndian.Uint32(col[4*i:])
		}
	}
}

// prefixColumnGeneric writes the running sums of a column whose values are base
// plus the stored number, starting at from: ends[i] = from + the sum of values
// 0…i. width at most 32.
func prefixColumnGeneric(ends []uint32, col []byte, width int, base, from uint32) {
	switch width {
	case 0:
		for i := range ends {
			from += base
			ends[i] = from
		}
	case 1, 2, 4:
		for i := range ends {
			from += base + small(col, i, width)
			ends[i] = from
		}
	case 8:
		col = col[:len(ends)]
		for i := range ends {
			from += base + uint32(col[i])
			ends[i] = from
		}
	case 16:
		for i := range ends {
			from += base + uint32(binary.LittleEndian.Uint16(col[2*i:]))
			ends[i] = from
		}
	case 32:
		for i := range ends {
			from += base + binary.LittleEndian.Uint32(col[4*i:])
			ends[i] = from
		}
	}
}

// addBlocksGeneric adds the sum of each block of 32 numbers to sums; width at
// most 32.
func addBlocksGeneric(sums []uint64, col []byte, width int) {
	for i := range sums {
		sums[i] += sumColumn(col[i*4*width:], blockRecords, width)
	}
}

// gatherGeneric takes from records what measuring needs: value lengths,
// timestamps and where blocks end: ends[i] is how many bytes the values in front
// of block i have. rich: some record has a key, headers or no value. A length
// beyond a batch's is taken for that; it does not fit either.
func gatherGeneric(records []Record, lens []uint32, times []int64, ends []uint32) (rich bool) {
	end := 0
	lens, times = lens[:len(records)], times[:len(records)]
	for i := range records {
		if i&(blockRecords-1) == 0 {
			ends[i>>blockShift] = uint32(end)
		}
		r := &records[i]
		n := length(r.Value)
		lens[i], times[i] = n, r.Timestamp
		end += int(n)
		rich = rich || r.Key != nil || r.Value == nil || len(r.Headers) > 0
	}
	return rich
}

// addManyGeneric takes records into the layout, any number, which begin a block.
func addManyGeneric(l *layout, lens []uint32, times []int64) {
	for len(lens) > 0 {
		n := min(blockRecords, len(lens))
		l.add(lens[:n], times[:n])
		lens, times = lens[n:], times[n:]
	}
}

// copyValuesGeneric copies the values of records to dst, one behind the other. It
// returns how many bytes they have, and their CRC32C.
func copyValuesGeneric(dst []byte, records []Record) (bytes int, crc uint32) {
	summed := 0
	for i := range records {
		bytes += copy(dst[bytes:], records[i].Value)
		if bytes-summed >= crcChunk {
			crc, summed = updateCRC(crc, dst[summed:bytes]), bytes
		}
	}
	return bytes, updateCRC(crc, dst[summed:bytes])
}
