package serialize

import (
	"encoding/binary"
	"fmt"
)

// Open checks the batch at the start of b, structure and checksum, and returns a
// view of it. Bytes behind the batch are left alone; Bytes tells where it ends.
// It does not allocate unless it fails. The errors are ErrTruncated,
// ErrNotBatch, ErrVersion, ErrFeatures, ErrChecksum, ErrCorrupt and, for what a
// Decoder opens, ErrCompressed; all wrapped with what was found.
func Open(b []byte) (batch Batch, err error) {
	err = batch.open(b, true)
	return batch, err
}

// OpenTrusted is Open without the checksum, for bytes that were checked before
// and have not left the process since. The structure is checked all the same,
// so that no later access can fail.
func OpenTrusted(b []byte) (batch Batch, err error) {
	err = batch.open(b, false)
	return batch, err
}

// open makes b, which is zero, the view of the batch at the start of bytes.
func (b *Batch) open(bytes []byte, verify bool) error {
	bytes, err := whole(bytes, verify)
	if err != nil {
		return err
	}
	if c := Compression(bytes[offCompression]); c != None {
		return fmt.Errorf("%w: by %s", ErrCompressed, c)
	}
	return b.view(bytes)
}

// whole cuts b to the batch at its start, all of which must be there, with the
// right checksum if that is to be verified.
func whole(b []byte, verify bool) ([]byte, error) {
	size, err := Size(b)
	if err != nil {
		return nil, err
	}
	if size > len(b) {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrTruncated, len(b), size)
	}
	b = b[:size:size]
	if verify {
		if want, got := binary.LittleEndian.Uint32(b[offCRC:]), checksum(b); want != got {
			return nil, fmt.Errorf("%w: CRC32C is %08x, the header says %08x (%d bytes)", ErrChecksum, got, want, size)
		}
	}
	return b, nil
}

// view makes b the view of a whole, uncompressed batch.
func (b *Batch) view(bytes []byte) error {
	var p parts
	if err := b.parseHeader(bytes, &p); err != nil {
		return err
	}
	if p.end != len(bytes) {
		return corruptf("header describes %d bytes (%d records, %d of payload), the batch has %d", p.end, b.n, p.checkpoints-HeaderBytes, len(bytes))
	}
	b.bytes = bytes
	b.payload = bytes[HeaderBytes:p.checkpoints:p.checkpoints]
	b.checkpoints, b.starts.offset = uint32(p.checkpoints), uint32(p.starts)
	b.value.offset, b.key.offset, b.header.offset = uint32(p.values), uint32(p.keys), uint32(p.headers)
	b.time.offset, b.attr.offset = uint32(p.times), uint32(p.attrs)
	if b.n&7 != 0 && (b.leftOver(&b.value, b.n) || b.leftOver(&b.time, b.n) ||
		!b.simple && (b.leftOver(&b.key, b.n) || b.leftOver(&b.header, b.n) || b.leftOver(&b.attr, b.n))) {
		return corruptf("bits behind a column's last number are not zero")
	}
	if b.leftOver(&b.starts, blocks(b.n)) {
		return corruptf("bits behind the last block time are not zero")
	}
	return b.checkLengths()
}

// leftOver says whether bits are set behind the n numbers of column c.
func (b *Batch) leftOver(c *column, n int) bool {
	end := n * int(c.width)
	return end&7 != 0 && b.bytes[int(c.offset)+end>>3]>>(end&7) != 0
}

