package serialize_test

import (
	"fmt"
	"runtime"

	"github.com/millrace/millrace/serialize"
)

// A few records, one after the other.
func ExampleBuilder() {
	b, _ := serialize.NewBuilder(100)
	b.Reset(make([]byte, 4096))
	for _, v := range []string{"hello", "millrace"} {
		if err := b.Append(&serialize.Record{Value: []byte(v), Timestamp: 1_700_000_000_000}); err != nil {
			fmt.Println(err) // ErrFull: finish this batch, begin the next
		}
	}
	batch, err := serialize.Open(b.Finish())
	if err != nil {
		fmt.Println(err)
		return
	}
	c := batch.Cursor()
	for c.Next() {
		fmt.Printf("%d %s\n", c.Index(), c.Value())
	}
	// Output:
	// 0 hello
	// 1 millrace
}

// Many records that are all there, on all cores.
func ExampleEncoder() {
	e, err := serialize.NewEncoder(runtime.GOMAXPROCS(0))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer e.Close()
	records := make([]serialize.Record, 10_000)
	for i := range records {
		records[i] = serialize.Record{Value: fmt.Appendf(nil, "message %d", i), Timestamp: 1_700_000_000_000 + int64(i)}
	}
	encoded, err := e.Encode(make([]byte, 4<<20), records)
	if err != nil {
		fmt.Println(err)
		return
	}
	batch, err := serialize.Open(encoded)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d records, %s\n", batch.Len(), batch.Value(9_999))
	// Output: 10000 records, message 9999
}
