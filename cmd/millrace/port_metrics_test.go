package main

import "testing"

// A server's metrics show what its poll-mode ports do.
func TestPortMetrics(t *testing.T) {
	broker, metrics := server(t, "broker", "--listen", "dpdk://127.0.0.1:0", "--data", t.TempDir(), "--metrics", "127.0.0.1:0")
	if _, said, status := call(t, "one\ntwo\n", "produce", "--to", broker, "--topic", "ports"); status != 0 {
		t.Fatalf("produce: exit status %d\n%s", status, said)
	}
	p := page(t, metrics)
	for _, name := range []string{
		"millrace_port_frames_total", `millrace_memif_frames_total{direction="received"}`, `millrace_memif_bursts_total{direction="sent"}`,
	} {
		if metric(t, p, name) == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	for _, name := range []string{"millrace_memif_bad_descriptors_total", "millrace_memif_peer_lies_total", "millrace_port_overrun_frames_total"} {
		if n := metric(t, p, name); n != 0 {
			t.Errorf("%s is %g", name, n)
		}
	}
}
