// Package codecs encodes and reads the same batches in several formats, so that
// the batch format can be compared with what others do: Kafka's RecordBatch v2
// through franz-go's kmsg, and Protocol Buffers. All of them reuse their buffers.
package codecs

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/serialize"
)

// Names of the codecs.
const (
	Millrace = "millrace"
	Kafka    = "kafka-v2"
	Protobuf = "protobuf"
)

// Options of a codec.
type Options struct {
	// CRC: Encode writes a checksum, Visit verifies it.
	CRC         bool
	Compression serialize.Compression
	// Workers encode one batch, 1 or more; only Millrace takes more than one.
	Workers int
	// MaxBytes bounds a batch, uncompressed.
	MaxBytes int
}

// Codec belongs to one goroutine.
type Codec interface {
	// Encode encodes records, which have a value and a timestamp, as one batch. The
	// result is valid until the next Encode.
	Encode(records []serialize.Record) ([]byte, error)
	// Visit goes through the values of a batch and returns how many bytes they have.
	Visit(batch []byte) (int, error)
	Close()
}

// New makes a codec.
func New(name string, o Options) (Codec, error) {
	if o.Workers < 1 || name != Millrace && o.Workers > 1 {
		return nil, fmt.Errorf("codecs: %s with %d workers", name, o.Workers)
	}
	switch name {
	case Millrace:
		return newMillrace(o)
	case Kafka:
		return newKafka(o)
	case Protobuf:
		if o.Compression != serialize.None {
			return nil, errors.New("codecs: protobuf has no compression of its own")
		}
		return newProtobuf(o), nil
	}
	return nil, fmt.Errorf("codecs: unknown codec %q (%s, %s or %s)", name, Millrace, Kafka, Protobuf)
}

// touched keeps the compiler from leaving a visit out.
var touched byte

// touch reads the first byte of a value.
func touch(sum byte, value []byte) byte {
	if len(value) > 0 {
		sum ^= value[0]
	}
	return sum
}

type millrace struct {
	o          Options
	encoder    *serialize.Encoder
	compressor *serialize.Compressor
	decoder    *serialize.Decoder
	buf        []byte
}

func newMillrace(o Options) (*millrace, error) {
	m := &millrace{o: o, buf: make([]byte, o.MaxBytes)}
	var err error
	if m.encoder, err = serialize.NewEncoder(o.Workers); err != nil {
		return nil, err
	}
	if m.compressor, err = serialize.NewCompressor(o.Compression); err != nil {
		return nil, err
	}
	if m.decoder, err = serialize.NewDecoder(o.MaxBytes); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *millrace) Close() { m.encoder.Close() }

func (m *millrace) Encode(records []serialize.Record) ([]byte, error) {
	batch, err := m.encoder.Encode(m.buf, records)
	if err != nil {
		return nil, err
	}
	return m.compressor.Compress(batch)
}

func (m *millrace) Visit(batch []byte) (int, error) {
	var b serialize.Batch
	var err error
	switch {
	case m.o.Compression != serialize.None:
		b, err = m.decoder.Open(batch)
	case m.o.CRC:
		b, err = serialize.Open(batch)
	default:
		b, err = serialize.OpenTrusted(batch)
	}
	if err != nil {
		return 0, err
	}
	n, sum := 0, touched
	for v := range b.Values() {
		n += len(v)
		sum = touch(sum, v)
	}
	touched = sum
	return n, nil
}
