package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Reference returns the row that row's ratios are against: kernel TCP under the
// same conditions, through the same loop (device epoll) if that was measured,
// else ordinary blocking sockets; nil for such rows themselves and where there is
// none.
func Reference(rows []Row, row *Row) *Row {
	if row.Transport == "" || row.Device == "epoll" {
		return nil
	}
	for _, device := range []string{"epoll", "net"} {
		if row.Device == device {
			continue
		}
		for i := range rows {
			r := &rows[i]
			if r.Transport == "tcp" && r.Device == device && comparable(r, row) {
				return r
			}
		}
	}
	return nil
}

func comparable(a, b *Row) bool {
	return a.Workload == b.Workload && a.Topology == b.Topology && a.Layer == b.Layer && a.Connections == b.Connections &&
		a.Direct == b.Direct && a.Share == b.Share && (!a.sized() || a.MessageBytes == b.MessageBytes) && isTrue(a.Batched) == isTrue(b.Batched) && isTrue(a.FlushPerMessage) == isTrue(b.FlushPerMessage) &&
		(a.Idle == b.Idle || a.Idle == "blocking" || b.Idle == "blocking")
}

func isTrue(b *bool) bool { return b != nil && *b }

// ratio writes a/b; lower is better for costs, higher for rates.
func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return ""
	}
	return fmt.Sprintf("×%.2f", a/b)
}

