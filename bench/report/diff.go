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
	rate bool // more is better
}

var figures = []figure{
	{"rt p50 µs", func(r *Row) float64 { return orZero(r.RTMicros).P50 }, false},
	{"rt p99 µs", func(r *Row) float64 { return orZero(r.RTMicros).P99 }, false},
	{"send rt p50 µs", func(r *Row) float64 { return orZero(r.SendRTMicros).P50 }, false},
	{"messages/s", func(r *Row) float64 { return r.MessagesPerSecond }, true},
	{"records/s", func(r *Row) float64 { return r.RecordsPerSecond }, true},
	{"CPU µs/msg machine", func(r *Row) float64 { return r.CPUMicrosPerMessage["machine"] }, false},
}

// primary reports whether f is the figure that r was measured for, whose spread
// the row has: the rate where nothing limited it, else the median round trip.
func (f *figure) primary(r *Row) bool {
	if r.OfferedRate > 0 || r.Workload == "rtt" {
		return f.name == "rt p50 µs"
	}
	return f.rate
}

// WriteDiff writes how b differs from a, row by row; rows that only one of them
// has are named. It returns how many rows became worse: in the figure that they
// were measured for, by more than the spreads of both runs together. Rows of a
// single repetition have no spread and are not counted.
func WriteDiff(w io.Writer, a, b *Report) (worse int, err error) {
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
			remark := f.judge(old, row)
			if remark == becameWorse {
				worse++
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%+.1f %%\t%s\n", c, f.name, number(x), number(y), (y/x-1)*100, remark)
		}
	}
	for i := range a.Results {
		if c := a.Results[i].Condition(); !seen[c] {
			fmt.Fprintf(tw, "%s\tonly in the first\t\t\t\t\n", c)
		}
	}
	return worse, tw.Flush()
}

const (
	becameWorse  = "WORSE"
	withinSpread = "within spread"
)

// judge remarks on a change: whether the repetitions' own spread explains it.
func (f *figure) judge(a, b *Row) string {
	if a.Spread == nil || b.Spread == nil {
		return ""
	}
	change := f.of(b)/f.of(a) - 1
	if max(change, -change) <= *a.Spread+*b.Spread {
		return withinSpread
	}
	if f.primary(b) && (change < 0) == f.rate {
		return becameWorse
	}
	return ""
}
