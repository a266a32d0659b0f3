// Package sample holds a small body of messages for the benchmark: lines of a
// service's log and JSON events, made by the generator beside it with a fixed
// seed. They are made up; names and addresses are from documentation ranges.
package sample

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

//go:generate go run ./generate

//go:embed logs.txt
var logs []byte

//go:embed events.ndjson
var events []byte

// Messages returns the log lines and the events, in that order. The slices share
// one array; callers must not change them.
func Messages() [][]byte {
	return append(lines(logs), lines(events)...)
}

func lines(b []byte) [][]byte { return bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) }

const (
	seed       = 20260101
	logLines   = 2000
	eventLines = 300
)

// Generate makes the two files anew: always the same bytes.
func Generate() (logs, events []byte) {
	g := &generator{r: rand.New(rand.NewPCG(seed, 1)), at: time.Date(2026, 1, 1, 6, 0, 0, 0, time.UTC)}
	var l, e bytes.Buffer
	for range logLines {
		l.WriteString(g.logLine())
		l.WriteByte('\n')
	}
	for range eventLines {
		e.Write(g.event())
		e.WriteByte('\n')
	}
	return l.Bytes(), e.Bytes()
}

type generator struct {
	r  *rand.Rand
	at time.Time
}

func (g *generator) pick(of ...string) string { return of[g.r.IntN(len(of))] }

func (g *generator) host() string {
	return g.pick("192.0.2.", "198.51.100.", "203.0.113.") + fmt.Sprint(1+g.r.IntN(254))
}

func (g *generator) tick() time.Time {
	g.at = g.at.Add(time.Duration(1+g.r.ExpFloat64()*40) * time.Millisecond)
	return g.at
}

func (g *generator) logLine() string {
	head := fmt.Sprintf("%s %s %s", g.tick().Format("2006-01-02T15:04:05.000Z"), g.pick("INFO", "INFO", "INFO", "INFO", "DEBUG", "WARN"), g.pick("ingest-0", "ingest-1", "store-0", "store-1", "store-2"))
	switch g.r.IntN(6) {
	case 0:
		return fmt.Sprintf("%s segment rolled topic=%s base=%d bytes=%d", head, g.pick("orders", "clicks", "audit"), g.r.Uint32(), g.r.IntN(64<<20))
	case 1:
		return fmt.Sprintf("%s connection accepted from %s:%d", head, g.host(), 1024+g.r.IntN(64000))
	case 2:
		return fmt.Sprintf("%s request id=%08x %s /v1/%s status=%d took=%dus", head, g.r.Uint32(), g.pick("GET", "POST", "PUT"),
			g.pick("orders", "carts", "users", "users/self"), []int{200, 200, 200, 201, 204, 404, 503}[g.r.IntN(7)], 80+int(g.r.ExpFloat64()*900))
	case 3:
		return fmt.Sprintf("%s batch appended topic=%s offset=%d records=%d", head, g.pick("orders", "clicks", "audit"), g.r.Uint32(), 1+g.r.IntN(256))
	case 4:
		return fmt.Sprintf("%s replica %s lags by %d records", head, g.host(), g.r.IntN(2000))
	default:
		return fmt.Sprintf("%s checkpoint %d done in %d ms, %d dirty pages", head, g.r.IntN(100000), 1+g.r.IntN(900), g.r.IntN(5000))
	}
}

func (g *generator) event() []byte {
	type item struct {
		SKU   string `json:"sku"`
		Count int    `json:"count"`
		Cents int    `json:"cents"`
	}
	ev := struct {
		ID    string   `json:"id"`
		Time  string   `json:"time"`
		Kind  string   `json:"kind"`
		User  string   `json:"user"`
		From  string   `json:"from"`
		Note  string   `json:"note,omitempty"`
		Items []item   `json:"items"`
		Tags  []string `json:"tags"`
	}{
		ID: fmt.Sprintf("%016x", g.r.Uint64()), Time: g.tick().Format(time.RFC3339Nano),
		Kind: g.pick("order.placed", "order.paid", "cart.changed", "order.shipped"), User: fmt.Sprintf("user-%05d", g.r.IntN(20000)), From: g.host(),
	}
	if g.r.IntN(3) == 0 {
		ev.Note = strings.Join([]string{g.pick("please", "bitte", "お願いします", "por favor"), g.pick("ring twice", "an der Tür klingeln", "ベルを鳴らして", "leave it at the door 🚪")}, ", ")
	}
	for range 1 + g.r.IntN(5) {
		ev.Items = append(ev.Items, item{SKU: fmt.Sprintf("%s-%04d", g.pick("BOOK", "LAMP", "MUG", "PEN"), g.r.IntN(10000)), Count: 1 + g.r.IntN(4), Cents: 99 + g.r.IntN(20000)})
	}
	for range g.r.IntN(4) {
		ev.Tags = append(ev.Tags, g.pick("web", "app", "gift", "express", "return"))
	}
	b, err := json.Marshal(ev)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return b
}
