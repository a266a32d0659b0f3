package batcher

import (
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// columnBytes is the most that the columns of n records can take: value, key and
// header lengths of 4 bytes, a timestamp of 8 and attributes of 1 for each, and
// what there is for each block of 32.
func columnBytes(n int) int { return n*(4+4+4+8+1+1) + 64 }

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
		case records > b.opts.MaxBatchRecords || serialize.HeaderBytes+bytes+columnBytes(records) > b.opts.MaxBatchBytes:
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
		size := serialize.HeaderBytes + b.builder.PayloadBytes() + bytes + columnBytes(n+records)
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

// Put copies r into a batch of its own, in a buffer as large as that, and offers it to the
// sink: also a record that no batch of MaxBatchBytes holds. It leaves after all that was
// appended before, and completes in that order. A record of more than MaxQueuedBytes is
// taken when nothing else is queued. Errors as Append's, and the pool's
// hugepages.ErrTooLarge; nothing was taken then.
func (b *Batcher) Put(r *serialize.Record, done Completion) error {
	bytes := len(r.Key) + len(r.Value) + len(r.Headers)
	switch {
	case b.closing:
		return ErrClosed
	case b.records == len(b.dones) || b.bytes > 0 && bytes > b.opts.MaxQueuedBytes-b.bytes || b.failing:
		b.refused = true
		return ErrFull
	}
	if b.open != nil && b.builder.Len() > 0 && b.closeOpen() {
		b.send()
	}
	if b.closing || b.failing || b.open != nil && b.builder.Len() > 0 || int(b.tail-b.head) >= b.opts.MaxBatches {
		b.refused = true // also if others appended from within a completion
		return ErrFull
	}
	buf, err := b.opts.Pool.Get(serialize.HeaderBytes+bytes, hugepages.Batch)
	if err != nil {
		return err
	}
	if _, err := serialize.EncodeOne(buf.Bytes(), r); err != nil {
		buf.Release()
		return err
	}
	b.closeBuf(buf, 1, buf.Len())
	*b.batch(b.tail) = batch{buf: buf, records: 1, bytes: bytes}
	b.tail++
	b.take(bytes, done)
	b.send()
	return nil
}

// take notes a record that was queued.
func (b *Batcher) take(bytes int, done Completion) {
	b.bytes += bytes
	at := b.doneHead + b.records
	if at >= len(b.dones) {
		at -= len(b.dones)
	}
	b.dones[at] = done
	b.records++
}

// Seal closes the open batch now and offers what waits to the sink. It reports
// whether the sink has everything that was appended; what is sent to the link by
// other ways then comes after it. false is a refusal: wait for OnWritable.
func (b *Batcher) Seal() bool {
	if b.open != nil && b.builder.Len() > 0 && !b.closeOpen() {
		b.refused = true
		return false
	}
	b.send()
	if b.sent != b.tail {
		b.refused = true
		return false
	}
	return true
}
