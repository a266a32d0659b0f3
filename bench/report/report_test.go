package report

import (
	"bytes"
	"html"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/bench/measure"
)

func yes() *bool { v := true; return &v }
func no() *bool  { v := false; return &v }

func sampleReport() *Report {
	cpu := func(proxy, broker float64) map[string]float64 {
		return map[string]float64{"machine": proxy + broker, "proxy": proxy, "broker": broker}
	}
	row := func(transport, device, idle string, proxy, broker, send float64) Row {
		return Row{Workload: "produce", Transport: transport, Device: device, Layer: "message", Idle: idle, Topology: "local", Batched: yes(), FlushPerMessage: no(),
			CPUMicrosPerMessage: cpu(proxy, broker), SendRTMicros: &measure.Quantiles{P50: send}, RTMicros: &measure.Quantiles{P50: 2 * send}}
	}
	return &Report{
		Machine: measure.Machine{CPUModel: "test"},
		Results: []Row{
			row("tcp", "net", "blocking", 20, 20, 200), row("tcp", "epoll", "balanced", 10, 10, 100), row("rdma", "softroce+udp", "balanced", 9, 5, 80),
			{Workload: "throughput", Transport: "tcp", Device: "epoll", Layer: "message", Idle: "balanced", Batched: yes(), MessagesPerSecond: 100},
			{Workload: "throughput", Transport: "dpdk", Device: "memif", Layer: "message", Idle: "balanced", Batched: no(), FlushPerMessage: yes(), MessagesPerSecond: 1000},
			{Workload: "throughput", Transport: "dpdk", Device: "memif", Layer: "message", Idle: "balanced", Batched: yes(), MessagesPerSecond: 150},
			{Workload: "stream", Transport: "tcp", Device: "epoll", MessageBytes: 256, MessagesPerSecond: 10},
			{Workload: "stream", Transport: "tcp", Device: "epoll", MessageBytes: 1024, MessagesPerSecond: 5},
			{Workload: "stream", Transport: "rdma", Device: "softroce+udp", MessageBytes: 1024, MessagesPerSecond: 4},
			{Workload: "matched", Transport: "tcp", Device: "epoll", MessageBytes: 256, MessagesPerSecond: 10},
			{Workload: "matched", Transport: "dpdk", Device: "memif", MessageBytes: 256, MessagesPerSecond: 5, Share: 0.5, OfferedRate: 5, Reason: "no memory"},
		},
	}
}

// Ratios are against the same loop over TCP where that was measured, and only under
// the same conditions.
func TestReference(t *testing.T) {
	rows := sampleReport().Results
	for i, want := range []int{1, -1, 1, -1, -1, 3, -1, -1, 7, -1, -1} {
		got := -1
		for j := range rows {
			if Reference(rows, &rows[i]) == &rows[j] {
				got = j
			}
		}
		if got != want {
			t.Errorf("row %d is compared with %d, want %d", i, got, want)
		}
	}
}

func TestHeadline(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().WriteHeadline(&out); err != nil {
		t.Fatal(err)
	}
	for claim, figures := range map[string][]string{
		"storage broker CPU": {"-26.7 %", "-50.0 %", "-75.0 %"},
		"proxy CPU":          {"-10.1 %", "-10.0 %", "-55.0 %"},
		"send RT":            {"-23.8 %", "-20.0 %", "-60.0 %"},
		"throughput, DPDK":   {"+20.0 %", "+50.0 %", "not measured"},
	} {
		for line := range strings.Lines(out.String()) {
			if !strings.Contains(line, claim) {
				continue
			}
			for _, f := range figures {
				if !strings.Contains(line, f) {
					t.Errorf("%s: no %s in %s", claim, f, line)
				}
			}
		}
		if !strings.Contains(out.String(), claim) {
			t.Errorf("no %q in\n%s", claim, out.String())
		}
	}
}

// What is written is read back, and differs from a changed report in what changed.
func TestReadAndDiff(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.json")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := sampleReport().WriteJSON(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	a, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	b := sampleReport()
	spread := 0.5
	a.Results[2].Spread, b.Results[2].Spread = &spread, &spread
	b.Results[2].SendRTMicros.P50 = 100
	b.Results[5].MessagesPerSecond = 300
	var out bytes.Buffer
	little := 0.1
	a.Results[6].Spread, b.Results[6].Spread, b.Results[6].MessagesPerSecond = &little, &little, 7 // of 10
	a.Results[7].Spread, b.Results[7].Spread, b.Results[7].MessagesPerSecond = &little, &little, 9 // of 5
	b.Results[8].MessagesPerSecond = 1                                                             // no spread
	b.Results = append(b.Results[1:], Row{Workload: "rtt", Transport: "rdma"})
	if worse, err := WriteDiff(&out, a, b); err != nil || worse != 1 {
		t.Fatalf("%d rows became worse, %v\n%s", worse, err, out.String())
	}
	for _, want := range []string{"+25.0 %", "within spread", "+100.0 %", "-30.0 %   WORSE", "only in the first", "only in the second"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	for name, text := range map[string]string{"text": "not JSON", "other JSON": `{"a":1}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(file); err == nil || !strings.Contains(err.Error(), "not a report") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The table and the page show every row, and what was skipped with its fix.
func TestTables(t *testing.T) {
	rep := sampleReport()
	lost := int64(3)
	rep.Results[2].Lost, rep.Results[2].Sustained = &lost, no()
	rep.Skipped = []Skip{{"dpdk", "because <of> it", "do that"}}
	var table, page bytes.Buffer
	if err := rep.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if err := rep.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"softroce+udp", "FELL BACK: no memory", "50 % of TCP's maximum", "×0.80", "LOST 3", "RATE NOT SUSTAINED", "flush per message", "do that"} {
		if !strings.Contains(table.String(), want) || !strings.Contains(html.UnescapeString(page.String()), want) {
			t.Errorf("no %q in\n%s\n%s", want, table.String(), page.String())
		}
	}
	if strings.Contains(page.String(), "<of>") {
		t.Error("the page does not escape")
	}
}
