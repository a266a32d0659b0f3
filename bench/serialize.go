package bench

import (
	"context"
	"runtime"
	"time"

	"github.com/millrace/millrace/bench/codecs"
	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/bench/roles"
	"github.com/millrace/millrace/serialize"
)

// codecBatches are the batch sizes of the serialize workload, and sharedBatches some
// that are large enough for several workers: 2 and 8 MiB of the sample messages, in the
// caches of a core and out of them.
var (
	codecBatches  = []int{100, 1000}
	sharedBatches = []int{16_384, 65_536}
)

// serializeJobs measure the batch format, and others with the same records,
// without any transport: on one core, and large batches on more, twice as many each time.
func (r *runner) serializeJobs() []*job {
	var jobs []*job
	add := func(codec, operation string, records int, crc bool, how serialize.Compression, workers int) {
		cpus := r.topo.farCPU
		if workers > 1 {
			cpus = r.cpus[:workers]
		}
		client := part{"client", role.Spec{
			Role: "codec", Codec: codec, Operation: operation, BatchRecords: records, CRC: crc, Workers: workers,
			Input: r.o.Input, Size: r.o.Size, Warmup: r.warmup() / 2, Duration: max(r.o.Duration/4, 10*time.Millisecond),
		}, role.Place{CPUs: cpus}, false}
		row := report.Row{
			Workload: "serialize", Codec: codec, Operation: operation, CRC: &crc, Workers: workers, BatchRecords: records,
			Placement: placement(client), Emulated: r.emul,
		}
		if how != serialize.None {
			row.Compression = how.String()
			client.spec.Compression = row.Compression
		}
		jobs = append(jobs, &job{
			row:     row,
			once:    func(ctx context.Context) (*sample, error) { return measureRow(ctx, &r.o.Launcher, nil, client, false) },
			primary: func(r *report.Row) float64 { return r.RecordsPerSecond },
		})
	}
	for _, records := range codecBatches {
		for _, codec := range []string{codecs.Millrace, codecs.Kafka, codecs.Protobuf} {
			add(codec, roles.OpEncode, records, true, serialize.None, 1)
			add(codec, roles.OpVisit, records, true, serialize.None, 1)
			add(codec, roles.OpVisit, records, false, serialize.None, 1)
		}
		for _, how := range []serialize.Compression{serialize.S2, serialize.Zstd} {
			for _, codec := range []string{codecs.Millrace, codecs.Kafka} {
				add(codec, roles.OpEncode, records, true, how, 1)
				add(codec, roles.OpVisit, records, true, how, 1)
			}
		}
	}
	for _, records := range sharedBatches {
		for workers := 1; workers <= min(len(r.cpus), runtime.NumCPU()); workers *= 2 {
			add(codecs.Millrace, roles.OpEncode, records, true, serialize.None, workers)
		}
	}
	return jobs
}
