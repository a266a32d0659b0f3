package serialize

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// Batch is a checked view of an encoded batch. It holds no memory of its own:
// every slice it returns lies in the bytes given to Open, is valid as long as
// they are, and must not be written to. A Batch may be read from several
// goroutines.
type Batch struct {
	bytes   []byte
	payload []byte

	value, key, header column
	attr               column
	time, starts       column
	checkpoints        uint32 // where they are in bytes
	sumMin             uint32 // the smallest record: the sum of the three smallest lengths
	baseTime           int64
	minStep            int64
	n                  int
	steps              bool // timestamps are steps
	simple             bool // no keys, headers or attributes: a record is its value
}

// column is where one column's stored numbers are in the batch, and what to add
// to each.
type column struct {
	offset uint32
	min    uint32
	width  int8 // bits per number: 0 or a power of two
}

// from is the batch's bytes from number i of column c on, which begins a byte.
func (b *Batch) from(c *column, i int) []byte { return b.bytes[int(c.offset)+i*int(c.width)>>3:] }

// at is stored number i of column c, without min; width at most 32.
func (b *Batch) at(c *column, i int) uint32 {
	if c.width == 0 {
		return 0
	}
	return number(b.bytes[c.offset:], i, int(c.width))
}

// at64 is stored number i of column c, without min.
func (b *Batch) at64(c *column, i int) uint64 {
	if c.width == 64 {
		return binary.LittleEndian.Uint64(b.bytes[int(c.offset)+8*i:])
	}
	return uint64(b.at(c, i))
}

// number is number i of a column of width 1 to 32.
func number(col []byte, i, width int) uint32 {
	switch width {
	case 8:
		return uint32(col[i])
	case 16:
		return uint32(binary.LittleEndian.Uint16(col[2*i:]))
	case 32:
		return binary.LittleEndian.Uint32(col[4*i:])
	}
	return small(col, i, width)
}

// small is number i of a column of width 1, 2 or 4.
func small(col []byte, i, width int) uint32 {
	bit := i * width
	return uint32(col[bit>>3]) >> (bit & 7) & (1<<width - 1)
}

// checkpoint is where record block*blockRecords begins in the payload.
func (b *Batch) checkpoint(block int) uint32 {
	if block == 0 {
		return 0
	}
	return binary.LittleEndian.Uint32(b.bytes[int(b.checkpoints)+4*(block-1):])
}

func (b *Batch) attributes(i int) byte { return byte(b.attr.min + b.at(&b.attr, i)) }

// Len is the number of records, at least 1.
func (b *Batch) Len() int { return b.n }

// Bytes is the encoded batch.
func (b *Batch) Bytes() []byte { return b.bytes }

// PayloadBytes is the number of bytes of keys, values and headers.
func (b *Batch) PayloadBytes() int { return len(b.payload) }

// BaseOffset is the log offset of the first record; record i has BaseOffset+i.
// NoOffset until a broker has placed the batch.
func (b *Batch) BaseOffset() int64 { return BaseOffset(b.bytes) }

// The accessors below take 0 ≤ i < Len and panic beyond, as a slice does. Each
// adds up at most 31 lengths; a Cursor is faster for going through all records.

// Value is the value of record i; nil for a deletion.
func (b *Batch) Value(i int) []byte {
	if b.attributes(i)&attrNullValue != 0 {
		b.mustHave(i)
		return nil
	}
	start := b.start(i) + b.keyLen(i)
	end := start + b.valueLen(i)
	return b.payload[start:end:end]
}

// Key is the key of record i; nil if it has none.
func (b *Batch) Key(i int) []byte {
	if b.attributes(i)&attrKey == 0 {
		b.mustHave(i)
		return nil
	}
	start := b.start(i)
	end := start + b.keyLen(i)
	return b.payload[start:end:end]
}

// Headers is the header block of record i; nil if it has none.
func (b *Batch) Headers(i int) HeaderBlock {
	n := b.headerLen(i)
	if n == 0 {
		b.mustHave(i)
		return nil
	}
	start := b.start(i) + b.keyLen(i) + b.valueLen(i)
	return HeaderBlock(b.payload[start : start+n : start+n])
}

// Timestamp is the timestamp of record i, Unix milliseconds.
func (b *Batch) Timestamp(i int) int64 {
	b.mustHave(i)
	if !b.steps {
		return b.baseTime + int64(b.at64(&b.time, i))
	}
	within := i & (blockRecords - 1)
	t := b.baseTime + int64(b.at64(&b.starts, i>>blockShift)) + int64(within)*b.minStep
	if b.time.width > 0 && within > 0 {
		first := i - within
		t += int64(sumColumn(b.from(&b.time, first), within+1, int(b.time.width)) - b.at64(&b.time, first))
	}
	return t
}

// Record is record i.
func (b *Batch) Record(i int) (r Record) {
	start := b.start(i)
	b.record(&r, i, start, start+b.sumMin+b.at(&b.value, i)+b.at(&b.key, i)+b.at(&b.header, i), b.Timestamp(i))
	return r
}

// record makes r, which is zero, record i, which lies at payload[start:end]. It does
// so in the caller's result: a copy of words just written would wait for them.
func (b *Batch) record(r *Record, i int, start, end uint32, timestamp int64) {
	r.Timestamp = timestamp
	if b.simple {
		r.Value = b.payload[start:end:end]
		return
	}
	a := b.attributes(i)
	valueAt := start + b.keyLen(i)
	headersAt := valueAt + b.valueLen(i)
	if a&attrKey != 0 {
		r.Key = b.payload[start:valueAt:valueAt]
	}
	if a&attrNullValue == 0 {
		r.Value = b.payload[valueAt:headersAt:headersAt]
	}
	if headersAt < end {
		r.Headers = b.payload[headersAt:end:end]
	}
}

func (b *Batch) keyLen(i int) uint32    { return b.key.min + b.at(&b.key, i) }
func (b *Batch) valueLen(i int) uint32  { return b.value.min + b.at(&b.value, i) }
func (b *Batch) headerLen(i int) uint32 { return b.header.min + b.at(&b.header, i) }

// mustHave panics like a slice if there is no record i: columns of width 0 have
// nothing to index.
func (b *Batch) mustHave(i int) {
	if uint(i) >= uint(b.n) {
		panic(fmt.Sprintf("serialize: record %d of a batch of %d", i, b.n))
	}
}

// start is where record i begins in the payload.
func (b *Batch) start(i int) uint32 {
	b.mustHave(i)
	within := i & (blockRecords - 1)
	block := i - within
	start := b.checkpoint(i>>blockShift) + uint32(within)*b.sumMin
	start += uint32(sumColumn(b.from(&b.value, block), within, int(b.value.width)))
	if !b.simple {
		start += uint32(sumColumn(b.from(&b.key, block), within, int(b.key.width)))
		start += uint32(sumColumn(b.from(&b.header, block), within, int(b.header.width)))
	}
	return start
}

// All yields every record with its index, in order. For values alone Values costs
// less.
func (b *Batch) All() iter.Seq2[int, Record] {
	return func(yield func(int, Record) bool) {
		c := b.Cursor()
		for c.Next() {
			if !yield(c.i, c.Record()) {
				return
			}
		}
	}
}
