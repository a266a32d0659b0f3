// Command generate writes the sample's files into the folder it runs in.
package main

import (
	"log"
	"os"

	"github.com/millrace/millrace/bench/sample"
)

func main() {
	logs, events := sample.Generate()
	if err := os.WriteFile("logs.txt", logs, 0o644); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("events.ndjson", events, 0o644); err != nil {
		log.Fatal(err)
	}
}
