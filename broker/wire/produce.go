package wire

import "encoding/binary"

// Produce asks to store one batch at the end of a topic.
type Produce struct {
	Correlation uint32
	Topic       []byte
	Batch       []byte // an encoded batch (package serialize)
}

// ProduceHeaderBytes is what precedes the batch.
func ProduceHeaderBytes(topic string) int { return HeaderBytes + len(topic) }

// AppendProduceHeader appends all of a Produce but the batch, which follows it.
func AppendProduceHeader(dst []byte, correlation uint32, topic string) []byte {
	dst = appendHeader(dst, KindProduce, uint8(len(topic)), 0, correlation)
	return append(dst, topic...)
}

// ParseProduce reads a Produce. The batch is not looked at.
func ParseProduce(p []byte) (Produce, error) {
	if err := expect(p, KindProduce, HeaderBytes); err != nil {
		return Produce{}, err
	}
	topic, batch, err := topicOf(p[HeaderBytes:], int(p[1]), false)
	switch {
	case err != nil:
		return Produce{}, err
	case len(batch) == 0:
		return Produce{}, bad("a Produce without a batch")
	case binary.LittleEndian.Uint16(p[2:]) != 0:
		return Produce{}, bad("unknown flags %#x of a Produce", binary.LittleEndian.Uint16(p[2:]))
	}
	return Produce{binary.LittleEndian.Uint32(p[4:]), topic, batch}, nil
}

// Ack acknowledges one Produce.
type Ack struct {
	Correlation uint32
	Base        uint64 // offset of the batch's first record
}

// AcksBytes is the size of a ProduceAck of n acknowledgements.
func AcksBytes(n int) int { return HeaderBytes + n*ackBytes }

// AppendAcks appends one ProduceAck with all of acks, 1 to MaxAcks.
func AppendAcks(dst []byte, acks []Ack) []byte {
	dst = appendHeader(dst, KindProduceAck, 0, uint16(len(acks)), 0)
	for _, a := range acks {
		dst = binary.LittleEndian.AppendUint32(dst, a.Correlation)
		dst = binary.LittleEndian.AppendUint64(dst, a.Base)
	}
	return dst
}

// Acks is the list of a ProduceAck; a view.
type Acks struct{ p []byte }

// ParseAcks reads a ProduceAck.
func ParseAcks(p []byte) (Acks, error) {
	if err := expect(p, KindProduceAck, HeaderBytes); err != nil {
		return Acks{}, err
	}
	n := int(binary.LittleEndian.Uint16(p[2:]))
	if n == 0 || len(p) != AcksBytes(n) {
		return Acks{}, bad("a ProduceAck of %d acknowledgements and %d bytes, want %d", n, len(p), AcksBytes(n))
	}
	return Acks{p[HeaderBytes:]}, nil
}

// Len is the number of acknowledgements.
func (a Acks) Len() int { return len(a.p) / ackBytes }

// At is acknowledgement i.
func (a Acks) At(i int) Ack {
	p := a.p[i*ackBytes:]
	return Ack{binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint64(p[4:])}
}
