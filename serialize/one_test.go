package serialize

import (
	"bytes"
	"errors"
	"math"
	"testing"
)

// A record alone becomes the bytes that a Builder makes of it.
func TestEncodeOne(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789abcdef"), 3*crcChunk/32)
	for name, r := range map[string]Record{
		"value":   {Value: []byte("hello"), Timestamp: 1700000000000},
		"empty":   {Value: []byte{}},
		"nil":     {Timestamp: -5},
		"key":     {Key: []byte("k"), Value: []byte("v"), Timestamp: math.MinInt64},
		"no key":  {Key: []byte{}, Value: []byte("v"), Timestamp: math.MaxInt64},
		"deleted": {Key: []byte("gone")},
		"headers": {Key: []byte("k"), Value: []byte("v"), Headers: AppendHeader(nil, "trace", []byte{1, 2, 3})},
		"long":    {Key: long[:100], Value: long, Headers: AppendHeader(nil, "h", long[:300]), Timestamp: 7},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := NewBuilder(1)
			if err != nil {
				t.Fatal(err)
			}
			b.Reset(make([]byte, 1<<20))
			if err := b.Append(&r); err != nil {
				t.Fatal(err)
			}
			want := b.Finish()
			dst := make([]byte, len(want)+10)
			got, err := EncodeOne(dst, &r)
			if err != nil || !bytes.Equal(got, want) || cap(got) != len(want) {
				t.Fatalf("%v, % x\nwant % x", err, got, want)
			}
			batch, err := Open(got)
			if err != nil {
				t.Fatal(err)
			}
			checkBatch(t, &batch, []Record{r})
			if _, err := EncodeOne(dst[:len(want)-1], &r); !errors.Is(err, ErrRecordTooLarge) {
				t.Errorf("%v where a byte lacks", err)
			}
		})
	}
}

func TestEncodeOneAllocatesNothing(t *testing.T) {
	dst, r := make([]byte, 256), Record{Key: []byte("k"), Value: make([]byte, 100)}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := EncodeOne(dst, &r); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
