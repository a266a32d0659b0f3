package roles

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/bench/codecs"
	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/serialize"
)

// Operations of the codec role.
const (
	OpEncode = "encode"
	OpVisit  = "visit" // every value
)

// runCodec encodes batches of spec.BatchRecords messages, or goes through them.
func runCodec(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return err
	}
	k, err := newCodecRun(ms, spec)
	if err != nil {
		return err
	}
	defer k.codec.Close()
	step, ok := map[string]func(i int) error{OpEncode: k.encode, OpVisit: k.visit}[spec.Operation]
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
		at := i % len(k.batches)
		if err := step(at); err != nil {
			return err
		}
		if w.counts(now) {
			t.messages += int64(spec.BatchRecords)
			t.bytes += int64(k.values[at])
		}
	}
	r := t.result(w)
	r.RT, r.OverheadBytes = nil, k.overhead()
	return finish(ctx, c, w, nil, r, func() {})
}

// codecRun holds what is encoded, and the same encoded.
type codecRun struct {
	codec   codecs.Codec
	records [][]serialize.Record
	values  []int // bytes of a batch's values
	batches [][]byte
}

// codecBytes bounds the batches that are gone through in turn: enough that they do
// not stay in the CPU's first caches.
const codecBytes = 8 << 20

func newCodecRun(ms [][]byte, spec role.Spec) (*codecRun, error) {
	k := &codecRun{}
	most := 0
	stamp := time.Now().UnixMilli()
	for next, total := 0, 0; len(k.records) == 0 || total < codecBytes && next < len(ms); {
		var records []serialize.Record
		bytes := 0
		for range spec.BatchRecords {
			m := ms[next%len(ms)]
			next++
			records = append(records, serialize.Record{Value: m, Timestamp: stamp + int64(next)})
			bytes += len(m)
		}
		k.records, k.values = append(k.records, records), append(k.values, bytes)
		total += bytes
		most = max(most, bytes+spec.BatchRecords*recordRoom)
	}
	how := serialize.None
	var err error
	if spec.Compression != "" {
		if how, err = serialize.ParseCompression(spec.Compression); err != nil {
			return nil, err
		}
	}
	k.codec, err = codecs.New(spec.Codec, codecs.Options{CRC: spec.CRC, Compression: how, Workers: max(1, spec.Workers), MaxBytes: serialize.HeaderBytes + most})
	if err != nil {
		return nil, err
	}
	for _, records := range k.records {
		batch, err := k.codec.Encode(records)
		if err != nil {
			k.codec.Close()
			return nil, err
		}
		k.batches = append(k.batches, append([]byte(nil), batch...))
	}
	return k, nil
}

func (k *codecRun) encode(i int) error {
	_, err := k.codec.Encode(k.records[i])
	return err
}

func (k *codecRun) visit(i int) error {
	n, err := k.codec.Visit(k.batches[i])
	if err == nil && n != k.values[i] {
		err = fmt.Errorf("visited %d bytes of %d", n, k.values[i])
	}
	return err
}

// overhead is what the format adds to a record, bytes; negative where compression
// takes more away.
func (k *codecRun) overhead() float64 {
	var extra, records int
	for i, b := range k.batches {
		extra += len(b) - k.values[i]
		records += len(k.records[i])
	}
	return float64(extra) / float64(records)
}
