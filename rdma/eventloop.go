package rdma

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// EventLoopOptions size an EventLoop. The zero value of a field means its
// default.
type EventLoopOptions struct {
	// Scheme is the URL scheme that the event loop serves. Default "rdma".
	Scheme string
	// DeviceParam is the URL parameter that names the device. Default "device".
	DeviceParam string
	// Receives is how many messages (or pieces of one) a busy peer may have in
	// flight towards this end, plus one for control: 2 to 4096, at most the device's
	// MaxQPWR. Default 64.
	Receives int
	// ReceiveBytes is the size of one receive buffer: 256 to 8 MiB. Larger
	// messages arrive as chains. Default 8,188: with the 4 bytes that tell that a
	// message goes on, a piece fills packets of equal length.
	ReceiveBytes int
	// SharedReceives bounds the receives of all connections of a device together,
	// and so their memory, SharedReceives × ReceiveBytes of the loop's pool, which
	// is taken as it is needed. An idle connection holds two; one that cannot have
	// them is refused. 2 to 65,536, at most the device's MaxSRQWR if it has a shared
	// receive queue. Default 4096: 2,048 idle connections, 34 MB.
	SharedReceives int
	// SendWRs is the depth of a connection's send queue: sends not yet
	// acknowledged by the peer's device. Default 128, at most the device's
	// MaxQPWR.
	SendWRs int
}

// Defaults of EventLoopOptions, and sizes of the event loop's own.
const (
	defaultReceives     = 64
	defaultReceiveBytes = 8<<10 - 4 // 4: the immediate, without which a piece's last packet would be its longest; see softroce's trains
	defaultSendWRs      = 128
	defaultShared       = 4096
	maxShared           = 1 << 16

	// sendList is the longest list of sends in one post.
	sendList = 128
	// signalEvery is how many requests of a list share one completion, and so how
	// many buffers wait for one: few completions, and room again in the send queue
	// before it is empty.
	signalEvery = 32
	// yieldAfter is how long a sender keeps credits that it does not use; up to twice
	// that, for it looks once in that time.
	yieldAfter = 100 * time.Millisecond
	// pollList is how many completions one CQ.Poll takes.
	pollList = 64
	// connsPerCQ is how many connections share completion queues: with the
	// default depths 32 × 64 = 2,048 entries for receives and 32 × 128 = 4,096 for
	// sends. Few queues keep polling cheap, bounded ones cannot overflow.
	connsPerCQ = 32
	// starvedRetry is how soon a connection that found the pool exhausted tries
	// again.
	starvedRetry = time.Millisecond
	// pollDeviceMin and pollDeviceMax bound how long a loop sleeps that has a
	// device without a descriptor to wait on: it looks again after 20 µs, and twice
	// as late each time it found nothing, so that an idle link costs a thousand
	// wake-ups a second and not a CPU.
	pollDeviceMin = 20 * time.Microsecond
	pollDeviceMax = time.Millisecond
	// reapAfter is how long completions of sends gather that nobody waits for. A loop
	// that sleeps takes them when something else wakes it, at the latest after
	// reapAsleep.
	reapAfter  = 20 * time.Microsecond
	reapAsleep = 100 * time.Millisecond
	// patientBytes is how much of a connection may wait for that.
	patientBytes = 64 << 10
	// eventsEvery is in how many polls asynchronous events are looked for once, besides
	// the last before the loop sleeps. Whom they concern learns it from completions, too.
	eventsEvery = 64
)

// Transmitter is what a device implements that can transmit what was posted for
// less than a whole Progress. The loop calls it after it posted, and Progress in
// the next duty cycle.
type Transmitter interface {
	// Transmit sends what was posted, as far as window and link take it. now is as
	// for Progress. It returns how many packets were sent.
	Transmit(now int64) (work int)
	// Deadline is what Progress would return now, behind what was sent since.
	Deadline(now int64) int64
}

