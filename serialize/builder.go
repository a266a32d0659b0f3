package serialize

import (
	"encoding/binary"
	"fmt"
)

// Builder lays records out as one batch. It belongs to one goroutine.
//
// Each record's bytes are copied once, to their final place. What becomes the
// columns is noted in arrays of fixed size and written behind the payload by
// Finish, when the narrowest width of each column is known. The arrays are
// allocated once: about 12 bytes for each of maxRecords, and 9 more at the first
// record with a key, headers or a nil value.
type Builder struct {
	dst   []byte
	pos   int // end of the payload in dst
	n     int
	limit int // most records

	// rich: some record so far has a key, headers or a nil value, and the arrays
	// keys, headers and attrs are kept.
	rich bool

	value, key, header, time, attr span
	rowBytes                       int // bytes per record of all columns at their widths so far

	lens    []uint32 // value lengths
	times   []int64
	starts  []uint32 // checkpoints
	keys    []uint32 // key lengths
	headers []uint32 // header block lengths
	attrs   []uint8
}

// span is the range of a column: min … min+width (modulo 2^64, so that it holds
// for signed numbers too).
type span struct{ min, width uint64 }

func (s span) has(v uint64) bool { return v-s.min <= s.width }

// widened is s with v in it; signed numbers lie in order after their sign bit
// was flipped.
func (s span) widened(v, flip uint64) span {
	lo := min(s.min^flip, v^flip)
	hi := max((s.min+s.width)^flip, v^flip)
	return span{lo ^ flip, hi - lo}
}

const signBit = 1 << 63

// NewBuilder makes a builder for batches of at most maxRecords records, 1 to
// MaxRecords. It holds no memory to build in before Reset.
func NewBuilder(maxRecords int) (*Builder, error) {
	if maxRecords < 1 || maxRecords > MaxRecords {
		return nil, fmt.Errorf("serialize: batches of %d records, want 1 to %d", maxRecords, MaxRecords)
	}
	return &Builder{
		limit: maxRecords, lens: make([]uint32, maxRecords), times: make([]int64, maxRecords),
		starts: make([]uint32, checkpoints(maxRecords)+1),
	}, nil
}

// Reset begins a new batch in dst, whose length bounds the batch (at most
// MaxBatchBytes of it are used). The builder writes to dst until Finish or the
// next Reset. For aligned payloads dst should begin on a cache line.
func (b *Builder) Reset(dst []byte) {
	b.dst = dst[:min(len(dst), MaxBatchBytes)]
	b.pos, b.n, b.rich, b.rowBytes = HeaderBytes, 0, false, 0
}

// Len is the number of records in the batch.
func (b *Builder) Len() int { return b.n }

// PayloadBytes is the number of bytes of keys, values and headers in the batch.
func (b *Builder) PayloadBytes() int { return b.pos - HeaderBytes }

// Size is the size in bytes that the batch has if finished now.
func (b *Builder) Size() int {
	if b.n == 0 {
		return HeaderBytes
	}
	return b.pos + b.n*b.rowBytes + 4*checkpoints(b.n)
}

// Append copies r into the batch. ErrFull: it does not fit any more.
// ErrRecordTooLarge: it would not fit into an empty batch either. After an error
// the batch is as it was.
func (b *Builder) Append(r *Record) error {
	n, pos := b.n, b.pos
	bytes := len(r.Key) + len(r.Value) + len(r.Headers)
	plain := r.Key == nil && len(r.Headers) == 0 && r.Value != nil && !b.rich
	if n == 0 || !plain || !b.value.has(uint64(len(r.Value))) || !b.time.has(uint64(r.Timestamp)) {
		return b.appendSlow(r)
	}
	if n == b.limit || pos+bytes+(n+1)*b.rowBytes+n>>blockShift<<2 > len(b.dst) {
		return b.refuse(bytes)
	}
	copy(b.dst[pos:], r.Value)
	b.lens[n] = uint32(bytes)
	b.times[n] = r.Timestamp
	if n&(blockRecords-1) == 0 {
		b.starts[n>>blockShift] = uint32(pos - HeaderBytes)
	}
	b.pos = pos + bytes
	b.n = n + 1
	return nil
}

func (b *Builder) refuse(recordBytes int) error {
	if recordBytes > len(b.dst)-HeaderBytes {
		return ErrRecordTooLarge
	}
	return ErrFull
}

