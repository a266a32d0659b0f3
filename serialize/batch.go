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
	starts  []byte // checkpoints

	value, key, header column
	attr               column
	time               column
	baseTime           int64
	sumMin             uint32 // the smallest record: the sum of the three smallest lengths
	n                  int
	simple             bool // no keys, headers or attributes: a record is its value
}

// column is one column's stored numbers and what to add to each.
type column struct {
	data  []byte
	width int
	min   uint32
}

// at is stored number i, without min; width 0, 1, 2 or 4.
func (c *column) at(i int) uint32 {
	switch c.width {
	case 1:
		return uint32(c.data[i])
	case 2:
		return uint32(binary.LittleEndian.Uint16(c.data[2*i:]))
	case 4:
		return binary.LittleEndian.Uint32(c.data[4*i:])
	}
	return 0
}

// rows is the column's stored numbers from record i to before record j.
func (c *column) rows(i, j int) []byte { return c.data[i*c.width : j*c.width] }

// Open checks the batch at the start of b, structure and checksum, and returns a
// view of it. Bytes behind the batch are left alone; Bytes tells where it ends.
// It does not allocate unless it fails. The errors are ErrTruncated,
// ErrNotBatch, ErrVersion, ErrFeatures, ErrChecksum and ErrCorrupt, wrapped with
// what was found.
func Open(b []byte) (Batch, error) { return open(b, true) }

// OpenTrusted is Open without the checksum, for bytes that were checked before
// and have not left the process since. The structure is checked all the same,
// so that no later access can fail.
func OpenTrusted(b []byte) (Batch, error) { return open(b, false) }

func open(b []byte, verify bool) (batch Batch, err error) {
	size, err := Size(b)
	if err != nil {
		return Batch{}, err
	}
	if size > len(b) {
		return Batch{}, fmt.Errorf("%w: %d bytes of %d", ErrTruncated, len(b), size)
	}
	b = b[:size:size]
	if verify {
		if want, got := binary.LittleEndian.Uint32(b[offCRC:]), checksum(b); want != got {
			return Batch{}, fmt.Errorf("%w: CRC32C is %08x, the header says %08x (%d bytes)", ErrChecksum, got, want, size)
		}
	}
	if err := batch.parse(b); err != nil {
		return Batch{}, err
	}
	if err := batch.checkLengths(); err != nil {
		return Batch{}, err
	}
	return batch, nil
}

// parse reads the header and cuts b into payload and columns.
func (b *Batch) parse(bytes []byte) error {
	le := binary.LittleEndian
	h := bytes[:HeaderBytes]
	records, payload := le.Uint32(h[offRecords:]), le.Uint32(h[offPayload:])
	if records == 0 || records > MaxRecords {
		return corruptf("record count %d, a batch has 1 to %d", records, MaxRecords)
	}
	if h[offVersion+1] != 0 || le.Uint32(h[offReserved:]) != 0 || le.Uint16(h[offReserved+4:]) != 0 {
		return corruptf("reserved bytes are not zero")
	}
	*b = Batch{bytes: bytes, n: int(records), baseTime: int64(le.Uint64(h[offTimestamp:]))}
	b.value = column{width: int(h[offWidths]), min: le.Uint32(h[offMinValue:])}
	b.key = column{width: int(h[offWidths+1]), min: le.Uint32(h[offMinKey:])}
	b.header = column{width: int(h[offWidths+2]), min: le.Uint32(h[offMinHeaders:])}
	b.time = column{width: int(h[offWidths+3])}
	b.attr = column{width: int(h[offWidths+4]), min: uint32(h[offMinAttr])}

	const lengths = 1<<0 | 1<<1 | 1<<2 | 1<<4
	features := le.Uint16(h[offFeatures:])
	b.simple = features == 0
	if err := b.value.check("value length", lengths, true); err != nil {
		return err
	}
	if err := b.key.check("key length", lengths, features&featureKeys != 0); err != nil {
		return err
	}
	if err := b.header.check("header length", lengths, features&featureHeaders != 0); err != nil {
		return err
	}
	if err := b.time.check("timestamp", lengths|1<<8, true); err != nil {
		return err
	}
	if err := b.attr.check("attribute", 1<<0|1<<1, features&featureAttributes != 0); err != nil {
		return err
	}

	// At most 2^30 + 8·2^20 each: no overflow.
	starts := 4 * checkpoints(b.n)
	row := b.value.width + b.key.width + b.header.width + b.time.width + b.attr.width
	if want := HeaderBytes + int(payload) + starts + b.n*row; want != len(bytes) {
		return corruptf("header describes %d bytes (%d records, %d of payload), the batch has %d", want, records, payload, len(bytes))
	}
	b.payload = bytes[HeaderBytes : HeaderBytes+int(payload) : HeaderBytes+int(payload)]
	rest := bytes[HeaderBytes+int(payload):]
	b.starts, rest = cut(rest, starts)
	b.value.data, rest = cut(rest, b.n*b.value.width)
	b.key.data, rest = cut(rest, b.n*b.key.width)
	b.header.data, rest = cut(rest, b.n*b.header.width)
	b.time.data, rest = cut(rest, b.n*b.time.width)
	b.attr.data = rest
	return nil
}

func cut(p []byte, n int) (front, rest []byte) { return p[:n], p[n:] }

// check refuses a width whose bit is not set in widths, and a column that holds
// something though it is not used.
func (c *column) check(name string, widths uint, used bool) error {
	if c.width > 8 || widths>>c.width&1 == 0 {
		return corruptf("%s column has width %d", name, c.width)
	}
	if !used && (c.width != 0 || c.min != 0) {
		return corruptf("%s column is used without its feature bit", name)
	}
	return nil
}