// EventLoop is the RdmaEventLoop: the netpoll.Backend of messages over RC queue
// pairs. See protocol.go for the wire, bootstrap for how connections are set up.
type EventLoop struct {
	opts   EventLoopOptions
	fabric Fabric
	id     uint64 // of this event loop within the process
	loop   *netpoll.Loop

	// The loop's goroutine.
	active   []*device        // with at least one connection
	dirty    []*conn          // something to post
	held     []*conn          // of these, those that holdGrants set aside
	before   bool             // the last poll was one before a sleep, and found something
	ready    []*conn          // something to deliver, to post again or to report
	later    []*conn          // of these, to be granted receives behind the flush
	starved  []*conn          // wait for pool memory
	leaving  []*conn          // peer gone or device broken
	holders  []*conn          // have more than one credit
	yieldAt  int64            // when to look whether holders use them
	receives int              // posted now
	awaiting []*conn          // posted sends that have not completed
	reapAt   int64            // when to look for those; 0: there are none
	stalled  bool             // one of them can post no more until they complete
	waited   bool             // their completions end the loop's sleep
	unpolled bool             // a flush was a Progress that calls for a poll
	shown    int              // receives, as Stats has it
	spare    []*hugepages.Buf // left by handlers, for the receives of the connection at hand
	lone     uint64           // messages sent in lanes
	// spareKept is how many of spare wait for the next message in a lane, whose lines are
	// then still in the cache: 0 before the first, then 1.
	spareKept int
	handed    [1]netpoll.Message
	handedTo  *conn  // of Hand
	answered  uint64 // lone when the last of those was delivered
	onlyLone  bool   // the last poll found one, and did nothing but what it asked for
	retryAt   int64
	deadline  int64         // of the devices' last Progress
	backoff   time.Duration // of devices without descriptor
	polls     uint64
	drained   bool // the last poll emptied every completion queue
	closed    bool
	wcs       [pollList]WC // of reap
	sendWCs   [pollList]WC // of reapSends
	events    [16]Event
	sendWRs   [sendList]SendWR

	// The control path.
	ctx     context.Context // ends when the event loop closes
	cancel  context.CancelFunc
	setups  sync.WaitGroup
	mu      sync.Mutex
	entries map[deviceKey]*device
	devices map[*device]struct{}
	dialing map[string]*dialTurn // by address, while somebody dials; see lockAddress

	stats counters
}

type counters struct {
	doorbells, creditMessages, copiedMessages, copiedBytes, packedMessages, paddedBytes, starved, receivePosts, yields, yieldedReceives, fallbacks, refused, lone atomic.Uint64
	receives, registered                                                                                                                                          atomic.Int64
}

// Stats of an EventLoop since it was made.
type Stats struct {
	Doorbells      uint64 // lists of sends posted
	CreditMessages uint64 // control messages that granted credits alone
	Yields         uint64 // messages of this end that gave credits back after idling
	Yielded        uint64 // receives that idle peers gave back
	ReceivePosts   uint64 // lists of receives posted
	LoneMessages   uint64 // sent past the work queue, into memory shared with the peer; may lag
	Receives       int64  // receive buffers posted now
	ReceiveBytes   int64  // their payload bytes
	Registered     int64  // bytes of memory registered with devices; adapters and the kernel's Soft-RoCE keep it pinned
	CopiedMessages uint64 // sends copied because the device has not registered their memory
	CopiedBytes    uint64
	PackedMessages uint64 // small sends that went together with others, copied
	PaddedBytes    uint64 // behind them, for trains of packets
	Fallbacks      uint64 // connections that stayed on TCP
	Refused        uint64 // of those that came to listeners, never opened
	Starved        uint64 // receives that could not be posted again at once: the pool was exhausted
}

var loopIDs atomic.Uint64

// NewEventLoop makes an event loop for one netpoll.Loop. It owns fabric.
func NewEventLoop(fabric Fabric, o EventLoopOptions) *EventLoop {
	if o.Scheme == "" {
		o.Scheme = "rdma"
	}
	if o.DeviceParam == "" {
		o.DeviceParam = "device"
	}
	setDefault(&o.Receives, defaultReceives)
	setDefault(&o.ReceiveBytes, defaultReceiveBytes)
	setDefault(&o.SendWRs, defaultSendWRs)
	setDefault(&o.SharedReceives, defaultShared)
	ctx, cancel := context.WithCancel(context.Background())
	return &EventLoop{
		opts: o, fabric: fabric, id: loopIDs.Add(1), ctx: ctx, cancel: cancel, backoff: pollDeviceMin,
		entries: map[deviceKey]*device{}, devices: map[*device]struct{}{}, dialing: map[string]*dialTurn{},
	}
}

func setDefault(v *int, d int) {
	if *v == 0 {
		*v = d
	}
}

// Scheme implements netpoll.Backend.
func (el *EventLoop) Scheme() string { return el.opts.Scheme }

// Stats returns the counters. Any goroutine.
func (el *EventLoop) Stats() Stats {
	s := &el.stats
	return Stats{
		Doorbells: s.doorbells.Load(), CreditMessages: s.creditMessages.Load(), CopiedMessages: s.copiedMessages.Load(),
		CopiedBytes: s.copiedBytes.Load(), PackedMessages: s.packedMessages.Load(), PaddedBytes: s.paddedBytes.Load(), Starved: s.starved.Load(), Fallbacks: s.fallbacks.Load(), Refused: s.refused.Load(), Yields: s.yields.Load(), Yielded: s.yieldedReceives.Load(),
		LoneMessages: s.lone.Load(), ReceivePosts: s.receivePosts.Load(), Receives: s.receives.Load(), ReceiveBytes: s.receives.Load() * int64(el.opts.ReceiveBytes),
		Registered: s.registered.Load(),
	}
}

