package serialize

import (
	"encoding/binary"
	"iter"
)

// Record is one message. Encoding reads its slices during the call only;
// decoding returns views that live as long as the batch's bytes.
type Record struct {
	// Key is nil if the record has none; an empty key is not nil.
	Key []byte
	// Value is nil for a deletion; an empty value is not nil.
	Value []byte
	// Headers is a block made by AppendHeader; nil or empty if there are none.
	Headers []byte
	// Timestamp is Unix time in milliseconds.
	Timestamp int64
}

// AppendHeader appends one header to a record's header block: each string with
// its length in front as an unsigned LEB128 number.
func AppendHeader(block []byte, key string, value []byte) []byte {
	block = binary.AppendUvarint(block, uint64(len(key)))
	block = append(block, key...)
	block = binary.AppendUvarint(block, uint64(len(value)))
	return append(block, value...)
}

// HeaderBlock reads the headers of one record.
type HeaderBlock []byte

// Check returns an error wrapping ErrCorrupt if the block is malformed. A batch
// carries header blocks without looking into them.
func (h HeaderBlock) Check() error {
	for rest := []byte(h); len(rest) > 0; {
		var ok bool
		if _, _, rest, ok = cutHeader(rest); !ok {
			return corruptf("header block of %d bytes is malformed %d bytes from its end", len(h), len(rest))
		}
	}
	return nil
}

// All yields each header's key and value as views; it ends early where the
// block is malformed.
func (h HeaderBlock) All() iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		for rest := []byte(h); len(rest) > 0; {
			key, value, after, ok := cutHeader(rest)
			if !ok || !yield(key, value) {
				return
			}
			rest = after
		}
	}
}

func cutHeader(b []byte) (key, value, rest []byte, ok bool) {
	key, rest, ok = cutString(b)
	if ok {
		value, rest, ok = cutString(rest)
	}
	if !ok {
		return nil, nil, b, false
	}
	return key, value, rest, true
}

func cutString(b []byte) (s, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, b, false
	}
	end := w + int(n)
	return b[w:end:end], b[end:], true
}
