package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	if len(r.Repairs) > 0 {
		for _, p := range r.Repairs {
			state := "done"
			if !p.Done {
				state = "not done"
			}
			fmt.Fprintf(&b, "%s: %s: %s\n", state, p.Check, p.Command)
			if p.Why != "" {
				fmt.Fprintf(&b, "    why:  %s\n", p.Why)
			}
			if p.Done {
				fmt.Fprintf(&b, "    undo: %s\n", p.Undo)
			}
		}
		b.WriteByte('\n')
	}
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, c := range r.Checks {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", c.Status, c.Name, c.Found)
	}
	fmt.Fprintln(tw, "\t\t")
	for _, t := range r.Transports {
		status := OK
		if !t.Runs {
			status = Missing
		}
		note := t.Reason
		if t.Runs {
			note = "runs"
		}
		if t.Default {
			note += " (default)"
		}
		fmt.Fprintf(tw, "%s\t%s://\t%s: %s\n", status, t.Transport, t.Device, note)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	r.writeAdvice(&b)
	if r.OK {
		b.WriteString("\nAll default transports run.\n")
	} else {
		b.WriteString("\nSomething that millrace wants by default is missing.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeAdvice explains what is not ok.
func (r *Report) writeAdvice(b *strings.Builder) {
	advise := func(name, means, fix string, automatic bool) {
		fmt.Fprintf(b, "\n%s\n", name)
		if means != "" {
			fmt.Fprintf(b, "    means: %s\n", means)
		}
		if fix != "" {
			fmt.Fprintf(b, "    fix:   %s\n", fix)
		}
		if automatic {
			b.WriteString("           (millrace doctor --fix does it, until the next boot)\n")
		}
	}
	for _, c := range r.Checks {
		if c.Status != OK && (c.Means != "" || c.Fix != "") {
			advise(c.Name, c.Means, c.Fix, c.Automatic)
		}
	}
	for _, t := range r.Transports {
		if !t.Runs && t.Default {
			advise(t.Transport+"://", t.Reason, t.Fix, false)
		}
	}
}
