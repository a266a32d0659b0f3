package serialize

import (
	"encoding/binary"
	"fmt"
)

// Builder lays records out as one batch, one record at a time. It belongs to one
// goroutine. Encoder does the same for records that are all there.
//
// Each record's bytes are copied once, to their final place, and their checksum
// is taken while they are in the CPU's cache. What becomes the columns is noted
// in arrays of fixed size and written behind the payload by Finish, when the
// narrowest width of each column is known. The arrays are allocated once: about
// 12 bytes for each of maxRecords, and 9 more at the first record with a key,
// headers or a nil value.
type Builder struct {
	dst    []byte
	pos    int // end of the payload in dst
	n      int
	limit  int // most records
	summed int // end of the payload that crc covers
	crc    uint32

	// rich: some record so far has a key, headers or a nil value, and the arrays
	// keys, headers and attrs are kept.
	rich bool

	// l holds the spans of the columns; its sums and lastStamp are brought up to
	// date by sync.
	l     layout
	last  int64 // timestamp of the last record
	row   int   // bits per record of all columns at their widths so far
	spare int   // what the current block can need beyond its rows, at most

	lens    []uint32 // value lengths
	times   []int64
	ends    []uint32 // checkpoints
	starts  []int64  // block times, for Finish
	keys    []uint32 // key lengths
	headers []uint32 // header block lengths
	attrs   []uint8
}

// crcChunk is how much payload gathers before its checksum is taken: little
// enough that it is still in a core's second-level cache.
const crcChunk = 64 << 10

// NewBuilder makes a builder for batches of at most maxRecords records, 1 to
// MaxRecords. It holds no memory to build in before Reset.
func NewBuilder(maxRecords int) (*Builder, error) {
	if maxRecords < 1 || maxRecords > MaxRecords {
		return nil, fmt.Errorf("serialize: batches of %d records, want 1 to %d", maxRecords, MaxRecords)
	}
	return &Builder{
		limit: maxRecords, lens: make([]uint32, maxRecords), times: make([]int64, maxRecords),
		ends: make([]uint32, blocks(maxRecords)), starts: make([]int64, blocks(maxRecords)),
	}, nil
}

// Reset begins a new batch in dst, whose length bounds the batch (at most
// MaxBatchBytes of it are used). The builder writes to dst until Finish or the
// next Reset. For aligned payloads dst should begin on a cache line.
func (b *Builder) Reset(dst []byte) {
	b.dst = dst[:min(len(dst), MaxBatchBytes)]
	b.pos, b.n, b.rich, b.row, b.summed, b.crc = HeaderBytes, 0, false, 0, HeaderBytes, 0
	b.l = layout{}
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
	b.sync()
	p := b.l.parts()
	return p.end
}

func (b *Builder) sync() { b.l.records, b.l.payload, b.l.lastStamp = b.n, b.pos-HeaderBytes, b.last }

// Append copies r into the batch. ErrFull: it does not fit any more.
// ErrRecordTooLarge: it would not fit into an empty batch either. After an error
// the batch is as it was.
func (b *Builder) Append(r *Record) error {
	n, pos := b.n, b.pos
	end := pos + len(r.Value)
	// What widens no column, begins no block and surely fits.
	if r.Key != nil || len(r.Headers) != 0 || r.Value == nil || b.rich || n&(blockRecords-1) == 0 || n == b.limit ||
		!b.l.value.has(uint64(len(r.Value))) || !b.l.time.has(uint64(r.Timestamp)) ||
		!b.l.step.has(uint64(r.Timestamp-b.last)) || end+((n+1)*b.row>>3)+b.spare > len(b.dst) {
		return b.appendSlow(r)
	}
	copy(b.dst[pos:end], r.Value)
	b.lens[n] = uint32(len(r.Value))
	b.times[n] = r.Timestamp
	b.last, b.pos, b.n = r.Timestamp, end, n+1
	return nil
}

// appendSlow takes the first record of a block, those with more than a value,
// those that widen a column, and those that may not fit.
func (b *Builder) appendSlow(r *Record) error {
	n, pos := b.n, b.pos
	attr := attributesOf(r)
	b.sync()
	l := b.l
	l.include(r, attr)
	p := l.parts()
	if n == b.limit || p.end > len(b.dst) {
		if bytes := l.payload - b.l.payload; bytes > len(b.dst)-HeaderBytes {
			return ErrRecordTooLarge
		}
		return ErrFull
	}
	b.l, b.row = l, p.rowBits()
	// Checkpoint and start of this block; each column may end within a byte.
	b.spare = p.values - p.checkpoints + 6

	if !b.rich && (attr != 0 || len(r.Headers) > 0) {
		b.enrich()
	}
	if b.rich {
		b.keys[n], b.headers[n], b.attrs[n] = uint32(len(r.Key)), uint32(len(r.Headers)), attr
	}
	b.lens[n] = uint32(len(r.Value))
	if n&(blockRecords-1) == 0 {
		b.ends[n>>blockShift] = uint32(pos - HeaderBytes)
	}
	b.times[n] = r.Timestamp
	if pos-b.summed >= crcChunk {
		b.crc, b.summed = updateCRC(b.crc, b.dst[b.summed:pos]), pos
	}
	pos += copy(b.dst[pos:], r.Key)
	pos += copy(b.dst[pos:], r.Value)
	pos += copy(b.dst[pos:], r.Headers)
	b.last, b.pos, b.n = r.Timestamp, pos, n+1
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
	b.sync()
	l, n := &b.l, b.n
	p := l.parts()
	out := b.dst[:p.end:p.end]
	at := p.checkpoints
	for _, e := range b.ends[1:blocks(n)] {
		binary.LittleEndian.PutUint32(out[at:], e)
		at += 4
	}
	packLengths(out[p.values:p.keys], b.lens[:n], uint32(l.value.min), p.valueW)
	if b.rich {
		packLengths(out[p.keys:p.headers], b.keys[:n], uint32(l.key.min), p.keyW)
		packLengths(out[p.headers:p.times], b.headers[:n], uint32(l.header.min), p.headerW)
		packColumn(out[p.attrs:p.end], b.attrs[:n], uint8(l.attr.min), p.attrW)
	}
	base := int64(l.time.min)
	if p.steps {
		base = int64(l.step.min)
		starts := b.starts[:blocks(n)]
		cutSteps(starts, b.times[:n], base)
		packColumn(out[p.starts:p.values], starts, int64(l.start.min), p.startW)
	}
	packColumn(out[p.times:p.attrs], b.times[:n], base, p.timeW)
	l.writeHeader(out, &p, updateCRC(b.crc, out[b.summed:]))
	b.dst = nil
	b.n = 0
	return out
}

// cutSteps takes the block times out of times and makes steps of the rest. In
// place of a block's first step stands the smallest.
func cutSteps(starts, times []int64, smallest int64) {
	for block := range starts {
		ts := times[block<<blockShift:]
		ts = ts[:min(blockRecords, len(ts))]
		last := ts[0]
		starts[block] = last
		ts[0] = smallest
		for k := 1; k < len(ts); k++ {
			last, ts[k] = ts[k], ts[k]-last
		}
	}
}
