package bench

import (
	"context"
	"time"

	"github.com/millrace/millrace/bench/report"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/bench/roles"
)

// codecBatches are the batch sizes of the serialize workload: one of an idle link,
// one of a busy one.
var codecBatches = []int{16, 1024}

// serializeJobs measure the batch format on one core, without any transport.
func (r *runner) serializeJobs() []*job {
	var jobs []*job
	for _, records := range codecBatches {
		for _, op := range []struct {
			operation, name string
			crc             bool
		}{{roles.OpEncode, "encode", true}, {roles.OpVisit, "visit", true}, {roles.OpVisitTrusted, "visit", false}} {
			client := part{"client", role.Spec{
				Role: "codec", Operation: op.operation, BatchRecords: records, Input: r.o.Input, Size: r.o.Size,
				Warmup: r.warmup() / 2, Duration: max(r.o.Duration/2, 10*time.Millisecond),
			}, role.Place{CPUs: r.topo.farCPU}, false}
			crc := op.crc
			jobs = append(jobs, &job{
				row: report.Row{
					Workload: "serialize", Codec: "millrace", Operation: op.name, CRC: &crc, Workers: 1, BatchRecords: records,
					Placement: placement(client), Emulated: r.emul,
				},
				once:    func(ctx context.Context) (*sample, error) { return measureRow(ctx, &r.o.Launcher, nil, client, false) },
				primary: func(r *report.Row) float64 { return r.RecordsPerSecond },
			})
		}
	}
	return jobs
}
