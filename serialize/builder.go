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

	// l is the layout of the records before measured. As long as there is surely
	// room for another record, whatever it does to the columns, nobody needs it:
	// the builder is not tight.
	l        layout
	measured int
	tight    bool
	// A record whose length and timestamp lie in these spans takes
	// row bits more in the columns, and spare bytes cover what is not counted by
	// the record. If the builder is not tight they hold for all records.
	value, time span
	relative    int64 // -1: time is for steps from last; else 0
	last        int64 // timestamp of the last record
	row, spare  int

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
	b.pos, b.n, b.rich, b.summed, b.crc = HeaderBytes, 0, false, HeaderBytes, 0
	b.l, b.measured, b.tight = layout{}, 0, false
	// Large values take the slow path, which sees to the checksum.
	b.value, b.time, b.relative = span{width: crcChunk / blockRecords}, span{width: 1<<64 - 1}, 0
	b.row, b.spare = widestPlain, 0
}

// Bits that a record takes in the columns at their widest, and bytes a block
// does; the six columns may each end within a byte.
const (
	widestPlain = 32 + 64
	widestRich  = widestPlain + 32 + 32 + 2
	widestBlock = 4 + 8
	partBytes   = 6
)

// Len is the number of records in the batch.
func (b *Builder) Len() int { return b.n }

// PayloadBytes is the number of bytes of keys, values and headers in the batch.
func (b *Builder) PayloadBytes() int { return b.pos - HeaderBytes }

// Size is the size in bytes that the batch has if finished now.
func (b *Builder) Size() int {
	if b.n == 0 {
		return HeaderBytes
	}
	b.measure()
	p := b.l.parts()
	return p.end
}

// measure brings the layout up to date.
func (b *Builder) measure() {
	for b.measured < b.n {
		from, to := b.measured, b.n
		if from&(blockRecords-1) == 0 {
			addMany(&b.l, b.lens[from:to], b.times[from:to])
		} else {
			to = min((from|(blockRecords-1))+1, to)
			b.l.add(b.lens[from:to], b.times[from:to])
		}
		if b.rich {
			b.l.addRich(b.keys[from:to], b.headers[from:to], b.attrs[from:to], from == 0)
		}
		b.measured = to
	}
}

// Append copies r into the batch. ErrFull: it does not fit any more.
// ErrRecordTooLarge: it would not fit into an empty batch either. After an error
// the batch is as it was.
func (b *Builder) Append(r *Record) error {
	n, pos := b.n, b.pos
	end := pos + len(r.Value)
	// A value alone, within a block, that surely fits.
	if r.Key != nil || len(r.Headers) != 0 || r.Value == nil || b.rich || n&(blockRecords-1) == 0 || n == b.limit ||
		!b.value.has(uint64(len(r.Value))) || !b.time.has(uint64(r.Timestamp-b.last&b.relative)) ||
		end+((n+1)*b.row>>3)+b.spare > len(b.dst) {
		return b.appendSlow(r)
	}
	copy(b.dst[pos:end], r.Value)
	b.lens[n] = uint32(len(r.Value))
	b.times[n] = r.Timestamp
	b.last, b.pos, b.n = r.Timestamp, end, n+1
	return nil
}

// appendSlow takes what Append does not.
func (b *Builder) appendSlow(r *Record) error {
	n, pos := b.n, b.pos
	attr := attributesOf(r)
	bytes := len(r.Key) + len(r.Value) + len(r.Headers)
	if n == b.limit || bytes > len(b.dst)-pos {
		return b.refuse(bytes)
	}
	if rich := b.rich || attr != 0 || len(r.Headers) > 0; rich {
		if !b.rich {
			b.enrich()
		}
		b.keys[n], b.headers[n], b.attrs[n] = uint32(len(r.Key)), uint32(len(r.Headers)), attr
	}
	b.lens[n] = uint32(len(r.Value))
	b.times[n] = r.Timestamp
	if !b.tight {
		b.spare = blocks(n+1)*widestBlock + partBytes
		b.tight = pos+bytes+((n+1)*b.row>>3)+b.spare > len(b.dst)
	}
	if b.tight && !b.fits() {
		return b.refuse(bytes)
	}
	if n&(blockRecords-1) == 0 {
		b.ends[n>>blockShift] = uint32(pos - HeaderBytes)
	}
	if pos-b.summed >= crcChunk {
		b.crc, b.summed = updateCRC(b.crc, b.dst[b.summed:pos]), pos
	}
	pos += copy(b.dst[pos:], r.Key)
	pos += copy(b.dst[pos:], r.Value)
	pos += copy(b.dst[pos:], r.Headers)
	b.last, b.pos, b.n = r.Timestamp, pos, n+1
	return nil
}

func (b *Builder) refuse(recordBytes int) error {
	if recordBytes > len(b.dst)-HeaderBytes {
		return ErrRecordTooLarge
	}
	return ErrFull
}

// fits says whether the record fits whose numbers are in the arrays, and if so
// what others fit without a look at all columns.
func (b *Builder) fits() bool {
	b.measure()
	before := b.l
	b.n++
	b.measure()
	p := b.l.parts()
	b.n--
	if p.end > len(b.dst) {
		b.l, b.measured = before, b.n
		return false
	}
	b.row, b.spare = p.rowBits(), p.values-p.checkpoints+partBytes
	b.value, b.time, b.relative = b.l.value, b.l.time, 0
	if p.steps {
		b.time, b.relative = b.l.step, -1
	}
	return true
}

// enrich begins to keep keys, headers and attributes; the records so far have
// none.
func (b *Builder) enrich() {
	b.rich, b.row = true, widestRich
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
	switch {
	case b.n == 0:
		b.dst = nil
		return nil
	case b.n == 1:
		return b.finishOne()
	}
	b.measure()
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
		starts := b.starts[:blocks(n)]
		base = cutSteps(starts, b.times[:n], l, &p)
		packColumn(out[p.starts:p.values], starts, int64(l.start.min), p.startW)
	}
	packColumn(out[p.times:p.attrs], b.times[:n], base, p.timeW)
	l.writeHeader(out, &p, updateCRC(b.crc, out[b.summed:]))
	b.dst = nil
	b.n = 0
	return out
}

// finishOne is Finish for a record alone.
func (b *Builder) finishOne() []byte {
	out := b.dst[:b.pos:b.pos]
	key, headers, attr := 0, 0, uint8(0)
	if b.rich {
		key, headers, attr = int(b.keys[0]), int(b.headers[0]), b.attrs[0]
	}
	l := layoutOfOne(key, int(b.lens[0]), headers, attr, b.times[0])
	l.writeHeader(out, &parts{end: b.pos}, updateCRC(b.crc, out[b.summed:]))
	b.dst, b.n = nil, 0
	return out
}

// cutSteps takes the block times out of times and makes steps of the rest, unless
// all are the same. In place of a block's first step stands the smallest, which it
// returns.
func cutSteps(starts, times []int64, l *layout, p *parts) int64 {
	smallest := int64(l.step.min)
	for block := range starts {
		ts := times[block<<blockShift:]
		last := ts[0]
		starts[block] = last
		if p.timeW == 0 {
			continue
		}
		ts = ts[:min(blockRecords, len(ts))]
		ts[0] = smallest
		for k := 1; k < len(ts); k++ {
			last, ts[k] = ts[k], ts[k]-last
		}
	}
	return smallest
}
