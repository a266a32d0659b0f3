package broker

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/serialize"
)

// checker checks the batches that arrive at a Core or Proxy. It belongs to their
// exclusion.
//
// A compressed batch is decompressed where it enters, in the proxy or, from a
// client of its own, in the broker, and its records are dropped: what is not what
// its header says would stop every consumer of the topic. Nobody does that again,
// and the batch goes on as it came.
type checker struct {
	limit   int // bytes of a batch, uncompressed
	decoder *serialize.Decoder
}

// check looks at batch, all that a Produce holds behind its header. entering says
// that nobody checked it before.
func (k *checker) check(batch []byte, entering bool) (serialize.Info, *wire.Error) {
	info, err := serialize.Check(batch)
	switch {
	case err != nil:
	case info.Bytes != len(batch):
		err = fmt.Errorf("%d bytes follow the batch", len(batch)-info.Bytes)
	case info.PlainBytes > k.limit:
		return info, tooLarge(info.PlainBytes, k.limit)
	case info.Compression != serialize.None && entering:
		err = k.decompress(batch)
	}
	if err != nil {
		return info, &wire.Error{Code: wire.CorruptBatch, Text: err.Error()}
	}
	return info, nil
}

func (k *checker) decompress(batch []byte) (err error) {
	if k.decoder == nil {
		if k.decoder, err = serialize.NewDecoder(k.limit); err != nil {
			return err
		}
	}
	_, err = k.decoder.Open(batch)
	return err
}

// open is check for a proxy, which takes small batches apart: records means
// nothing for a compressed one, which it leaves as it is. verified says that this batch was
// opened before.
func (k *checker) open(batch []byte, verified bool) (info serialize.Info, records serialize.Batch, refusal *wire.Error) {
	open := serialize.Open
	if verified {
		open = serialize.OpenTrusted
	}
	records, err := open(batch)
	if errors.Is(err, serialize.ErrCompressed) {
		info, refusal = k.check(batch, !verified)
		return info, records, refusal
	}
	if err == nil && len(records.Bytes()) != len(batch) {
		err = fmt.Errorf("%d bytes follow the batch", len(batch)-len(records.Bytes()))
	}
	if err != nil {
		return info, records, &wire.Error{Code: wire.CorruptBatch, Text: err.Error()}
	}
	return serialize.Info{Records: records.Len(), Bytes: len(batch), PlainBytes: len(batch)}, records, nil
}
