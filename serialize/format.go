package serialize

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Sizes and limits of the format.
const (
	// Version is the version that Builder writes and Open reads.
	Version = 2
	// HeaderBytes is the fixed header; the payload follows it.
	HeaderBytes = 64
	// MaxBatchBytes and MaxRecords bound one batch; readers refuse more.
	MaxBatchBytes = 1 << 30
	MaxRecords    = 1 << 20
	// NoOffset is the base offset of a batch that no broker has placed yet.
	NoOffset = -1
)

// Feature bits say which optional columns the batch uses. A reader refuses bits
// it does not know.
const (
	featureKeys       = 1 << 0
	featureHeaders    = 1 << 1
	featureAttributes = 1 << 2
	featureSteps      = 1 << 3 // timestamps are steps, with block times

	richFeatures  = featureKeys | featureHeaders | featureAttributes
	knownFeatures = richFeatures | featureSteps
)

// Attribute bits of a record.
const (
	attrKey       = 1 << 0 // the record has a key, possibly empty
	attrNullValue = 1 << 1 // the value is nil: a deletion

	knownAttrs = attrKey | attrNullValue
)

// blockRecords is how many records share a checkpoint. 32 costs 1/8 byte per
// record and bounds the additions of a random access to 31.
const (
	blockRecords = 32
	blockShift   = 5
)

// Offsets of the header's fields. All numbers are little-endian.
const (
	offMagic       = 0  // u32
	offCRC         = 4  // u32, see checksum
	offBase        = 8  // i64, outside the CRC
	offVersion     = 16 // u8
	offCompression = 17 // u8
	offFeatures    = 18 // u16
	offSize        = 20 // u32
	offRecords     = 24 // u32
	offPayload     = 28 // u32
	offTimestamp   = 32 // i64, smallest timestamp, or smallest block time
	offMinValue    = 40 // u32, smallest value length
	offMinKey      = 44 // u32, smallest key length
	offMinHeaders  = 48 // u32, smallest header block length
	offWidths      = 52 // a nibble each: value, key, headers, attributes, timestamps, block times
	offMinAttr     = 55 // u8
	offMinStep     = 56 // i64, smallest step from one timestamp to the next

	crcFrom = 16
	// magic is the bytes "mrb\x00".
	magic = 0x0062726d
)

// checksum is the CRC32C of a batch: the body first and the header from crcFrom
// behind it. The header is known last, and in this order the body's checksum can
// be taken as the body grows.
func checksum(batch []byte) uint32 {
	return updateCRC(updateCRC(0, batch[HeaderBytes:]), batch[crcFrom:HeaderBytes])
}

// widthFor is the narrowest width, in bits, of a column whose numbers lie within
// span of their smallest: 0 or a power of two, so that no number straddles bytes
// that it does not fill.
func widthFor(span uint64) int {
	n := bits.Len64(span)
	if n <= 1 {
		return n
	}
	return 1 << bits.Len(uint(n-1))
}

// widthCode is a width as the header has it, four bits: 0 is 0, else 1 + log2.
func widthCode(width int) byte { return byte(bits.Len(uint(width))) }

// widthOf is the width of a code; -1 if there is none.
func widthOf(code byte) int {
	if code > 7 {
		return -1
	}
	return 1 << code >> 1
}

// columnBytes is what n numbers of a width take.
func columnBytes(n, width int) int { return (n*width + 7) >> 3 }

// blocks is how many blocks n records make.
func blocks(n int) int { return (n + blockRecords - 1) >> blockShift }

// checkpoints is how many checkpoints a batch of n records has: one for every
// block but the first.
func checkpoints(n int) int { return (n - 1) >> blockShift }

// Size returns how many bytes the batch at the start of b occupies, from its
// header alone; b may end before the batch does, but not before its header. It
// is how a reader of several batches in a row, or of a stream, finds the next.
// Only Open verifies it.
func Size(b []byte) (int, error) {
	if len(b) < HeaderBytes {
		return 0, fmt.Errorf("%w: %d bytes, the header alone has %d", ErrTruncated, len(b), HeaderBytes)
	}
	if m := binary.LittleEndian.Uint32(b[offMagic:]); m != magic {
		return 0, fmt.Errorf("%w: it begins with %x, a batch with %x", ErrNotBatch, b[:4], "mrb\x00")
	}
	if v := b[offVersion]; v != Version {
		return 0, fmt.Errorf("%w: version %d, this reader knows %d", ErrVersion, v, Version)
	}
	if f := binary.LittleEndian.Uint16(b[offFeatures:]); f&^knownFeatures != 0 {
		return 0, fmt.Errorf("%w: bits %#x, this reader knows %#x", ErrFeatures, f, knownFeatures)
	}
	if c := Compression(b[offCompression]); c > Zstd {
		return 0, fmt.Errorf("%w: %s", ErrFeatures, c)
	}
	n := binary.LittleEndian.Uint32(b[offSize:])
	if n < HeaderBytes || n > MaxBatchBytes {
		return 0, corruptf("size field says %d bytes, a batch has %d to %d", n, HeaderBytes, MaxBatchBytes)
	}
	return int(n), nil
}

// BaseOffset reads the base offset of the batch at the start of b, which holds
// at least its header.
func BaseOffset(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b[offBase:])) }

// SetBaseOffset gives the batch at the start of b the log offset of its first
// record. The field lies outside the checksum, so nothing is encoded again; a
// log must therefore check offsets by their order.
func SetBaseOffset(b []byte, offset int64) {
	binary.LittleEndian.PutUint64(b[offBase:], uint64(offset))
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}
