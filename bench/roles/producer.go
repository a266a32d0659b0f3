package roles

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/bench/measure"
	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// drainPatience bounds the wait for the answers to what was sent.
const drainPatience = 10 * time.Second

// runProducer sends through a proxy: in a closed loop of spec.Window messages on
// each connection, or, with spec.Rate, in an open loop whose latencies count from
// the time at which a message was due. On Verify it reads the topic back.
func runProducer(ctx context.Context, spec role.Spec, c *role.Control) error {
	if spec.Rate > 0 { // each connection has a goroutine that sleeps until a message is due, and a loop
		forSleepers(netpoll.Efficient(), 2*max(1, spec.Connections))
	}
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return err
	}
	load := &load{spec: spec, ms: ms}
	for i := range max(1, spec.Connections) {
		p, err := newProducer(ctx, load, uint32(i))
		if err != nil {
			return err
		}
		load.producers = append(load.producers, p)
	}
	ready := role.Event{Kind: role.Ready}
	if spec.SendRT { // else a proxy's link is what is measured
		t := load.producers[0].out.transport()
		ready.Device, ready.Label, ready.Reason = t.Device, t.Label, t.Reason
	}
	c.Emit(ready)
	if err := c.Expect(ctx, role.Start); err != nil {
		return err
	}
	load.began = time.Now()
	load.w = newWindow(load.began.Add(spec.Warmup), spec, c)
	if err := load.run(ctx); err != nil {
		return err
	}
	load.w.announce()
	c.Emit(role.Event{Kind: role.Measured, Result: load.result()})
	if err := c.Expect(ctx, role.Verify); err != nil {
		return err
	}
	verified, err := load.verify(ctx)
	if err != nil {
		return err
	}
	c.Emit(role.Event{Kind: role.Verified, Result: verified})
	return c.ServeUntilStop(ctx, nil, nil, func() role.Event { return role.Event{} })
}

// load is what all connections of a client do together.
type load struct {
	spec      role.Spec
	ms        [][]byte
	producers []*producer
	began     time.Time
	w         *window
}

// message is what connection id sends as its message number seq.
func (l *load) message(id uint32, seq uint64) []byte {
	return l.ms[(seq+uint64(id)*uint64(len(l.ms)/2+1))%uint64(len(l.ms))]
}