// Attach implements netpoll.Poller.
func (el *EventLoop) Attach(l *netpoll.Loop) error {
	o := &el.opts
	for _, f := range []struct {
		name             string
		value, low, high int
	}{
		{"Receives", o.Receives, minReceives, bootstrap.MaxCredits},
		{"ReceiveBytes", o.ReceiveBytes, bootstrap.MinReceiveBytes, bootstrap.MaxReceiveBytes},
		{"SharedReceives", o.SharedReceives, minReceives, maxShared},
		{"SendWRs", o.SendWRs, 1, 1 << 16},
	} {
		if f.value < f.low || f.value > f.high {
			return fmt.Errorf("rdma: EventLoopOptions.%s is %d; give %d to %d", f.name, f.value, f.low, f.high)
		}
	}
	el.loop = l
	return nil
}

// Poll implements netpoll.Poller. What handlers send in it is on the wire when it
// returns.
func (el *EventLoop) Poll(budget int) int {
	if len(el.active) == 0 {
		return 0
	}
	return el.poll(budget, false)
}

// poll is Poll; last: before the loop sleeps.
func (el *EventLoop) poll(budget int, last bool) int {
	el.polls++
	el.unpolled = false
	now := el.loop.Now()
	work := 0
	if el.onlyLone = false; el.lone != el.answered {
		if work = el.pollLone(now); work > 0 && !last && el.polls%loneEvery != 0 && el.nothingElse(now) {
			el.onlyLone = true
			return work
		}
	}
	el.deadline = 0
	for _, d := range el.active {
		n, deadline := d.dev.Progress(now)
		if work += n; n == 0 {
			d.quietAt = el.polls
		}
		if deadline != 0 && (el.deadline == 0 || deadline < el.deadline) {
			el.deadline = deadline
		}
		if last || el.polls%eventsEvery == 0 {
			work += el.takeEvents(d)
		}
	}
	work += el.reap(budget)
	if el.stalled || len(el.leaving) > 0 || len(el.starved) > 0 {
		work += el.reapSends()
	}
	if len(el.starved) > 0 && now >= el.retryAt {
		el.feedStarved()
	}
	work += el.settleReady()
	if len(el.holders) > 0 && now >= el.yieldAt {
		el.yieldIdle(now)
	}
	if len(el.leaving) > 0 && el.drained {
		el.endLeaving()
	}
	if work > 0 || el.before {
		el.holdGrants()
	}
	el.before = last && work > 0
	el.flush()
	// Behind what handlers sent.
	if el.reapAt != 0 && (now >= el.reapAt || last) && el.reapSends() > 0 {
		work += el.settleReady()
		el.flush()
	}
	el.releaseGrants()
	if work > 0 {
		el.backoff = pollDeviceMin
	}
	if el.receives != el.shown {
		el.shown = el.receives
		el.stats.receives.Store(int64(el.receives))
	}
	if el.lone != el.stats.lone.Load() && (last || el.polls%eventsEvery == 0) {
		el.stats.lone.Store(el.lone)
	}
	return work
}

// settleReady does what completions ask for.
func (el *EventLoop) settleReady() (work int) {
	if len(el.ready) == 0 {
		return 0
	}
	for i := 0; i < len(el.ready); i++ {
		if c := el.ready[i]; !c.shut {
			work += c.settle()
		}
		el.ready[i] = nil
	}
	el.ready = el.ready[:0]
	if len(el.later) > 0 {
		el.flush()
		for i, c := range el.later {
			if !c.shut {
				c.topUp()
			}
			el.later[i] = nil
		}
		el.later = el.later[:0]
	}
	el.releaseSpare()
	return work
}

// takeEvents handles what happened to d outside of any completion queue.
func (el *EventLoop) takeEvents(d *device) int {
	n := d.dev.PollEvents(el.events[:])
	for _, e := range el.events[:n] {
		switch e.Kind {
		case EventQPFatal:
			if c := d.lookup(e.QPN); c != nil && e.Status != Success {
				c.setBroken(fmt.Errorf("%v%s", e.Status, c.likelyCause(e.Status)))
			} else if c != nil {
				c.setBroken(errors.New(e.Kind.String())) // a completion may tell more
			}
		case EventDeviceFatal:
			el.loop.Logger().Error("device failed; its connections close", "device", d.attr.Name)
			for _, c := range d.conns {
				c.setBroken(errors.New(e.Kind.String()))
			}
		case EventPortDown, EventPortUp:
			el.loop.Logger().Warn(e.Kind.String(), "device", d.attr.Name)
		}
	}
	return n
}

