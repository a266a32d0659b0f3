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
func Open(b []byte) (Batch, error) { return open(b, true) }

// OpenTrusted is Open without the checksum, for bytes that were checked before
// and have not left the process since. The structure is checked all the same,
// so that no later access can fail.
func OpenTrusted(b []byte) (Batch, error) { return open(b, false) }

func open(b []byte, verify bool) (batch Batch, err error) {
	b, err = whole(b, verify)
	if err != nil {
		return Batch{}, err
	}
	if c := Compression(b[offCompression]); c != None {
		return Batch{}, fmt.Errorf("%w: by %s", ErrCompressed, c)
	}
	err = batch.view(b)
	return batch, err
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
	p, err := b.parseHeader(bytes)
	if err != nil {
		return err
	}
	if p.end != len(bytes) {
		return corruptf("header describes %d bytes (%d records, %d of payload), the batch has %d", p.end, b.n, p.checkpoints-HeaderBytes, len(bytes))
	}
	b.bytes = bytes
	b.payload = bytes[HeaderBytes:p.checkpoints:p.checkpoints]
	b.checkpoints = bytes[p.checkpoints:p.starts]
	b.starts.data, b.value.data = bytes[p.starts:p.values], bytes[p.values:p.keys]
	b.key.data, b.header.data = bytes[p.keys:p.headers], bytes[p.headers:p.times]
	b.time.data, b.attr.data = bytes[p.times:p.attrs], bytes[p.attrs:p.end]
	for _, c := range [...]*column{&b.value, &b.key, &b.header, &b.time, &b.attr} {
		if used := b.n * c.width & 7; used != 0 && c.data[len(c.data)-1]>>used != 0 {
			return corruptf("bits behind a column's last number are not zero")
		}
	}
	if used := blocks(b.n) * b.starts.width & 7; used != 0 && b.starts.data[len(b.starts.data)-1]>>used != 0 {
		return corruptf("bits behind the last block time are not zero")
	}
	return b.checkLengths()
}

// parseHeader reads the header's numbers, within their limits, and computes
// where the parts of the uncompressed batch lie.
func (b *Batch) parseHeader(h []byte) (p parts, err error) {
	le := binary.LittleEndian
	h = h[:HeaderBytes]
	records := le.Uint32(h[offRecords:])
	if records == 0 || records > MaxRecords {
		return p, corruptf("record count %d, a batch has 1 to %d", records, MaxRecords)
	}
	p.valueW, p.keyW = widthOf(h[offWidths]&15), widthOf(h[offWidths]>>4)
	p.headerW, p.attrW = widthOf(h[offWidths+1]&15), widthOf(h[offWidths+1]>>4)
	p.timeW, p.startW = widthOf(h[offWidths+2]&15), widthOf(h[offWidths+2]>>4)
	features := le.Uint16(h[offFeatures:])
	*b = Batch{
		n: int(records), simple: features&richFeatures == 0,
		baseTime: int64(le.Uint64(h[offTimestamp:])), minStep: int64(le.Uint64(h[offMinStep:])),
		value:  column{width: p.valueW, min: le.Uint32(h[offMinValue:])},
		key:    column{width: p.keyW, min: le.Uint32(h[offMinKey:])},
		header: column{width: p.headerW, min: le.Uint32(h[offMinHeaders:])},
		attr:   column{width: p.attrW, min: uint32(h[offMinAttr])},
		time:   column{width: p.timeW}, starts: column{width: p.startW},
	}
	if err := b.value.check("value length", 32, true); err != nil {
		return p, err
	}
	if err := b.key.check("key length", 32, features&featureKeys != 0); err != nil {
		return p, err
	}
	if err := b.header.check("header length", 32, features&featureHeaders != 0); err != nil {
		return p, err
	}
	if err := b.attr.check("attribute", 2, features&featureAttributes != 0); err != nil {
		return p, err
	}
	if err := b.time.check("timestamp", 64, true); err != nil {
		return p, err
	}
	if err := b.starts.check("block time", 64, features&featureSteps != 0); err != nil {
		return p, err
	}
	p.steps = features&featureSteps != 0
	if !p.steps && b.minStep != 0 {
		return p, corruptf("a smallest step without steps")
	}
	b.steps = p.steps
	p.place(b.n, int(le.Uint32(h[offPayload:]))) // at most 2^32 + 2^20·25: no overflow
	return p, nil
}

// check refuses a width that does not exist or is beyond most, and a column that
// holds something though it is not used.
func (c *column) check(name string, most int, used bool) error {
	if c.width < 0 || c.width > most {
		return corruptf("%s column has an unknown width, or more than %d bits", name, most)
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
	// No sum overflows: at most 2^20 records of three 33-bit lengths.
	least := uint64(b.value.min) + uint64(b.key.min) + uint64(b.header.min)
	var end uint64
	var sums [64]uint64
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
	clear(sums)
	for _, c := range [...]*column{&b.value, &b.key, &b.header} {
		if c.width == 0 {
			continue
		}
		full := min(len(sums), b.n>>blockShift-at)
		addBlocks(sums[:full], c.from(at<<blockShift), c.width)
		if full < len(sums) {
			first := (at + full) << blockShift
			sums[full] += sumColumn(c.from(first), b.n-first, c.width)
		}
	}
}

func (b *Batch) checkAttributes() error {
	if most := b.attr.min + uint32(maxColumn(&b.attr, b.n)); most > knownAttrs {
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
