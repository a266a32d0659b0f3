package serialize

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// benchRecords are n records with lengths spread like log lines (around 130 B)
// or events (around 350 B).
func benchRecords(n, typical int) []Record {
	rng := rand.New(rand.NewPCG(13, 14))
	rs := make([]Record, n)
	for i := range rs {
		rs[i].Value = make([]byte, typical/2+rng.IntN(typical))
		for k := range rs[i].Value {
			rs[i].Value[k] = byte(rng.Uint32())
		}
		rs[i].Timestamp = 1_700_000_000_000 + int64(i/50)
	}
	return rs
}

func benchShapes(b *testing.B, f func(b *testing.B, rs []Record)) {
	for _, typical := range []int{130, 350} {
		for _, n := range []int{100, 1000} {
			b.Run(fmt.Sprintf("%dB/%d", typical, n), func(b *testing.B) {
				rs := benchRecords(n, typical)
				b.SetBytes(int64(payloadBytes(rs)))
				b.ReportAllocs()
				f(b, rs)
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
			})
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	benchShapes(b, func(b *testing.B, rs []Record) {
		builder, err := NewBuilder(len(rs))
		if err != nil {
			b.Fatal(err)
		}
		room := make([]byte, 1<<20)
		for b.Loop() {
			builder.Reset(room)
			for i := range rs {
				if err := builder.Append(&rs[i]); err != nil {
					b.Fatal(err)
				}
			}
			builder.Finish()
		}
	})
}

func BenchmarkEncoder(b *testing.B) {
	benchShapes(b, func(b *testing.B, rs []Record) {
		e, err := NewEncoder(1)
		if err != nil {
			b.Fatal(err)
		}
		defer e.Close()
		room := make([]byte, 1<<20)
		for b.Loop() {
			if _, err := e.Encode(room, rs); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchVisit(b *testing.B, open func([]byte) (Batch, error)) {
	benchShapes(b, func(b *testing.B, rs []Record) {
		enc := encode(b, 1<<20, rs...)
		sum := 0
		for b.Loop() {
			sum += visit(b, open, enc)
		}
		if sum%payloadBytes(rs) != 0 {
			b.Fatal("not every byte was visited")
		}
	})
}

// visit is a function of its own because what lives in the body of b.Loop is
// kept from the optimizer.
func visit(b *testing.B, open func([]byte) (Batch, error), enc []byte) (sum int) {
	batch, err := open(enc)
	if err != nil {
		b.Fatal(err)
	}
	for v := range batch.Values() {
		sum += len(v)
	}
	return sum
}

func BenchmarkVisit(b *testing.B)        { benchVisit(b, Open) }
func BenchmarkVisitTrusted(b *testing.B) { benchVisit(b, OpenTrusted) }

// BenchmarkVisitRecords visits whole records, not their values alone.
func BenchmarkVisitRecords(b *testing.B) {
	benchShapes(b, func(b *testing.B, rs []Record) {
		enc := encode(b, 1<<20, rs...)
		sum := 0
		for b.Loop() {
			sum += visitRecords(b, enc)
		}
		if sum%payloadBytes(rs) != 0 {
			b.Fatal("not every byte was visited")
		}
	})
}

func visitRecords(b *testing.B, enc []byte) (sum int) {
	batch, err := OpenTrusted(enc)
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range batch.All() {
		sum += len(r.Key) + len(r.Value) + len(r.Headers)
	}
	return sum
}

func BenchmarkValueByIndex(b *testing.B) {
	rs := benchRecords(1000, 130)
	batch, err := Open(encode(b, 1<<20, rs...))
	if err != nil {
		b.Fatal(err)
	}
	i, sum := 0, 0
	for b.Loop() {
		i = (i + 617) % 1000
		sum += len(batch.Value(i))
	}
	_ = sum
}

func BenchmarkCRC(b *testing.B) {
	data := make([]byte, 1<<20)
	for _, n := range []int{512, 4 << 10, 16 << 10, 128 << 10, 1 << 20} {
		for _, k := range []struct {
			name   string
			update func(uint32, []byte) uint32
		}{{"generic", updateCRCGeneric}, {"kernel", updateCRC}} {
			b.Run(fmt.Sprintf("%d/%s", n, k.name), func(b *testing.B) {
				b.SetBytes(int64(n))
				crc := uint32(0)
				for b.Loop() {
					crc = k.update(crc, data[:n])
				}
			})
		}
	}
}

// workerBatches are records of a batch: log lines, 130 bytes each.
var workerBatches = []int{1024, 4096, 16_384, 65_536}

// BenchmarkWorkers encodes batches that are large enough to be shared, and one
// that is not.
func BenchmarkWorkers(b *testing.B) {
	for _, n := range workerBatches {
		rs := benchRecords(n, 130)
		room := make([]byte, 2*payloadBytes(rs))
		for workers := 1; workers <= runtime.GOMAXPROCS(0); workers *= 2 {
			b.Run(fmt.Sprintf("%d/%d", n, workers), func(b *testing.B) {
				e, err := NewEncoder(workers)
				if err != nil {
					b.Fatal(err)
				}
				defer e.Close()
				b.SetBytes(int64(payloadBytes(rs)))
				for b.Loop() {
					if _, err := e.Encode(room, rs); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
			})
		}
	}
}

// BenchmarkIndependent is what two workers can reach at most: every worker has
// an encoder, records and room of its own, and encodes its share of the batches
// that BenchmarkWorkers encodes together.
func BenchmarkIndependent(b *testing.B) {
	for _, n := range workerBatches {
		for workers := 1; workers <= runtime.GOMAXPROCS(0); workers *= 2 {
			b.Run(fmt.Sprintf("%d/%d", n, workers), func(b *testing.B) {
				var done sync.WaitGroup
				var jobs []func()
				for range workers {
					rs := benchRecords(n/workers, 130)
					room := make([]byte, 2*payloadBytes(rs))
					e, err := NewEncoder(1)
					if err != nil {
						b.Fatal(err)
					}
					defer e.Close()
					jobs = append(jobs, func() {
						for range b.N {
							if _, err := e.Encode(room, rs); err != nil {
								b.Error(err)
							}
						}
					})
				}
				b.ResetTimer()
				for _, job := range jobs {
					done.Go(job)
				}
				done.Wait()
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
			})
		}
	}
}

// Records of 1 KiB that are in no cache, written to memory that is in none:
// encoded in batches of 1 MiB, and only copied, one by one and a batch at a time.
func BenchmarkOutOfCache(b *testing.B) {
	const size, perBatch, batches = 1 << 10, 1 << 10, 128
	source := make([]byte, size*perBatch*batches)
	for i := range source {
		source[i] = byte(i * 7 >> 3)
	}
	records := make([]Record, perBatch*batches)
	for i := range records {
		records[i].Value = source[i*size : (i+1)*size]
		records[i].Timestamp = int64(i)
	}
	const room = size*perBatch + 4096
	target := make([]byte, room*batches)
	for i := range target {
		target[i] = 1 // the pages are there
	}
	run := func(name string, encode func(dst, src []byte, rs []Record)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size * perBatch)
			for i := 0; b.Loop(); i++ {
				k := i % batches
				encode(target[k*room:(k+1)*room], source[k*size*perBatch:(k+1)*size*perBatch], records[k*perBatch:(k+1)*perBatch])
			}
		})
	}
	e, err := NewEncoder(1)
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	builder, err := NewBuilder(perBatch)
	if err != nil {
		b.Fatal(err)
	}
	run("encoder", func(dst, _ []byte, rs []Record) {
		if _, err := e.Encode(dst, rs); err != nil {
			b.Fatal(err)
		}
	})
	run("builder", func(dst, _ []byte, rs []Record) {
		builder.Reset(dst)
		for i := range rs {
			if err := builder.Append(&rs[i]); err != nil {
				b.Fatal(err)
			}
		}
		builder.Finish()
	})
	run("copy", func(dst, _ []byte, rs []Record) {
		for i := range rs {
			dst = dst[copy(dst, rs[i].Value):]
		}
	})
	run("copy-batch", func(dst, src []byte, _ []Record) { copy(dst, src) })
}

// BenchmarkWorkersFromSleep encodes a batch now and then, when the helper sleeps:
// from what size on is it worth waking?
func BenchmarkWorkersFromSleep(b *testing.B) {
	for _, n := range []int{1024, 16_384, 32_768, 65_536} {
		rs := benchRecords(n, 130)
		room := make([]byte, 2*payloadBytes(rs))
		for workers := 1; workers <= runtime.GOMAXPROCS(0); workers *= 2 {
			b.Run(fmt.Sprintf("%d/%d", n, workers), func(b *testing.B) {
				e, err := NewEncoder(workers)
				if err != nil {
					b.Fatal(err)
				}
				defer e.Close()
				var spent time.Duration
				for b.Loop() {
					time.Sleep(300 * time.Microsecond)
					start := time.Now()
					if _, err := e.Encode(room, rs); err != nil {
						b.Fatal(err)
					}
					spent += time.Since(start)
				}
				b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "ns/batch")
			})
		}
	}
}
