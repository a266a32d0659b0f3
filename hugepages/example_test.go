package hugepages_test

import (
	"fmt"

	"github.com/millrace/millrace/hugepages"
)

// A buffer gets its header in front of the payload without moving it, and goes
// back to its pool with the last reference.
func Example() {
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 4 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	pool := hugepages.NewPool(arena)

	buf, err := pool.Get(5, hugepages.Send)
	if err != nil { // errors.Is(err, hugepages.ErrExhausted): try again after some Release
		fmt.Println(err)
		return
	}
	copy(buf.Bytes(), "hello")
	copy(buf.Prepend(4), "len:")
	fmt.Printf("%s, in the arena: %v\n", buf.Bytes(), arena.Contains(buf.Bytes()))

	fmt.Println(arena.Close())
	buf.Release()
	fmt.Println(arena.Close())
	// Output:
	// len:hello, in the arena: true
	// hugepages: buffers still in use: 1 send (384 B); release them before closing the arena
	// <nil>
}
