package codecs

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/serialize"
)

// protobuf is
//
//	message Batch  { sint64 base = 1; repeated Record records = 2; }
//	message Record { bytes key = 1; bytes value = 2; sint64 timestamp_delta = 3; }
//
// written as generated code would at best: lengths computed, nothing allocated.
// The format has no checksum; where one is asked for, the four bytes of a CRC32C
// stand behind it.
type protobuf struct {
	crc bool
	buf []byte
}

const (
	protoBase, protoRecords              = 1, 2
	protoKey, protoValue, protoTimestamp = 1, 2, 3
	protoTag                             = 1 // bytes of a tag
	protoChecksum                        = 4
)

var errProto = errors.New("codecs: malformed protobuf")

func newProtobuf(o Options) *protobuf { return &protobuf{crc: o.CRC, buf: make([]byte, 0, o.MaxBytes)} }

func (p *protobuf) Close() {}

func (p *protobuf) Encode(records []serialize.Record) ([]byte, error) {
	base := records[0].Timestamp
	b := protowire.AppendTag(p.buf[:0], protoBase, protowire.VarintType)
	b = protowire.AppendVarint(b, protowire.EncodeZigZag(base))
	for i := range records {
		r := &records[i]
		delta := protowire.EncodeZigZag(r.Timestamp - base)
		size := protoTag + protowire.SizeBytes(len(r.Value)) + protoTag + protowire.SizeVarint(delta)
		if r.Key != nil {
			size += protoTag + protowire.SizeBytes(len(r.Key))
		}
		b = protowire.AppendTag(b, protoRecords, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		if r.Key != nil {
			b = protowire.AppendTag(b, protoKey, protowire.BytesType)
			b = protowire.AppendBytes(b, r.Key)
		}
		b = protowire.AppendTag(b, protoValue, protowire.BytesType)
		b = protowire.AppendBytes(b, r.Value)
		b = protowire.AppendTag(b, protoTimestamp, protowire.VarintType)
		b = protowire.AppendVarint(b, delta)
	}
	if p.crc {
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	}
	p.buf = b
	return b, nil
}

func (p *protobuf) Visit(batch []byte) (int, error) {
	if p.crc {
		end := len(batch) - protoChecksum
		if end < 0 || crc32.Checksum(batch[:end], castagnoli) != binary.LittleEndian.Uint32(batch[end:]) {
			return 0, errors.New("codecs: checksum mismatch")
		}
		batch = batch[:end]
	}
	n, sum := 0, touched
	for len(batch) > 0 {
		number, kind, w := protowire.ConsumeTag(batch)
		if w < 0 {
			return 0, errProto
		}
		batch = batch[w:]
		if number != protoRecords {
			if w = protowire.ConsumeFieldValue(number, kind, batch); w < 0 {
				return 0, errProto
			}
			batch = batch[w:]
			continue
		}
		record, w := protowire.ConsumeBytes(batch)
		if w < 0 {
			return 0, errProto
		}
		batch = batch[w:]
		value, err := protoVisitRecord(record)
		if err != nil {
			return 0, err
		}
		n += len(value)
		sum = touch(sum, value)
	}
	touched = sum
	return n, nil
}

// protoVisitRecord reads all fields, as a decoder must, and returns the value.
func protoVisitRecord(record []byte) (value []byte, err error) {
	for len(record) > 0 {
		number, kind, w := protowire.ConsumeTag(record)
		if w < 0 {
			return nil, errProto
		}
		record = record[w:]
		if number == protoValue {
			value, w = protowire.ConsumeBytes(record)
		} else {
			w = protowire.ConsumeFieldValue(number, kind, record)
		}
		if w < 0 {
			return nil, errProto
		}
		record = record[w:]
	}
	return value, nil
}
