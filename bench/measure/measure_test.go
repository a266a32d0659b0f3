package measure

import (
	"math"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestQuantiles(t *testing.T) {
	h := NewHistogram()
	if h.Quantiles() != nil {
		t.Error("quantiles of nothing")
	}
	for i := 1; i <= 1000; i++ {
		h.Record(time.Duration(i) * time.Microsecond)
	}
	h.Record(-time.Second)
	h.Record(time.Hour)
	q := h.Quantiles()
	near := func(name string, got, want float64) {
		if math.Abs(got-want) > want*0.002 {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	near("p50", q.P50, 500)
	near("p90", q.P90, 901)
	near("p99", q.P99, 991)
	near("max", q.Max, 60e6)
	if h.Count() != 1002 {
		t.Errorf("count %d", h.Count())
	}
	h.Reset()
	if h.Count() != 0 {
		t.Error("reset kept values")
	}
}

func TestMedianAndSpread(t *testing.T) {
	for _, c := range []struct {
		in             []float64
		median, spread float64
	}{
		{nil, 0, 0}, {[]float64{3}, 3, 0}, {[]float64{1, 4, 2}, 2, 1.5}, {[]float64{4, 1, 2, 3}, 2.5, 1.2}, {[]float64{0, 0}, 0, 0},
	} {
		if m, s := Median(c.in), Spread(c.in); m != c.median || s != c.spread {
			t.Errorf("%v: median %v spread %v, want %v %v", c.in, m, s, c.median, c.spread)
		}
	}
	q := MedianQuantiles([]*Quantiles{{P50: 1}, nil, {P50: 3}, {P50: 2}})
	if q.P50 != 2 {
		t.Errorf("median of quantiles %v", q)
	}
	if MedianQuantiles([]*Quantiles{nil}) != nil {
		t.Error("median of no quantiles")
	}
}

func TestParseStat(t *testing.T) {
	d, err := parseStat("cpu  10 1 20 9999 50 3 4 7 5 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if err != nil || d != 380*time.Millisecond {
		t.Errorf("%v, %v", d, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8", "cpu a b c d e f g h"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}

func TestProcessCPUOfAnotherProcess(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Skip("no sh:", err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for range 200 {
		d, err := ProcessCPU(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if d > 20*time.Millisecond {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a process that spins uses no CPU")
}

func TestProcessCPUOfNobody(t *testing.T) {
	if _, err := ProcessCPU(1 << 26); err == nil {
		t.Error("no error")
	}
}

func TestThisMachine(t *testing.T) {
	m := ThisMachine("test")
	if m.CPUs < 1 || m.OnlineCPUs < m.CPUs || m.Kernel == "" || m.MemoryMiB == 0 || m.CPUModel == "" || m.HugePages == "" || m.Versions["go"] == "" {
		t.Errorf("%+v", m)
	}
	if _, err := os.Stat("/proc/loadavg"); err == nil && m.Load1 < 0 {
		t.Errorf("load %v", m.Load1)
	}
}
