package wire_test

import (
	"bytes"
	"testing"

	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/internal/docbytes"
	"github.com/millrace/millrace/serialize"
)

// The examples of docs/PROTOCOL.md are what is sent, and what is understood.
func TestGoldenExamples(t *testing.T) {
	hello := wire.Hello{Version: 1, Role: wire.RoleClient, MaxFrameBytes: 4 << 20}
	frame := docbytes.Hex(t, "hello")
	if got := wire.AppendHello(nil, hello); !bytes.Equal(got, frame) {
		t.Errorf("Hello is sent as % x", got)
	}
	if got, err := wire.ParseHello(frame); err != nil || got != hello {
		t.Errorf("Hello is read as %+v, %v", got, err)
	}

	frame = docbytes.Hex(t, "produce")
	p, err := wire.ParseProduce(frame)
	if err != nil || p.Correlation != 7 || string(p.Topic) != "orders" {
		t.Fatalf("Produce is read as %+v, %v", p, err)
	}
	if got := append(wire.AppendProduceHeader(nil, 7, "orders"), p.Batch...); !bytes.Equal(got, frame) {
		t.Errorf("Produce is sent as % x", got)
	}
	batch, err := serialize.Open(p.Batch)
	if err != nil || batch.Len() != 2 || len(batch.Bytes()) != len(p.Batch) || batch.BaseOffset() != serialize.NoOffset {
		t.Errorf("its batch is read as %d records, %v", batch.Len(), err)
	}

	frame = docbytes.Hex(t, "produce-ack")
	acks := []wire.Ack{{Correlation: 7, Base: 1000}, {Correlation: 8, Base: 1002}}
	if got := wire.AppendAcks(nil, acks); !bytes.Equal(got, frame) {
		t.Errorf("ProduceAck is sent as % x", got)
	}
	if got, err := wire.ParseAcks(frame); err != nil || got.Len() != 2 || got.At(0) != acks[0] || got.At(1) != acks[1] {
		t.Errorf("ProduceAck is read as %d acknowledgements, %v", got.Len(), err)
	}
}
