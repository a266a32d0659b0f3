// Package roles holds what the processes of a benchmark do: both ends of the
// ping-pongs and streams, and the servers and clients of the message path.
package roles

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/internal/ticks"
)

// All is the table of roles for role.Serve.
var All = map[string]role.Func{
	"net-echo":    netEcho,
	"net-ping":    netPing,
	"net-broker":  runNetBroker,
	"net-proxy":   runNetProxy,
	"loop-echo":   loopEcho,
	"loop-ping":   loopPing,
	"stream-sink": streamSink,
	"stream":      streamSource,
	"tcp-echo":    rawEcho(rawTCP),
	"tcp-ping":    rawPing(rawTCP),
	"udp-echo":    rawEcho(rawUDP),
	"udp-ping":    rawPing(rawUDP),
	"port-echo":   portEcho,
	"port-ping":   portPing,
	"probe":       probe,
	"broker":      runBroker,
	"proxy":       runProxy,
	"producer":    runProducer,
	"consumer":    runConsumer,
	"codec":       runCodec,
}

// answerTimeout is how long a ping-pong waits for one answer: a peer that hangs,
// or a lost datagram of a floor that does not retransmit, ends the measurement.
const answerTimeout = 3 * time.Second

// window is the time that counts: after the warm-up, for the duration.
type window struct {
	from, to time.Time
	announce func() // tells the parent that it has begun; any goroutine, any number of times
	told     bool
}

// open starts the warm-up, and tells the parent when the measurement starts.
func open(ctx context.Context, spec role.Spec, c *role.Control) (*window, error) {
	if err := c.Expect(ctx, role.Start); err != nil {
		return nil, err
	}
	return newWindow(time.Now().Add(spec.Warmup), spec, c), nil
}

// newWindow is the window that begins at from.
func newWindow(from time.Time, spec role.Spec, c *role.Control) *window {
	w := &window{from: from, to: from.Add(spec.Duration), announce: sync.OnceFunc(func() { c.Emit(role.Event{Kind: role.Measuring}) })}
	time.AfterFunc(time.Until(from), w.announce)
	return w
}

// next reports whether something new begins at now. For a single goroutine that
// spins: others then run late, so it is this one that announces the window.
func (w *window) next(now time.Time) bool {
	if !w.told && w.counts(now) {
		w.told = true
		w.announce()
	}
	return !w.over(now)
}

// counts reports whether something that began at t is measured.
func (w *window) counts(t time.Time) bool { return !t.Before(w.from) }

// over reports whether nothing new begins at t.
func (w *window) over(t time.Time) bool { return !t.Before(w.to) }

// stopwatch times round trips, with the loops' own clock on every layer: what a reading
// takes is in each of them. One goroutine.
type stopwatch struct {
	start time.Time
	clock ticks.Clock
}

func newStopwatch() *stopwatch {
	start := time.Now()
	return &stopwatch{start, ticks.New(start)}
}

func (s *stopwatch) now() time.Time { return s.start.Add(time.Duration(s.clock.Read())) }

// tally adds up what the connections of a ping-pong found.
type tally struct {
	mu       sync.Mutex
	messages int64
	bytes    int64
	lost     atomic.Int64
	extra    atomic.Int64
	hist     *measure.Histogram
}

func newTally() *tally { return &tally{hist: measure.NewHistogram()} }

// add records one round trip of n bytes; for a single goroutine.
func (t *tally) add(rt time.Duration, n int) {
	t.hist.Record(rt)
	t.messages++
	t.bytes += int64(n)
}

// addLocked is add for several goroutines.
func (t *tally) addLocked(rt time.Duration, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(rt, n)
}

func (t *tally) result(w *window) *role.Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	lost, extra := t.lost.Load(), t.extra.Load()
	return &role.Result{
		Messages: t.messages, Bytes: t.bytes, Elapsed: w.to.Sub(w.from), RT: t.hist.Quantiles(), Lost: &lost, Duplicated: &extra,
	}
}

// finish reports a client's result and waits for the parent's Stop; then close
// runs. m was marked when the measurement began.
func finish(ctx context.Context, c *role.Control, w *window, m *role.BusyMeter, r *role.Result, close func()) error {
	w.announce()
	r.BusyShare = m.Share()
	c.Emit(role.Event{Kind: role.Measured, Result: r})
	return c.ServeUntilStop(ctx, nil, nil, func() role.Event {
		close()
		return role.Event{}
	})
}

// cpuMeter is the meter of a process that blocks when there is nothing to do:
// what it does is its CPU time.
func cpuMeter() *role.BusyMeter { return role.NewBusyMeter(measure.OwnCPU) }
