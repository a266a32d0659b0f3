package netpoll

import (
	"net/url"
	"testing"
)

// quietBackend finds work in every n-th poll; 0: never.
type quietBackend struct {
	scheme string
	every  int
	polls  int
}

func (b *quietBackend) Attach(*Loop) error { return nil }
func (b *quietBackend) Arm() (int64, bool) { return 0, true }
func (b *quietBackend) Close() error       { return nil }
func (b *quietBackend) Scheme() string     { return b.scheme }
func (b *quietBackend) Poll(int) (work int) {
	if b.polls++; b.every > 0 && b.polls%b.every == 0 {
		return 1
	}
	return 0
}
func (b *quietBackend) Listen(*url.URL, Handler) (Listener, error)       { return nil, ErrClosed }
func (b *quietBackend) Dial(_ *url.URL, _ Handler, d func(*Conn, error)) { d(nil, ErrClosed) }

// countdown stops its loop in the b.N-th poll.
type countdown struct {
	quietBackend
	loop *Loop
	left int
}

func (c *countdown) Attach(l *Loop) error { c.loop = l; return nil }
func (c *countdown) Poll(budget int) int {
	if c.left--; c.left == 0 {
		c.loop.Stop()
	}
	return c.quietBackend.Poll(budget)
}

// benchmarkCycles runs b.N duty cycles of a loop that spins.
func benchmarkCycles(b *testing.B, every int, backends ...Backend) {
	backends = append(backends, &countdown{quietBackend: quietBackend{scheme: "counts", every: every}, left: b.N})
	l, err := NewLoop(Options{Pool: testPool(b, 8<<20), Idle: Latency(), Backends: backends})
	if err != nil {
		b.Fatal(err)
	}
	l.AtCycleEnd(func(int64) int64 { return 0 })
	b.ReportAllocs()
	b.ResetTimer()
	if err := l.Run(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCycle is one duty cycle of a loop over backends of which no handler has
// anything to do: what the loop itself costs.
func BenchmarkCycle(b *testing.B) {
	quiet := func(scheme string) Backend { return &quietBackend{scheme: scheme} }
	b.Run("empty/backends=1", func(b *testing.B) { benchmarkCycles(b, 0) })
	b.Run("empty/backends=4", func(b *testing.B) { benchmarkCycles(b, 0, NewTCP(), quiet("a"), quiet("b")) })
	b.Run("busy/backends=4", func(b *testing.B) { benchmarkCycles(b, 1, NewTCP(), quiet("a"), quiet("b")) })
}
