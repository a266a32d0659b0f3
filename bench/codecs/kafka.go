package codecs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace/millrace/serialize"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Where fields of a RecordBatch lie (Kafka's protocol guide, "Record Batch").
const (
	kafkaLengthAt = 8
	kafkaCRCAt    = 17
	kafkaCRCFrom  = 21
	kafkaHeader   = 61
)

// kafka writes a batch's header through kmsg, then each record behind it, so that
// a record is copied once.
type kafka struct {
	o    Options
	zstd *zstd.Encoder
	unz  *zstd.Decoder
	buf  []byte
	// What compression makes, and what it is made from.
	packed, unpacked []byte
}

func newKafka(o Options) (*kafka, error) {
	k := &kafka{o: o, buf: make([]byte, 0, o.MaxBytes)}
	if o.Compression == serialize.Zstd {
		var err error
		// As a Compressor does.
		if k.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true)); err != nil {
			return nil, err
		}
		if k.unz, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.IgnoreChecksum(true)); err != nil {
			return nil, err
		}
	}
	if o.Compression != serialize.None {
		k.packed, k.unpacked = make([]byte, s2.MaxEncodedLen(o.MaxBytes)), make([]byte, o.MaxBytes)
	}
	return k, nil
}

func (k *kafka) Close() {
	if k.zstd != nil {
		_ = k.zstd.Close() // it has no output to lose
		k.unz.Close()
	}
}

// varintBytes is the length of n's zigzag varint.
func varintBytes(n int64) int { return (bits.Len64(uint64(n<<1^n>>63)|1) + 6) / 7 }

func (k *kafka) Encode(records []serialize.Record) ([]byte, error) {
	first, last := records[0].Timestamp, records[0].Timestamp
	for i := range records {
		last = max(last, records[i].Timestamp)
	}
	header := kmsg.RecordBatch{
		FirstOffset: 0, PartitionLeaderEpoch: -1, Magic: 2, Attributes: int16(k.o.Compression),
		LastOffsetDelta: int32(len(records) - 1), FirstTimestamp: first, MaxTimestamp: last,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(len(records)),
	}
	b := header.AppendTo(k.buf[:0])
	for i := range records {
		r := kmsg.Record{TimestampDelta64: records[i].Timestamp - first, OffsetDelta: int32(i), Key: records[i].Key, Value: records[i].Value}
		length := 1 + varintBytes(r.TimestampDelta64) + varintBytes(int64(i)) + 1 + varintBytes(int64(len(r.Value))) + len(r.Value) + 1
		if r.Key != nil {
			length += varintBytes(int64(len(r.Key))) - 1 + len(r.Key)
		}
		r.Length = int32(length)
		b = r.AppendTo(b)
	}
	switch k.o.Compression {
	case serialize.S2:
		b = append(b[:kafkaHeader], s2.Encode(k.packed, b[kafkaHeader:])...)
	case serialize.Zstd:
		b = append(b[:kafkaHeader], k.zstd.EncodeAll(b[kafkaHeader:], k.packed[:0])...)
	}
	k.buf = b
	binary.BigEndian.PutUint32(b[kafkaLengthAt:], uint32(len(b)-kafkaLengthAt-4))
	if k.o.CRC {
		binary.BigEndian.PutUint32(b[kafkaCRCAt:], crc32.Checksum(b[kafkaCRCFrom:], castagnoli))
	}
	return b, nil
}

func (k *kafka) Visit(batch []byte) (int, error) {
	var header kmsg.RecordBatch
	if err := header.ReadFrom(batch); err != nil {
		return 0, err
	}
	if k.o.CRC && crc32.Checksum(batch[kafkaCRCFrom:], castagnoli) != uint32(header.CRC) {
		return 0, errors.New("codecs: checksum mismatch")
	}
	rest := header.Records
	var err error
	switch k.o.Compression {
	case serialize.S2:
		rest, err = s2.Decode(k.unpacked, rest)
	case serialize.Zstd:
		rest, err = k.unz.DecodeAll(rest, k.unpacked[:0])
	}
	if err != nil {
		return 0, err
	}
	n, sum := 0, touched
	var r kmsg.Record
	for range header.NumRecords {
		length, w := binary.Varint(rest)
		if w <= 0 || length < 0 || length > int64(len(rest)-w) {
			return 0, fmt.Errorf("codecs: record of %d bytes, %d are left", length, len(rest)-w)
		}
		if err := r.ReadFrom(rest[:w+int(length)]); err != nil {
			return 0, err
		}
		rest = rest[w+int(length):]
		n += len(r.Value)
		sum = touch(sum, r.Value)
	}
	touched = sum
	return n, nil
}
