package main

import (
	"os"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/millrace/millrace/bench"
)

// newProgress shows a bar on a terminal and lines elsewhere.
func newProgress(f *os.File) bench.Progress {
	if !term.IsTerminal(int(f.Fd())) {
		return bench.NewLines(f)
	}
	return &bar{file: f}
}

type bar struct {
	file *os.File
	bar  *progressbar.ProgressBar
	on   bool
}

func (b *bar) Begin(steps int) {
	// It is drawn only between measurements: no ticker disturbs them.
	b.bar = progressbar.NewOptions(steps, progressbar.OptionSetWriter(b.file), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
}

func (b *bar) Step(what string) {
	if b.on {
		_ = b.bar.Add(1)
	}
	b.on = true
	b.bar.Describe(what)
}

func (b *bar) End() { _ = b.bar.Finish() }
