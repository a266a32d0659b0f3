package report

import (
	"html/template"
	"io"
	"slices"
	"strings"
)

// page needs nothing from outside itself.
var page = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>millrace bench</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:90rem;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 2rem;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:nth-child(-n+4),td:nth-child(-n+4){text-align:left}
.note{color:#555}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#151515}th,td{border-color:#333}.note{color:#999}}
</style></head><body>
<h1>millrace bench</h1>
<p class="note">{{.Machine.CPUModel}}, {{.Machine.CPUs}} of {{.Machine.OnlineCPUs}} CPUs, {{.Machine.Architecture}}, Linux {{.Machine.Kernel}}, {{.Machine.Distribution}};
virtualization: {{.Machine.Virtualization}}; memory: {{.Machine.HugePages}}; load {{.Machine.Load1}}; {{.Versions}}; {{.Machine.Time}}</p>
{{range .Tables}}<h2>{{.Title}}</h2><p class="note">{{.Note}}</p>
<table><tr>{{range .Head}}<th>{{.}}</th>{{end}}</tr>
{{range .Rows}}<tr>{{range .}}<td>{{.}}</td>{{end}}</tr>
{{end}}</table>
{{end}}<p class="note">“vs tcp” is the ratio to kernel TCP under the same conditions: through the same event loop where that was measured, else ordinary sockets.
Below one is better for times and CPU, above one for rates. CPU counts spinning.</p>
{{range .Skipped}}<p>Skipped {{.Transport}}: {{.Reason}} <em>Fix: {{.Fix}}</em></p>
{{end}}</body></html>
`))

type pageTable struct {
	Title, Note string
	Head        []string
	Rows        [][]string
}

// WriteHTML writes the report as one self-contained page.
func (rep *Report) WriteHTML(w io.Writer) error {
	var tables []pageTable
	for _, t := range rep.tables() {
		tables = append(tables, pageTable{t.title, t.note, t.head, t.rows})
	}
	var versions []string
	for name, v := range rep.Machine.Versions {
		versions = append(versions, name+" "+v)
	}
	slices.Sort(versions)
	return page.Execute(w, map[string]any{
		"Machine": rep.Machine, "Versions": strings.Join(versions, ", "), "Tables": tables, "Skipped": rep.Skipped,
	})
}
