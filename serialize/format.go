package serialize

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// Sizes and limits of the format.
const (
	// Version is the version that Builder writes and Open reads.
	Version = 1
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

	knownFeatures = featureKeys | featureHeaders | featureAttributes
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
	offMagic      = 0  // u32
	offCRC        = 4  // u32, CRC32C of [crcFrom, size)
	offBase       = 8  // i64, outside the CRC
	offVersion    = 16 // u8, then a zero byte
	offFeatures   = 18 // u16
	offSize       = 20 // u32
	offRecords    = 24 // u32
	offPayload    = 28 // u32
	offTimestamp  = 32 // i64, smallest timestamp
	offMinValue   = 40 // u32, smallest value length
	offMinKey     = 44 // u32, smallest key length
	offMinHeaders = 48 // u32, smallest header block length
	offWidths     = 52 // u8 each: value, key, headers, timestamp, attributes
	offMinAttr    = 57 // u8
	offReserved   = 58 // six zero bytes

	crcFrom = 16
	// magic is the bytes "mrb\x00".
	magic = 0x0062726d
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(batch []byte) uint32 { return crc32.Checksum(batch[crcFrom:], castagnoli) }

// widthFor is the width in bytes of a column whose values lie within span of
// their smallest.
func widthFor(span uint64) int {
	switch n := bits.Len64(span); {
	case n == 0:
		return 0
	case n <= 8:
		return 1
	case n <= 16:
		return 2
	case n <= 32:
		return 4
	default:
		return 8
	}
}

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
