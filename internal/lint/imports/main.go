// Command imports checks that the module's imports point downwards only. It runs
// in the module's root folder.
package main

import (
	"fmt"
	"os"

	"github.com/millrace/millrace/internal/lint"
)

func main() {
	bad, err := lint.CheckImports(os.DirFS("."), "github.com/millrace/millrace", lint.Rooms)
	if err != nil {
		fmt.Fprintln(os.Stderr, "imports:", err)
		os.Exit(2)
	}
	for _, b := range bad {
		fmt.Fprintln(os.Stderr, b)
	}
	if len(bad) > 0 {
		os.Exit(1)
	}
}