// checkLengths proves that the lengths fill the payload exactly and that every
// checkpoint is where they say, so that no access needs to doubt them, and that
// the attributes are known and fit the lengths.
func (b *Batch) checkLengths() error {
	least := uint64(b.value.min) + uint64(b.key.min) + uint64(b.header.min)
	var end uint64
	for i := 0; i < b.n; i += blockRecords {
		if i > 0 {
			if start := b.checkpoint(i >> blockShift); uint64(start) != end {
				return corruptf("checkpoint of record %d says byte %d, the lengths say %d", i, start, end)
			}
		}
		j := min(i+blockRecords, b.n)
		end += uint64(j-i)*least + sumColumn(b.value.rows(i, j), b.value.width)
		if !b.simple {
			end += sumColumn(b.key.rows(i, j), b.key.width) + sumColumn(b.header.rows(i, j), b.header.width)
		}
		if end > uint64(len(b.payload)) {
			return corruptf("records up to %d have %d bytes, the payload has %d", j-1, end, len(b.payload))
		}
	}
	if end != uint64(len(b.payload)) {
		return corruptf("records have %d bytes, the payload has %d", end, len(b.payload))
	}
	b.sumMin = uint32(least) // at most the payload's length by now
	if b.simple {
		return nil
	}
	return b.checkAttributes()
}

func (b *Batch) checkAttributes() error {
	if most := b.attr.min + uint32(maxColumn(b.attr.data)); most > knownAttrs {
		return corruptf("unknown attribute bits %#x", most)
	}
	for i := range b.n {
		switch a := b.attributes(i); {
		case a&attrKey == 0 && b.key.min+b.key.at(i) != 0:
			return corruptf("record %d has key bytes but no key", i)
		case a&attrNullValue != 0 && b.value.min+b.value.at(i) != 0:
			return corruptf("record %d has value bytes but no value", i)
		}
	}
	return nil
}

// checkpoint is where record block*blockRecords begins in the payload.
func (b *Batch) checkpoint(block int) uint32 {
	if block == 0 {
		return 0
	}
	return binary.LittleEndian.Uint32(b.starts[4*(block-1):])
}

func (b *Batch) attributes(i int) byte { return byte(b.attr.min + b.attr.at(i)) }

// Len is the number of records, at least 1.
func (b *Batch) Len() int { return b.n }

// Bytes is the encoded batch.
func (b *Batch) Bytes() []byte { return b.bytes }

// PayloadBytes is the number of bytes of keys, values and headers.
func (b *Batch) PayloadBytes() int { return len(b.payload) }

// BaseOffset is the log offset of the first record; record i has BaseOffset+i.
// NoOffset until a broker has placed the batch.
func (b *Batch) BaseOffset() int64 { return BaseOffset(b.bytes) }

// BaseTimestamp is the smallest timestamp of the batch, Unix milliseconds.
func (b *Batch) BaseTimestamp() int64 { return b.baseTime }

// The accessors below take 0 ≤ i < Len and panic beyond, as a slice does. Each
// adds up at most 31 lengths; a Cursor is faster for going through all records.

// Value is the value of record i; nil for a deletion.
func (b *Batch) Value(i int) []byte {
	if b.attributes(i)&attrNullValue != 0 {
		b.mustHave(i)
		return nil
	}
	start := b.start(i) + b.keyLen(i)
	end := start + b.value.min + b.value.at(i)
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
	n := b.header.min + b.header.at(i)
	if n == 0 {
		b.mustHave(i)
		return nil
	}
	start := b.start(i) + b.keyLen(i) + b.value.min + b.value.at(i)
	return HeaderBlock(b.payload[start : start+n : start+n])
}

// Timestamp is the timestamp of record i, Unix milliseconds.
func (b *Batch) Timestamp(i int) int64 {
	b.mustHave(i)
	if b.time.width == 8 {
		return b.baseTime + int64(binary.LittleEndian.Uint64(b.time.data[8*i:]))
	}
	return b.baseTime + int64(b.time.at(i))
}

// Record is record i.
func (b *Batch) Record(i int) Record {
	start := b.start(i)
	return b.record(i, start, start+b.sumMin+b.value.at(i)+b.key.at(i)+b.header.at(i))
}

// record is record i, which lies at payload[start:end].
func (b *Batch) record(i int, start, end uint32) Record {
	r := Record{Timestamp: b.Timestamp(i)}
	if b.simple {
		r.Value = b.payload[start:end:end]
		return r
	}
	a := b.attributes(i)
	valueAt := start + b.keyLen(i)
	headersAt := valueAt + b.value.min + b.value.at(i)
	if a&attrKey != 0 {
		r.Key = b.payload[start:valueAt:valueAt]
	}
	if a&attrNullValue == 0 {
		r.Value = b.payload[valueAt:headersAt:headersAt]
	}
	if headersAt < end {
		r.Headers = b.payload[headersAt:end:end]
	}
	return r
}

func (b *Batch) keyLen(i int) uint32 { return b.key.min + b.key.at(i) }

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
	block := i &^ (blockRecords - 1)
	start := b.checkpoint(i>>blockShift) + uint32(i-block)*b.sumMin
	start += uint32(sumColumn(b.value.rows(block, i), b.value.width))
	if !b.simple {
		start += uint32(sumColumn(b.key.rows(block, i), b.key.width))
		start += uint32(sumColumn(b.header.rows(block, i), b.header.width))
	}
	return start
}

// All yields every record with its index, in order. For values alone a Cursor
// costs less.
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