// parseHeader reads the header's numbers, within their limits, and computes
// where the parts of the uncompressed batch lie. It fills in p, which is zero: a copy
// of parts just written would wait for the writes.
func (b *Batch) parseHeader(h []byte, p *parts) error {
	le := binary.LittleEndian
	h = h[:HeaderBytes]
	records := le.Uint32(h[offRecords:])
	if records == 0 || records > MaxRecords {
		return corruptf("record count %d, a batch has 1 to %d", records, MaxRecords)
	}
	p.valueW, p.keyW = widthOf(h[offWidths]&15), widthOf(h[offWidths]>>4)
	p.headerW, p.attrW = widthOf(h[offWidths+1]&15), widthOf(h[offWidths+1]>>4)
	p.timeW, p.startW = widthOf(h[offWidths+2]&15), widthOf(h[offWidths+2]>>4)
	features := le.Uint16(h[offFeatures:])
	b.n, b.simple = int(records), features&richFeatures == 0
	b.baseTime, b.minStep = int64(le.Uint64(h[offTimestamp:])), int64(le.Uint64(h[offMinStep:]))
	b.value.min, b.value.width = le.Uint32(h[offMinValue:]), int8(p.valueW)
	b.key.min, b.key.width = le.Uint32(h[offMinKey:]), int8(p.keyW)
	b.header.min, b.header.width = le.Uint32(h[offMinHeaders:]), int8(p.headerW)
	b.attr.min, b.attr.width = uint32(h[offMinAttr]), int8(p.attrW)
	b.time.width, b.starts.width = int8(p.timeW), int8(p.startW)
	switch {
	case b.value.wrong(32, true):
		return b.value.refuse("value length", 32)
	case b.key.wrong(32, features&featureKeys != 0):
		return b.key.refuse("key length", 32)
	case b.header.wrong(32, features&featureHeaders != 0):
		return b.header.refuse("header length", 32)
	case b.attr.wrong(2, features&featureAttributes != 0):
		return b.attr.refuse("attribute", 2)
	case b.time.wrong(64, true):
		return b.time.refuse("timestamp", 64)
	case b.starts.wrong(64, features&featureSteps != 0):
		return b.starts.refuse("block time", 64)
	}
	p.steps = features&featureSteps != 0
	if !p.steps && b.minStep != 0 {
		return corruptf("a smallest step without steps")
	}
	b.steps = p.steps
	p.place(b.n, int(le.Uint32(h[offPayload:]))) // at most 2^32 + 2^20·25: no overflow
	return nil
}

// wrong: the width does not exist or is beyond most, or the column holds something
// though it is not used.
func (c *column) wrong(most int8, used bool) bool {
	return c.width < 0 || c.width > most || !used && (c.width != 0 || c.min != 0)
}

// refuse says why a column is wrong.
func (c *column) refuse(name string, most int8) error {
	if c.width < 0 || c.width > most {
		return corruptf("%s column has an unknown width, or more than %d bits", name, most)
	}
	return corruptf("%s column is used without its feature bit", name)
}

// checkLengths proves that the lengths fill the payload exactly and that every
// checkpoint is where they say, so that no access needs to doubt them, and that
// the attributes are known and fit the lengths.
func (b *Batch) checkLengths() error {
	// No sum overflows: at most 2^20 records of three 33-bit lengths.
	least := uint64(b.value.min) + uint64(b.key.min) + uint64(b.header.min)
	var end uint64
	var sums [16]uint64
	for at, all := 0, blocks(b.n); at < all; at += len(sums) {
		group := sums[:min(len(sums), all-at)]
		b.blockSums(group, at)
		for k, sum := range group {
			block := at + k
			if start := b.checkpoint(block); uint64(start) != end {
				return corruptf("checkpoint of record %d says byte %d, the lengths say %d", block<<blockShift, start, end)
			}
			end += uint64(min(blockRecords, b.n-block<<blockShift))*least + sum
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

// blockSums writes what the length columns add up to in each block from block at
// on.
func (b *Batch) blockSums(sums []uint64, at int) {
	if at > 0 {
		clear(sums) // of the blocks before
	}
	full := min(len(sums), b.n>>blockShift-at)
	first := (at + full) << blockShift
	for _, c := range [...]*column{&b.value, &b.key, &b.header} {
		if c.width == 0 {
			continue
		}
		addBlocks(sums[:full], b.from(c, at<<blockShift), int(c.width))
		if full < len(sums) {
			sums[full] += sumColumn(b.from(c, first), b.n-first, int(c.width))
		}
		if b.simple {
			return
		}
	}
}

func (b *Batch) checkAttributes() error {
	for i := range b.n {
		switch a := b.attr.min + b.at(&b.attr, i); {
		case a > knownAttrs:
			return corruptf("unknown attribute bits %#x of record %d", a, i)
		case a&attrKey == 0 && b.keyLen(i) != 0:
			return corruptf("record %d has key bytes but no key", i)
		case a&attrNullValue != 0 && b.valueLen(i) != 0:
			return corruptf("record %d has value bytes but no value", i)
		}
	}
	return nil
}
