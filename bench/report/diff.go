package report

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// figure is one number of a row that a comparison looks at.
type figure struct {
	name string
	of   func(*Row) float64
}

var figures = []figure{
	{"rt p50 µs", func(r *Row) float64 { return orZero(r.RTMicros).P50 }},
	{"rt p99 µs", func(r *Row) float64 { return orZero(r.RTMicros).P99 }},
	{"send rt p50 µs", func(r *Row) float64 { return orZero(r.SendRTMicros).P50 }},
	{"messages/s", func(r *Row) float64 { return r.MessagesPerSecond }},
	{"records/s", func(r *Row) float64 { return r.RecordsPerSecond }},
	{"CPU µs/msg machine", func(r *Row) float64 { return r.CPUMicrosPerMessage["machine"] }},
}

// WriteDiff writes how b differs from a, row by row; rows that only one of them
// has are named.
func WriteDiff(w io.Writer, a, b *Report) error {
	if a.Machine.CPUModel != b.Machine.CPUModel || a.Machine.Kernel != b.Machine.Kernel {
		fmt.Fprintf(w, "different machines: %s, Linux %s and %s, Linux %s: only ratios within one run carry over\n",
			a.Machine.CPUModel, a.Machine.Kernel, b.Machine.CPUModel, b.Machine.Kernel)
	}
	before := map[string]*Row{}
	for i := range a.Results {
		before[a.Results[i].Condition()] = &a.Results[i]
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "row\tfigure\tbefore\tafter\tchange\t")
	seen := map[string]bool{}
	for i := range b.Results {
		row := &b.Results[i]
		c := row.Condition()
		seen[c] = true
		old := before[c]
		if old == nil {
			fmt.Fprintf(tw, "%s\tonly in the second\t\t\t\t\n", c)
			continue
		}
		for _, f := range figures {
			x, y := f.of(old), f.of(row)
			if x == 0 || y == 0 {
				continue
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%+.1f %%\t%s\n", c, f.name, number(x), number(y), (y/x-1)*100, withinSpread(old, row, y/x-1))
		}
	}
	for i := range a.Results {
		if c := a.Results[i].Condition(); !seen[c] {
			fmt.Fprintf(tw, "%s\tonly in the first\t\t\t\t\n", c)
		}
	}
	return tw.Flush()
}

// withinSpread remarks on a change that the repetitions' own spread explains.
func withinSpread(a, b *Row, change float64) string {
	if a.Spread == nil || b.Spread == nil || max(change, -change) > max(*a.Spread, *b.Spread) {
		return ""
	}
	return "within spread"
}