func number(v float64) string {
	switch {
	case v == 0:
		return ""
	case v >= 1e9:
		return fmt.Sprintf("%.2f G", v/1e9)
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1f k", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// conditions writes what distinguishes a row within its workload.
func conditions(r *Row) string {
	var s []string
	for _, p := range []string{r.Layer, r.Codec, r.Operation, r.Compression} {
		if p != "" {
			s = append(s, p)
		}
	}
	if r.sized() {
		s = append(s, fmt.Sprintf("%.0f B", r.MessageBytes))
	}
	if r.Batched != nil {
		s = append(s, map[bool]string{true: "batched", false: "single"}[*r.Batched])
	}
	if isTrue(r.FlushPerMessage) {
		s = append(s, "flush per message")
	}
	if r.Direct {
		s = append(s, "no proxy")
	}
	if r.Share > 0 {
		s = append(s, fmt.Sprintf("%.0f %% of TCP's maximum: %s/s", 100*r.Share, number(r.OfferedRate)))
	}
	if r.Connections > 1 {
		s = append(s, fmt.Sprintf("%d connections", r.Connections))
	}
	if r.BatchRecords > 0 {
		s = append(s, fmt.Sprintf("%d records", r.BatchRecords))
	}
	if r.Workers > 1 {
		s = append(s, fmt.Sprintf("%d workers", r.Workers))
	}
	if r.CRC != nil {
		s = append(s, map[bool]string{true: "CRC", false: "no CRC"}[*r.CRC])
	}
	if r.Reason != "" {
		s = append(s, "FELL BACK: "+r.Reason)
	}
	if r.Sustained != nil && !*r.Sustained {
		s = append(s, "RATE NOT SUSTAINED")
	}
	if r.Lost != nil && *r.Lost > 0 {
		s = append(s, fmt.Sprintf("LOST %d", *r.Lost))
	}
	if r.Duplicated != nil && *r.Duplicated > 0 {
		s = append(s, fmt.Sprintf("DUPLICATED %d", *r.Duplicated))
	}
	return strings.Join(s, ", ")
}

// table is a workload's rows laid out: columns that no row fills are left out.
type table struct {
	title, note string
	head        []string
	rows        [][]string
}

// tables lays out the report for people.
func (rep *Report) tables() []table {
	var out []table
	index := map[string]int{}
	for i := range rep.Results {
		w := rep.Results[i].Workload
		if rep.Results[i].Topology != "" {
			w += ", " + rep.Results[i].Topology
		}
		if _, ok := index[w]; !ok {
			index[w] = len(out)
			out = append(out, table{title: w, note: rep.note(&rep.Results[i])})
		}
		t := &out[index[w]]
		head, cells := rep.cells(&rep.Results[i])
		t.head = head
		t.rows = append(t.rows, cells)
	}
	for i := range out {
		out[i].dropEmpty()
	}
	return out
}

func (rep *Report) note(r *Row) string {
	var s []string
	if r.MessageBytes > 0 && !r.sized() {
		s = append(s, fmt.Sprintf("messages of %.0f B on average", r.MessageBytes))
	}
	if r.OfferedRate > 0 && r.Share == 0 {
		s = append(s, fmt.Sprintf("%s messages/s offered", strings.TrimSpace(number(r.OfferedRate))))
	}
	if r.Durability != "" {
		s = append(s, "durability "+r.Durability)
	}
	var where []string
	for _, role := range []string{"client", "proxy", "broker"} {
		if p := r.Placement[role]; p != "" {
			where = append(where, role+" on "+p)
		}
	}
	if len(where) > 0 {
		s = append(s, strings.Join(where, ", "))
	}
	return strings.Join(s, "; ")
}

func (rep *Report) cells(r *Row) (head, cells []string) {
	ref := Reference(rep.Results, r)
	if ref == nil {
		ref = &Row{}
	}
	add := func(name, value string) {
		head = append(head, name)
		cells = append(cells, value)
	}
	name := r.Transport
	if r.Device != "" {
		name += " " + r.Device
	}
	label := r.Label
	if r.Emulated {
		label += ", emulated"
	}
	add("transport", strings.TrimSpace(name))
	add("label", label)
	add("", conditions(r))
	add("idle", r.Idle)
	quantiles := func(prefix string, q, refQ *quantilesOf) {
		add(prefix+"p50 µs", number(q.P50))
		add("vs tcp", ratio(q.P50, refQ.P50))
		add("p99 µs", number(q.P99))
		add("p99.9 µs", number(q.P999))
	}
	quantiles("", orZero(r.RTMicros), orZero(ref.RTMicros))
	add("send RT p50 µs", number(orZero(r.SendRTMicros).P50))
	add("vs tcp", ratio(orZero(r.SendRTMicros).P50, orZero(ref.SendRTMicros).P50))
	add("messages/s", number(r.MessagesPerSecond))
	add("vs tcp", ratio(r.MessagesPerSecond, ref.MessagesPerSecond))
	add("records/s", number(r.RecordsPerSecond))
	add("bytes/s", number(r.BytesPerSecond))
	for _, role := range []string{"machine", "client", "proxy", "broker"} {
		add("CPU µs/msg "+role, number(r.CPUMicrosPerMessage[role]))
		add("vs tcp", ratio(r.CPUMicrosPerMessage[role], ref.CPUMicrosPerMessage[role]))
	}
	add("overhead B", number(r.OverheadBytesPerRecord))
	spread := ""
	if r.Spread != nil {
		spread = fmt.Sprintf("±%.0f %%", *r.Spread*50)
	}
	add("spread", spread)
	return head, cells
}

func (t *table) dropEmpty() {
	keep := make([]bool, len(t.head))
	for _, row := range t.rows {
		for i, c := range row {
			keep[i] = keep[i] || c != ""
		}
	}
	filter := func(in []string) []string {
		var out []string
		for i, c := range in {
			if keep[i] {
				out = append(out, c)
			}
		}
		return out
	}
	for i := range t.rows {
		t.rows[i] = filter(t.rows[i])
	}
	t.head = filter(t.head)
}

// WriteTable writes the report for people. "vs tcp" compares with kernel TCP
// through the same event loop, and where that was not measured with ordinary
// sockets: below one is better for times and CPU, above one for rates.
func (rep *Report) WriteTable(w io.Writer) error {
	for _, t := range rep.tables() {
		fmt.Fprintf(w, "\n%s\n", t.title)
		if t.note != "" {
			fmt.Fprintf(w, "  %s\n", t.note)
		}
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(tw, "  %s\n", strings.Join(t.head, "\t"))
		for _, row := range t.rows {
			fmt.Fprintf(tw, "  %s\n", strings.Join(row, "\t"))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	if len(rep.Results) > 0 {
		fmt.Fprintln(w, "\nvs tcp: ratio to kernel TCP under the same conditions (device epoll where measured, else net); CPU counts spinning.")
	}
	for _, s := range rep.Skipped {
		fmt.Fprintf(w, "\nskipped %s: %s\n  fix: %s\n", s.Transport, s.Reason, s.Fix)
	}
	return nil
}