// appendSlow takes the first record, those with more than a value, and those
// that widen a column.
func (b *Builder) appendSlow(r *Record) error {
	n, pos := b.n, b.pos
	bytes := len(r.Key) + len(r.Value) + len(r.Headers)
	var attr uint8
	if r.Key != nil {
		attr |= attrKey
	}
	if r.Value == nil {
		attr |= attrNullValue
	}
	value := span{min: uint64(len(r.Value))}
	key := span{min: uint64(len(r.Key))}
	header := span{min: uint64(len(r.Headers))}
	time := span{min: uint64(r.Timestamp)}
	attrs := span{min: uint64(attr)}
	if n > 0 {
		value = b.value.widened(value.min, 0)
		key = b.key.widened(key.min, 0)
		header = b.header.widened(header.min, 0)
		time = b.time.widened(time.min, signBit)
		attrs = b.attr.widened(attrs.min, 0)
	}
	row := widthFor(value.width) + widthFor(key.width) + widthFor(header.width) + widthFor(time.width) + widthFor(attrs.width)
	if n == b.limit || pos+bytes+(n+1)*row+n>>blockShift<<2 > len(b.dst) {
		return b.refuse(bytes)
	}
	b.value, b.key, b.header, b.time, b.attr, b.rowBytes = value, key, header, time, attrs, row

	if !b.rich && (attr != 0 || len(r.Headers) > 0) {
		b.enrich()
	}
	if b.rich {
		b.keys[n], b.headers[n], b.attrs[n] = uint32(len(r.Key)), uint32(len(r.Headers)), attr
	}
	b.lens[n] = uint32(len(r.Value))
	b.times[n] = r.Timestamp
	if n&(blockRecords-1) == 0 {
		b.starts[n>>blockShift] = uint32(pos - HeaderBytes)
	}
	pos += copy(b.dst[pos:], r.Key)
	pos += copy(b.dst[pos:], r.Value)
	pos += copy(b.dst[pos:], r.Headers)
	b.pos = pos
	b.n = n + 1
	return nil
}

// enrich begins to keep keys, headers and attributes; the records so far have
// none.
func (b *Builder) enrich() {
	b.rich = true
	if b.keys == nil {
		b.keys = make([]uint32, b.limit)
		b.headers = make([]uint32, b.limit)
		b.attrs = make([]uint8, b.limit)
	}
	clear(b.keys[:b.n])
	clear(b.headers[:b.n])
	clear(b.attrs[:b.n])
}

// Finish writes columns, header and checksum, and returns the batch: the front
// of the slice given to Reset. It returns nil if no record was appended. The
// builder lets go of the slice; Reset begins the next batch.
func (b *Builder) Finish() []byte {
	if b.n == 0 {
		b.dst = nil
		return nil
	}
	size := b.Size()
	out := b.dst[:size:size]
	n := b.n

	at := b.pos
	for _, s := range b.starts[1 : checkpoints(n)+1] {
		binary.LittleEndian.PutUint32(out[at:], s)
		at += 4
	}
	var features uint16
	valueW, keyW, headerW := widthFor(b.value.width), widthFor(b.key.width), widthFor(b.header.width)
	timeW, attrW := widthFor(b.time.width), widthFor(b.attr.width)
	at = putColumn(out, at, b.lens[:n], uint32(b.value.min), valueW)
	if b.rich {
		if b.key.min+b.key.width > 0 {
			features |= featureKeys
		}
		if b.header.min+b.header.width > 0 {
			features |= featureHeaders
		}
		if b.attr.min+b.attr.width > 0 {
			features |= featureAttributes
		}
		at = putColumn(out, at, b.keys[:n], uint32(b.key.min), keyW)
		at = putColumn(out, at, b.headers[:n], uint32(b.header.min), headerW)
	}
	at = putColumn(out, at, b.times[:n], int64(b.time.min), timeW)
	if b.rich {
		putColumn(out, at, b.attrs[:n], uint8(b.attr.min), attrW)
	}

	h := out[:HeaderBytes]
	le := binary.LittleEndian
	clear(h)
	le.PutUint32(h[offMagic:], magic)
	SetBaseOffset(h, NoOffset)
	h[offVersion] = Version
	le.PutUint16(h[offFeatures:], features)
	le.PutUint32(h[offSize:], uint32(size))
	le.PutUint32(h[offRecords:], uint32(n))
	le.PutUint32(h[offPayload:], uint32(b.pos-HeaderBytes))
	le.PutUint64(h[offTimestamp:], b.time.min)
	le.PutUint32(h[offMinValue:], uint32(b.value.min))
	le.PutUint32(h[offMinKey:], uint32(b.key.min))
	le.PutUint32(h[offMinHeaders:], uint32(b.header.min))
	h[offWidths], h[offWidths+1], h[offWidths+2] = byte(valueW), byte(keyW), byte(headerW)
	h[offWidths+3], h[offWidths+4] = byte(timeW), byte(attrW)
	h[offMinAttr] = byte(b.attr.min)
	le.PutUint32(h[offCRC:], checksum(out))
	b.dst = nil
	b.n = 0
	return out
}

// putColumn packs one column at out[at:] and returns where the next begins.
func putColumn[T uint8 | uint32 | int64](out []byte, at int, values []T, base T, width int) int {
	packColumn(out[at:], values, base, width)
	return at + width*len(values)
}
