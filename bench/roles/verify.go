package roles

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/serialize"
)

// Every message has a key that tells who sent it and which of theirs it is:
// connection u32, sequence u64, big-endian.
const keyBytes = 12

func putKey(key []byte, id uint32, seq uint64) {
	binary.BigEndian.PutUint32(key, id)
	binary.BigEndian.PutUint64(key[4:], seq)
}

func parseKey(key []byte) (id uint32, seq uint64, ok bool) {
	if len(key) != keyBytes {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(key), binary.BigEndian.Uint64(key[4:]), true
}

// verify reads the topic back and counts what was acknowledged and is not there
// (lost), and what is there more than once. Bytes that differ, records that
// nobody sent and offsets out of order are errors.
func (l *load) verify(ctx context.Context) (*role.Result, error) {
	spec := l.spec
	spec.FlushEach = false
	client, err := connect(ctx, spec, nil)
	if err != nil {
		return nil, fmt.Errorf("reading back: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		_ = client.Close(ctx) // nothing is under way
	}()
	first, latest, err := client.Offsets(ctx, topicName)
	if err != nil {
		return nil, fmt.Errorf("reading back: %w", err)
	}
	seen := make([]bitmap, len(l.producers))
	for i, p := range l.producers {
		seen[i] = newBitmap(p.appended)
	}
	var lost, duplicated int64
	expect := first
	err = errors.New("nothing was stored")
	if first < latest {
		err = client.Consume(ctx, topicName, first, func(offset uint64, r *serialize.Record) error {
			id, seq, ok := parseKey(r.Key)
			switch {
			case offset != expect:
				return fmt.Errorf("offset %d came where %d was due", offset, expect)
			case !ok || int(id) >= len(seen) || seq >= l.producers[id].appended:
				return fmt.Errorf("the record at offset %d was never sent (key %x)", offset, r.Key)
			case !bytes.Equal(r.Value, l.message(id, seq)):
				return fmt.Errorf("the record at offset %d differs from what was sent", offset)
			}
			if !seen[id].set(seq) {
				duplicated++
			}
			if expect++; expect == latest {
				return broker.ErrStop
			}
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("reading back: %w", err)
	}
	for i, p := range l.producers {
		lost += int64(p.completed.Load()) - int64(seen[i].count)
	}
	return &role.Result{Lost: &lost, Duplicated: &duplicated}, nil
}

type bitmap struct {
	bits  []uint64
	count uint64
}

func newBitmap(n uint64) bitmap { return bitmap{bits: make([]uint64, (n+63)/64)} }

// set is false if i was set before.
func (b *bitmap) set(i uint64) bool {
	word, bit := &b.bits[i/64], uint64(1)<<(i%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	b.count++
	return true
}
