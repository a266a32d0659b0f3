package seglog

import (
	"fmt"
	"os"
	"testing"
)

// Groups of batches as the broker appends them, into segments of the default size.
// The disk's free space goes down by 2 GiB at most.
func BenchmarkAppend(b *testing.B) {
	for _, d := range []Durability{PageCache, Fsync} {
		for _, batches := range []int{1, 8} {
			b.Run(fmt.Sprintf("%v/%dx128KiB", d, batches), func(b *testing.B) {
				dir := b.TempDir()
				s, err := Open(dir, Options{Durability: d})
				if err != nil {
					b.Fatal(err)
				}
				l, err := s.Create("bench")
				if err != nil {
					b.Fatal(err)
				}
				var group []Batch
				for range batches {
					group = append(group, Batch{Payload: make([]byte, 128<<10), Records: 1000})
				}
				b.SetBytes(int64(batches) * 128 << 10)
				written := 0
				for b.Loop() {
					if _, err := l.Append(group); err != nil {
						b.Fatal(err)
					}
					if written += batches * 128 << 10; written > 1<<30 { // begin anew
						b.StopTimer()
						written = 0
						if err := s.Close(); err != nil {
							b.Fatal(err)
						}
						if err := os.RemoveAll(dir); err != nil {
							b.Fatal(err)
						}
						if s, err = Open(dir, Options{Durability: d}); err != nil {
							b.Fatal(err)
						}
						if l, err = s.Create("bench"); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
