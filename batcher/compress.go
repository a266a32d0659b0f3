package batcher

import (
	"sync/atomic"

	"github.com/millrace/millrace/hugepages"
)

// Counters count the batches that were closed. Any goroutine may read them.
type Counters struct {
	Batches    atomic.Int64
	Records    atomic.Int64
	PlainBytes atomic.Int64 // of whole batches, as they closed
	Bytes      atomic.Int64 // the same, as they were handed to the sink
	Compressed atomic.Int64 // batches that compression made smaller
}

const (
	// minCompressBytes is the size from which a batch is worth a try: below, a few
	// records have little in common, and a packet is sent for them in any case.
	minCompressBytes = 512
	// maxCompressSkips bounds how many batches in succession are left alone after
	// ones that did not shrink: 1, 2, 4 … of them. Records that are compressed, or
	// encrypted, already cost next to nothing so.
	maxCompressSkips = 64
)

// compressing is what a batcher knows of how its records compress.
type compressing struct {
	skips int // how many batches to leave alone after the next that does not shrink
	skip  int // how many are still to be left alone
}

// closeBuf makes the batch in buf, finished and size bytes long, ready for the
// sink.
func (b *Batcher) closeBuf(buf *hugepages.Buf, records, size int) {
	buf.Resize(size)
	plain := size
	if b.opts.Compressor != nil && size >= minCompressBytes {
		size = b.compress(buf)
	}
	if c := b.opts.Counters; c != nil {
		c.Batches.Add(1)
		c.Records.Add(int64(records))
		c.PlainBytes.Add(int64(plain))
		c.Bytes.Add(int64(size))
		if size < plain {
			c.Compressed.Add(1)
		}
	}
}

// compress compresses the batch in buf where it lies, and returns its size.
func (b *Batcher) compress(buf *hugepages.Buf) int {
	k, plain := &b.compressing, buf.Len()
	if k.skip > 0 {
		k.skip--
		return plain
	}
	// It fails only on what is no batch, and leaves that as it is.
	out, err := b.opts.Compressor.Compress(buf.Bytes())
	if err != nil || len(out) == plain {
		k.skips = min(max(1, 2*k.skips), maxCompressSkips)
		k.skip = k.skips
		return plain
	}
	k.skips = 0
	buf.Resize(len(out))
	return len(out)
}