func (l *load) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, p := range l.producers {
		p.failed = cancel
		wg.Go(func() {
			if err := p.run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	for _, p := range l.producers {
		if err := p.out.close(); err != nil {
			cancel(err)
		}
	}
	return context.Cause(ctx)
}

func (l *load) result() *role.Result {
	r := &role.Result{Elapsed: l.w.to.Sub(l.w.from)}
	total, sendRT := newTally(), measure.NewHistogram()
	var backlog int64
	for _, p := range l.producers {
		total.hist.Merge(p.t.hist)
		if p.sendRT != nil {
			sendRT.Merge(p.sendRT)
		}
		r.Messages += p.t.messages
		r.Bytes += p.t.bytes
		backlog += p.backlog
	}
	r.RT, r.SendRT = total.hist.Quantiles(), sendRT.Quantiles()
	if l.spec.Rate > 0 {
		ok := float64(backlog) <= l.spec.Rate*backlogAllowed.Seconds()+1
		r.Sustained = &ok
	}
	return r
}

// backlogAllowed: a rate counts as sustained if at the end no more messages wait
// for their acknowledgement than fall due in this time. It allows for the pauses
// of a busy machine.
const backlogAllowed = 50 * time.Millisecond

// producer is one connection. Its run is one goroutine, on which it sends;
// Complete is called on another.
type producer struct {
	l      *load
	id     uint32
	out    sender
	failed context.CancelCauseFunc

	appended uint64
	key      [keyBytes]byte
	record   serialize.Record // the one that is being appended
	unsent   int64            // messages that fell due in the window and were not sent
	backlog  int64            // of those due, not acknowledged when the window closed

	completed atomic.Uint64
	waiting   atomic.Bool
	wake      chan struct{}
	sentAt    []time.Time // closed loop, by token; the length is the window

	t      *tally             // Complete's until all is answered
	sendRT *measure.Histogram // likewise; nil if nobody asks
	clock  coarseClock
}

func newProducer(ctx context.Context, l *load, id uint32) (*producer, error) {
	p := &producer{l: l, id: id, wake: make(chan struct{}, 1), t: newTally()}
	if l.spec.Rate == 0 {
		p.sentAt = make([]time.Time, l.spec.Window)
	}
	var onSendRT func(nanos int64)
	if l.spec.SendRT {
		p.sendRT = measure.NewHistogram()
		onSendRT = p.acknowledged
	}
	var err error
	p.out, err = newSender(ctx, l.spec, p, onSendRT)
	return p, err
}

// acknowledged records how long a batch was under way. On Complete's goroutine.
func (p *producer) acknowledged(nanos int64) {
	if now := p.clock.now(p.out.cycle()); p.l.w.counts(now) && !p.l.w.over(now) {
		p.sendRT.Record(time.Duration(nanos))
	}
}

func (p *producer) run(ctx context.Context) error {
	var err error
	if p.l.spec.Rate > 0 {
		err = p.openLoop(ctx)
	} else {
		err = p.closedLoop(ctx)
	}
	if err != nil {
		return err
	}
	if err := p.drain(ctx); err != nil {
		return err
	}
	p.recordUnsent()
	return nil
}

// drain waits until all is answered.
func (p *producer) drain(ctx context.Context) error {
	dctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	if err := p.waitFor(dctx, 0); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%d of %d messages were not acknowledged within %v: %w", p.appended-p.completed.Load(), p.appended, drainPatience, err)
	}
	return nil
}

// send appends the next message.
func (p *producer) send(ctx context.Context, at time.Time) error {
	r := &p.record
	putKey(p.key[:], p.id, p.appended)
	*r = serialize.Record{Key: p.key[:], Value: p.l.message(p.id, p.appended), Timestamp: at.UnixMilli()}
	if r.Value == nil {
		r.Value = []byte{} // nil means a deletion
	}
	if err := p.out.append(ctx, r, p.appended); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	p.appended++
	return nil
}

// waitFor sends what was gathered and waits until at most outstanding messages
// have no answer.
func (p *producer) waitFor(ctx context.Context, outstanding uint64) error {
	if err := p.out.flush(); err != nil {
		return err
	}
	for p.appended-p.completed.Load() > outstanding {
		p.waiting.Store(true)
		if p.appended-p.completed.Load() <= outstanding {
			p.waiting.Store(false)
			break
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// clockEvery is how many messages of a burst share one reading of the clock.
const clockEvery = 16

func (p *producer) closedLoop(ctx context.Context) error {
	size := uint64(len(p.sentAt))
	now := time.Now()
	for n := 1; ; n++ {
		if p.appended-p.completed.Load() >= size {
			if err := p.waitFor(ctx, size-1); err != nil {
				return err
			}
			n = 0
		}
		if n%clockEvery == 0 {
			if now = time.Now(); p.l.w.over(now) {
				return nil
			}
		}
		p.sentAt[p.appended%size] = now
		if err := p.send(ctx, now); err != nil {
			return err
		}
	}
}

// due is when message seq of this connection has to be sent.
func (p *producer) due(seq uint64) time.Time {
	n := float64(seq)*float64(len(p.l.producers)) + float64(p.id)
	return p.l.began.Add(time.Duration(n / p.l.spec.Rate * float64(time.Second)))
}

// shortestSleep is how long a producer sleeps at least: at a rate at which messages
// fall due faster, a sleep between any two would cost more than they do. Those that
// fell due meanwhile are then sent at once, and what they waited counts.
const shortestSleep = 200 * time.Microsecond

// scheduleEvery is how often a producer that sleeps lets the Go scheduler see it; see
// netpoll's loop, which does the same.
const scheduleEvery = 5 * time.Millisecond

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (p *producer) openLoop(ctx context.Context) error {
	now := time.Now()
	scheduled := now
	for n := 1; ; n++ {
		due := p.due(p.appended)
		if p.l.w.over(due) {
			break
		}
		if due.After(now) || n%clockEvery == 0 {
			now = time.Now()
		}
		if due.After(now) {
			if err := p.out.flush(); err != nil {
				return err
			}
			if now.Sub(scheduled) >= scheduleEvery {
				runtime.Gosched()
				scheduled = now
			}
			now = sleepUntil(ctx, later(due, now.Add(shortestSleep)))
		}
		if p.l.w.over(now) {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := p.send(ctx, due); err != nil {
			return err
		}
	}
	if err := p.out.flush(); err != nil {
		return err
	}
	sleepUntil(ctx, p.l.w.to)
	total := p.l.w.to.Sub(p.l.began).Seconds()*p.l.spec.Rate - float64(p.id)
	p.unsent = max(0, int64(total/float64(len(p.l.producers)))-int64(p.appended))
	p.backlog = p.unsent + int64(p.appended-p.completed.Load())
	return nil
}

// recordUnsent counts what was due and never sent as having taken until the window
// closed: leaving it out would hide just the latencies that a rate beyond the
// means causes. It is called when all is answered.
func (p *producer) recordUnsent() {
	const steps = 1000
	for i := range int64(steps) {
		from, to := i*p.unsent/steps, (i+1)*p.unsent/steps
		if from == to {
			continue
		}
		if due := p.due(p.appended + uint64(from)); p.l.w.counts(due) {
			p.t.hist.RecordN(p.l.w.to.Sub(due), to-from)
		}
	}
}

// Complete implements batcher.Completer.
func (p *producer) Complete(token uint64, _ int64, err error) {
	if err != nil {
		p.failed(fmt.Errorf("message %d was not acknowledged: %w", token, err))
		return
	}
	now := p.clock.now(p.out.cycle())
	inWindow := p.l.w.counts(now) && !p.l.w.over(now)
	if inWindow {
		p.t.messages++
		p.t.bytes += int64(len(p.l.message(p.id, token)))
	}
	if p.l.spec.Rate > 0 {
		if due := p.due(token); p.l.w.counts(due) {
			p.t.hist.Record(now.Sub(due))
		}
	} else if inWindow {
		p.t.hist.Record(now.Sub(p.sentAt[token%uint64(len(p.sentAt))]))
	}
	p.completed.Add(1)
	if p.waiting.Load() && p.waiting.Swap(false) {
		p.wake <- struct{}{} // its buffer is empty: only who waits takes it
	}
}

// coarseClock reads the clock once for each duty cycle, and again after every few
// messages of a long one.
type coarseClock struct {
	cycle int64
	uses  int
	at    time.Time
}

func (c *coarseClock) now(cycle int64) time.Time {
	if cycle != c.cycle || c.uses == clockEvery {
		c.cycle, c.uses, c.at = cycle, 0, time.Now()
	}
	c.uses++
	return c.at
}
