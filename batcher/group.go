package batcher

import (
	"github.com/millrace/millrace/serialize"
)

// maxRowBytes is what one record can take in the columns at their widest: value,
// key and header lengths of 4 bytes, a timestamp of 8, attributes of 1; and a
// checkpoint of 4 for every 32 records, rounded up.
const maxRowBytes = 4 + 4 + 4 + 8 + 1 + 1

// Reserve makes sure that the next records records, with together bytes bytes of
// keys, values and headers, can be appended and share one batch, so that their
// offsets follow each other. If need be it closes the open batch first. It holds
// until another method is called. Errors as Append's; ErrRecordTooLarge: they
// may not fit an empty batch.
func (b *Batcher) Reserve(records, bytes int) error {
	for {
		switch {
		case b.closing:
			return ErrClosed
		case records > b.opts.MaxBatchRecords || serialize.HeaderBytes+bytes+records*maxRowBytes > b.opts.MaxBatchBytes:
			return serialize.ErrRecordTooLarge
		case b.records+records > len(b.dones) || bytes > b.opts.MaxQueuedBytes-b.bytes || b.failing:
			b.refused = true
			return ErrFull
		}
		if b.open == nil {
			if err := b.begin(); err != nil {
				return err
			}
		}
		n := b.builder.Len()
		size := serialize.HeaderBytes + b.builder.PayloadBytes() + bytes + (n+records)*maxRowBytes
		if n+records <= b.opts.MaxBatchRecords && size <= b.opts.MaxBatchBytes {
			return nil
		}
		if !b.closeOpen() {
			b.refused = true
			return ErrFull
		}
		b.send() // may call back, and others append: look again
	}
}

// Seal closes the open batch now and offers what waits to the sink. It reports
// whether the sink has everything that was appended; what is sent to the link by
// other ways then comes after it.
func (b *Batcher) Seal() bool {
	if b.open != nil && b.builder.Len() > 0 && !b.closeOpen() {
		return false
	}
	b.send()
	return b.sent == b.tail
}