// feedStarved gives connections that found the pool exhausted another try.
func (el *EventLoop) feedStarved() {
	waiting := el.starved
	el.starved = nil
	for _, c := range waiting {
		c.starved = false
		if !c.shut {
			c.setReady()
			c.setDirty()
		}
	}
}

// endLeaving closes connections whose end was announced before this poll, and
// so before the completion queues were drained.
func (el *EventLoop) endLeaving() {
	list := el.leaving
	el.leaving = nil
	for _, c := range list {
		if c.since >= el.polls || !c.arrived() || !c.end() {
			el.leaving = append(el.leaving, c)
		}
	}
}

// flush posts what connections have to send, and transmits it.
func (el *EventLoop) flush() {
	if len(el.dirty) == 0 {
		return
	}
	for i := 0; i < len(el.dirty); i++ {
		c := el.dirty[i]
		el.dirty[i] = nil
		c.dirty, c.held = false, false
		if c.shut || c.segmentBytes == 0 {
			continue
		}
		if c.rq.failed != nil {
			c.setBroken(c.rq.failed)
		}
		for c.post() == sendList {
		}
	}
	el.dirty = el.dirty[:0]
	now := el.loop.Now()
	for _, d := range el.active {
		if !d.posted {
			continue
		}
		d.posted = false
		if d.transmitter != nil {
			d.transmitter.Transmit(now)
		} else if n, at := d.dev.Progress(now); n > 0 || at != 0 {
			el.unpolled = true
		}
	}
}

// Arm implements netpoll.Poller.
func (el *EventLoop) Arm() (int64, bool) {
	if len(el.active) == 0 {
		return 0, true
	}
	patient := el.patient()
	el.waited = !patient
	blind := false
	for _, d := range el.active {
		blind = blind || d.fd < 0
		for _, g := range d.groups {
			if g.conns == 0 {
				continue
			}
			err := g.recv.Arm()
			if err == nil && !patient {
				err = g.send.Arm()
			}
			if err != nil {
				el.loop.Logger().Error("completion queue cannot be armed; the loop goes on polling", "device", d.attr.Name, "err", err)
				return 0, false
			}
		}
	}
	if el.poll(pollList, true) > 0 || len(el.dirty) > 0 || len(el.ready) > 0 || el.stalled && patient {
		return 0, false
	}
	deadline := el.deadline
	if len(el.awaiting) > 0 && patient {
		deadline = earlier(deadline, el.loop.Now()+int64(reapAsleep))
	}
	if len(el.starved) > 0 {
		deadline = earlier(deadline, el.retryAt)
	}
	if len(el.holders) > 0 {
		deadline = earlier(deadline, el.yieldAt)
	}
	if blind {
		deadline = earlier(deadline, el.loop.Clock()+int64(el.backoff))
		el.backoff = min(2*el.backoff, pollDeviceMax)
	}
	if len(el.leaving) > 0 && el.leaving[len(el.leaving)-1].since >= el.polls {
		return 0, false
	}
	return deadline, true
}

// Lent implements netpoll.Lender. The queues stay armed, and what completes meanwhile is
// found as if the loop had sent.
func (el *EventLoop) Lent() (deadline int64, idle bool) {
	if len(el.dirty) > 0 || len(el.ready) > 0 || el.unpolled || el.stalled || !el.waited && !el.patient() ||
		len(el.leaving) > 0 && el.leaving[len(el.leaving)-1].since >= el.polls {
		return 0, false
	}
	now := el.loop.Now()
	if len(el.awaiting) > 0 && !el.waited {
		deadline = now + int64(reapAsleep)
	}
	if len(el.starved) > 0 {
		deadline = earlier(deadline, el.retryAt)
	}
	for _, d := range el.active {
		if d.transmitter != nil {
			if at := d.transmitter.Deadline(now); at != 0 {
				deadline = earlier(deadline, at)
			}
		}
	}
	return deadline, true
}

func earlier(a, b int64) int64 {
	if a == 0 || b < a {
		return max(1, b)
	}
	return a
}

// Close implements netpoll.Poller.
func (el *EventLoop) Close() error {
	el.closed = true
	el.mu.Lock() // see begin
	el.cancel()
	el.mu.Unlock()
	el.setups.Wait()
	for len(el.active) > 0 {
		for _, c := range el.active[0].conns {
			if c.ep != nil {
				c.ep.Closed(netpoll.ErrLoopClosed)
			} else {
				c.Shut()
			}
			break // the last Shut takes the device off the list
		}
	}
	el.setups.Wait() // farewells of those, and devices that were dropped
	var err error
	el.stats.registered.Store(0)
	for d := range el.devices {
		err = errors.Join(err, d.closeQueues(), el.fabric.Drop(d.dev))
	}
	return errors.Join(err, el.fabric.Close())
}
