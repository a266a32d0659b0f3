package report

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// claim is a published figure and how to find the same one in a report.
type claim struct {
	what, source string
	published    float64 // the change, as a fraction
	workload     string
	transport    string
	batched      bool
	of           func(*Row) float64
}

var claims = []claim{
	{"storage broker CPU per message, RDMA", "ApsaraMQ on RDMA", -0.267, "produce", "rdma", false, func(r *Row) float64 { return r.CPUMicrosPerMessage["broker"] }},
	{"proxy CPU per message, RDMA", "ApsaraMQ on RDMA", -0.101, "produce", "rdma", false, func(r *Row) float64 { return r.CPUMicrosPerMessage["proxy"] }},
	{"proxy-to-broker send RT, RDMA", "ApsaraMQ on RDMA", -0.238, "produce", "rdma", false, func(r *Row) float64 { return orZero(r.SendRTMicros).P50 }},
	{"throughput, DPDK", "China Mobile, Message on DPDK (+20…30 %)", 0.20, "throughput", "dpdk", true, func(r *Row) float64 { return r.MessagesPerSecond }},
}

// WriteHeadline writes the published claims beside the same ratios of this run,
// against kernel TCP through the same loop and against ordinary sockets.
func (rep *Report) WriteHeadline(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "claim\tpublished\there, against TCP epoll\there, against TCP net\tdevice\tsource")
	for _, c := range claims {
		row := rep.claimRow(c, c.transport, "")
		if row == nil {
			fmt.Fprintf(tw, "%s\t%+.1f %%\tnot measured\t\t\t%s\n", c.what, c.published*100, c.source)
			continue
		}
		against := func(device string) string {
			ref := rep.claimRow(c, "tcp", device)
			if ref == nil || c.of(ref) == 0 || c.of(row) == 0 {
				return "not measured"
			}
			return fmt.Sprintf("%+.1f %%", (c.of(row)/c.of(ref)-1)*100)
		}
		fmt.Fprintf(tw, "%s\t%+.1f %%\t%s\t%s\t%s, %s\t%s\n", c.what, c.published*100, against("epoll"), against("net"), row.Device, row.Label, c.source)
	}
	return tw.Flush()
}

func (rep *Report) claimRow(c claim, transport, device string) *Row {
	for i := range rep.Results {
		r := &rep.Results[i]
		if r.Workload != c.workload || r.Transport != transport || device != "" && r.Device != device || isTrue(r.FlushPerMessage) {
			continue
		}
		if c.workload == "throughput" && isTrue(r.Batched) != c.batched {
			continue
		}
		return r
	}
	return nil
}
