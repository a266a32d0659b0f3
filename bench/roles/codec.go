package roles

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/serialize"
)

// Operations of the codec role.
const (
	OpEncode       = "encode"
	OpVisit        = "visit"         // checksum, structure and every value
	OpVisitTrusted = "visit-trusted" // the same without the checksum
)

// runCodec encodes batches of spec.BatchRecords messages, or goes through them, on
// one CPU.
func runCodec(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return err
	}
	k, err := newCodec(ms, spec.BatchRecords)
	if err != nil {
		return err
	}
	step, ok := map[string]func(i int) (int, error){OpEncode: k.encode, OpVisit: k.visit(serialize.Open), OpVisitTrusted: k.visit(serialize.OpenTrusted)}[spec.Operation]
	if !ok {
		return fmt.Errorf("unknown operation %q", spec.Operation)
	}
	c.Emit(role.Event{Kind: role.Ready})
	w, err := open(ctx, spec, c)
	if err != nil {
		return err
	}
	t := newTally()
	for i := 0; ; i++ {
		now := time.Now()
		if !w.next(now) {
			break
		}
		n, err := step(i % len(k.batches))
		if err != nil {
			return err
		}
		if w.counts(now) {
			t.messages += int64(spec.BatchRecords)
			t.bytes += int64(n)
		}
	}
	r := t.result(w)
	r.RT, r.OverheadBytes = nil, k.overhead()
	return finish(ctx, c, w, nil, r, func() {})
}

// codec holds what is encoded, and the same encoded.
type codec struct {
	builder *serialize.Builder
	buf     []byte
	encoded []byte // the last one; in buf
	records [][]serialize.Record
	batches [][]byte
}

// codecBytes bounds the batches that are gone through in turn: enough that they do
// not stay in the CPU's first caches.
const codecBytes = 8 << 20

func newCodec(ms [][]byte, batchRecords int) (*codec, error) {
	k := &codec{}
	var err error
	if k.builder, err = serialize.NewBuilder(batchRecords); err != nil {
		return nil, err
	}
	stamp := time.Now().UnixMilli()
	for next, total := 0, 0; len(k.batches) == 0 || total < codecBytes && next < len(ms); {
		var records []serialize.Record
		size := serialize.HeaderBytes
		for range batchRecords {
			m := ms[next%len(ms)]
			next++
			records = append(records, serialize.Record{Value: m, Timestamp: stamp + int64(next)})
			size += len(m) + recordRoom
		}
		if len(k.buf) < size {
			k.buf = make([]byte, size)
		}
		k.records = append(k.records, records)
		n, err := k.encode(len(k.records) - 1)
		if err != nil {
			return nil, err
		}
		k.batches = append(k.batches, append([]byte(nil), k.encoded...))
		total += n
	}
	return k, nil
}

// encode returns the payload bytes of batch i.
func (k *codec) encode(i int) (int, error) {
	k.builder.Reset(k.buf)
	for j := range k.records[i] {
		if err := k.builder.Append(&k.records[i][j]); err != nil {
			return 0, err
		}
	}
	n := k.builder.PayloadBytes()
	k.encoded = k.builder.Finish()
	return n, nil
}

func (k *codec) visit(open func([]byte) (serialize.Batch, error)) func(i int) (int, error) {
	return func(i int) (int, error) {
		b, err := open(k.batches[i])
		if err != nil {
			return 0, err
		}
		n := 0
		var first byte // keeps the compiler from leaving the visit out
		cursor := b.Cursor()
		for cursor.Next() {
			v := cursor.Value()
			n += len(v)
			if len(v) > 0 {
				first ^= v[0]
			}
		}
		runtime.KeepAlive(first)
		return n, nil
	}
}

// overhead is what the format adds to a record, bytes.
func (k *codec) overhead() float64 {
	var extra, records int
	for i, b := range k.batches {
		extra += len(b)
		for j := range k.records[i] {
			extra -= len(k.records[i][j].Value)
		}
		records += len(k.records[i])
	}
	return float64(extra) / float64(records)
}
