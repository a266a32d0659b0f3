package serialize

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Compression is how the body of a batch is compressed. The header never is.
type Compression uint8

// The numbers are the format's.
const (
	None Compression = 0
	S2   Compression = 1
	Zstd Compression = 2
)

// String is the name as a user writes it.
func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case S2:
		return "s2"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// ParseCompression is the inverse of String.
func ParseCompression(name string) (Compression, error) {
	for c := None; c <= Zstd; c++ {
		if c.String() == name {
			return c, nil
		}
	}
	return None, fmt.Errorf("serialize: unknown compression %q (none, s2 or zstd)", name)
}

// Compressor compresses finished batches. It belongs to one goroutine and keeps
// a buffer as large as the largest batch it has seen.
type Compressor struct {
	how  Compression
	zstd *zstd.Encoder
	buf  []byte
}

// NewCompressor makes a compressor. With None it leaves batches as they are.
func NewCompressor(how Compression) (*Compressor, error) {
	c := &Compressor{how: how}
	switch how {
	case None, S2:
	case Zstd:
		var err error
		// The batch has a checksum of its own.
		c.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("serialize: zstd: %w", err)
		}
	default:
		return nil, fmt.Errorf("serialize: %s is unknown (none, s2 or zstd)", how)
	}
	return c, nil
}

// leastSaving: a body that does not get smaller by 1/16 stays as it is, because
// its reader would have to decompress it for almost nothing.
const leastSaving = 16

// Compress compresses batch, which a Builder or Encoder has finished, where it
// lies, and returns its front: all of it, untouched, if it does not shrink. What
// is behind the front is garbage then. The base offset is kept.
func (c *Compressor) Compress(batch []byte) ([]byte, error) {
	if size, err := Size(batch); err != nil {
		return nil, err
	} else if size != len(batch) {
		return nil, corruptf("size field says %d bytes, the batch to compress has %d", size, len(batch))
	}
	if c.how == None || batch[offCompression] != byte(None) {
		return batch, nil
	}
	body := batch[HeaderBytes:]
	switch c.how {
	case S2:
		if need := s2.MaxEncodedLen(len(body)); cap(c.buf) < need {
			c.buf = make([]byte, need)
		}
		c.buf = s2.Encode(c.buf[:cap(c.buf)], body)
	case Zstd:
		c.buf = c.zstd.EncodeAll(body, c.buf[:0])
	}
	if len(c.buf) > len(body)-len(body)/leastSaving-1 {
		return batch, nil
	}
	out := batch[:HeaderBytes+copy(body, c.buf)]
	out[offCompression] = byte(c.how)
	seal(out)
	return out, nil
}

// seal makes size and checksum right.
func seal(batch []byte) {
	binary.LittleEndian.PutUint32(batch[offSize:], uint32(len(batch)))
	binary.LittleEndian.PutUint32(batch[offCRC:], checksum(batch))
}

// Decoder opens batches that may be compressed. It belongs to one goroutine.
type Decoder struct {
	limit int
	zstd  *zstd.Decoder
	buf   []byte
}

// NewDecoder makes a decoder of compressed batches that have at most maxBytes
// uncompressed, 64 to MaxBatchBytes. It holds one such batch at most, and for
// zstd a state of less than maxBytes + 2 MiB.
func NewDecoder(maxBytes int) (*Decoder, error) {
	if maxBytes < HeaderBytes || maxBytes > MaxBatchBytes {
		return nil, fmt.Errorf("serialize: decoder for %d bytes, want %d to %d", maxBytes, HeaderBytes, MaxBatchBytes)
	}
	return &Decoder{limit: maxBytes}, nil
}

// Open is the function Open, and decompresses if need be. Views of a batch that
// was compressed lie in the decoder's memory and end with its next Open; Bytes is
// the uncompressed batch then, and Size tells how long the compressed one is.
// Further errors: ErrTooLarge.
func (d *Decoder) Open(b []byte) (batch Batch, err error) {
	b, err = whole(b, true)
	if err != nil {
		return Batch{}, err
	}
	if b[offCompression] != byte(None) {
		if b, err = d.decompress(b); err != nil {
			return Batch{}, err
		}
	}
	err = batch.view(b)
	return batch, err
}

// decompress makes the uncompressed batch. The header says how large it is, and
// nothing larger is made.
func (d *Decoder) decompress(b []byte) ([]byte, error) {
	var header Batch
	var p parts
	err := header.parseHeader(b, &p)
	if err != nil {
		return nil, err
	}
	if p.end > d.limit {
		return nil, fmt.Errorf("%w: %d bytes uncompressed, the limit is %d", ErrTooLarge, p.end, d.limit)
	}
	if cap(d.buf) < p.end {
		d.buf = make([]byte, p.end)
	}
	out := d.buf[:p.end:p.end]
	from, body := b[HeaderBytes:], out[HeaderBytes:]
	got := -1
	switch Compression(b[offCompression]) {
	case S2:
		if n, err := s2.DecodedLen(from); err != nil || n != len(body) {
			return nil, corruptf("s2 block of %d bytes, the header describes %d (%v)", n, len(body), err)
		}
		var made []byte
		if made, err = s2.Decode(body, from); err == nil {
			got = len(made)
		}
	case Zstd:
		if d.zstd == nil {
			d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true),
				zstd.WithDecoderMaxMemory(uint64(max(d.limit, 1<<10))), zstd.WithDecodeAllCapLimit(true))
			if err != nil {
				return nil, fmt.Errorf("serialize: zstd: %w", err)
			}
		}
		var made []byte
		if made, err = d.zstd.DecodeAll(from, body[:0:len(body)]); err == nil {
			got = len(made)
		}
	}
	if err != nil || got != len(body) {
		return nil, corruptf("body of %d bytes does not decompress to the %d that the header describes (%d, %v)", len(from), len(body), got, err)
	}
	copy(out, b[:HeaderBytes])
	out[offCompression] = byte(None)
	seal(out)
	return out, nil
}
