package netpoll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/internal/ticks"
)

// Options configure a Loop. The zero value of a field means its default.
type Options struct {
	// Backends are the transports, one per URL scheme. Default: NewTCP().
	Backends []Backend
	// Idle is the idle policy. Default: Balanced().
	Idle IdlePolicy
	// Pool supplies receive and send buffers; loops may share one. Default: a pool
	// of the loop's own over DefaultPoolBytes, freed when Run returns.
	Pool *hugepages.Pool
	// MaxMessageBytes bounds one message in either direction. Default 4 MiB. A
	// peer that announces more is disconnected with ErrProtocol.
	MaxMessageBytes int
	// MaxQueuedBytes and MaxQueuedMessages bound what one connection queues for
	// sending before Send answers ErrBackpressure. Defaults 4 MiB and 16,384.
	MaxQueuedBytes    int
	MaxQueuedMessages int
	// SubmitQueue bounds functions submitted and not yet run; a power of two.
	// Default 4096.
	SubmitQueue int
	// Logger takes what has no connection to report it to. Default slog.Default().
	Logger *slog.Logger
}

// Defaults of Options.
const (
	DefaultPoolBytes       = 64 << 20
	DefaultMaxMessageBytes = 4 << 20
	DefaultMaxQueuedBytes  = 4 << 20
	// DefaultMaxQueuedMessages is the queue bound for small messages.
	DefaultMaxQueuedMessages = 16384
	defaultSubmitQueue       = 4096

	// pollBudget is how many messages a backend may dispatch before the others get
	// their turn; a bound on how long one busy connection delays the rest.
	pollBudget = 256
	// stallNanos is the length of a duty cycle that counts as a stall: a handler
	// blocked, or the thread was off its CPU. 10 ms is the kernel's and the Go
	// scheduler's usual time slice.
	stallNanos = int64(10 * time.Millisecond)
	// yieldNanos is how often a loop that does not sleep lets other goroutines run.
	// Each time costs about as much as a message, or, where a thread has to be woken
	// to look for them, as much as ten.
	yieldNanos = int64(100 * time.Microsecond)
	// rescheduleNanos is how often a loop that sleeps lets the Go scheduler see it. The
	// runtime's monitor takes the P of a goroutine that it did not see scheduled for 10 ms
	// while that is in a system call, and then looks every 20 µs for a while: as many
	// timers as the loop has sleeps.
	rescheduleNanos = int64(5 * time.Millisecond)
	// sharedNanos is how long after its last use by another goroutine a loop on a
	// process's only P reckons with another: longer than most round trips.
	sharedNanos = int64(100 * time.Millisecond)
	// flushRounds is how often in one cycle a connection may be told that it can
	// send again: enough to fill a socket's buffer.
	flushRounds = 4
	// coldNanos is how long a backend must have been quiet, while another was not,
	// to be asked only every coldPollNanos.
	coldNanos     = int64(50 * time.Microsecond)
	coldPollNanos = int64(2 * time.Microsecond)
)

// running is how many loops of this process run.
var running atomic.Int32

// Loop is one event loop. See the package comment.
type Loop struct {
	opts     Options
	backends []backendState
	idle     idler
	pool     *hugepages.Pool
	spare    *hugepages.Buf   // for the next Alloc, or nil
	arena    *hugepages.Arena // the loop's own, or nil
	log      *slog.Logger

	// owner is held by Run but while it is blocked; see Borrow.
	owner   sync.Mutex
	lent    bool  // somebody else runs in the loop's place
	faulty  bool  // a flush met an error meanwhile
	until   int64 // when the loop that is blocked ends that by itself; 0: never
	lentAt  int64 // when it was borrowed last
	lentFor int64 // how soon after that it was last needed; see lentBound

	start  time.Time
	ticks  ticks.Clock // of start; see Clock for others
	now    int64
	timers timerHeap
	queue  *submitQueue
	wake   *waker

	hooks    []func(now int64) (deadline int64)
	hooksDue int64 // earliest deadline of hooks, 0 = none
	hooksOwe bool  // handlers may have run since the hooks did

	conns      map[*Conn]struct{}
	atStop     map[*func()]struct{} // see AtStop
	dirty      []*Conn              // queued something since the last flush
	writable   []*Conn              // owed an OnWritable
	uncounted  []*Conn              // counted something since the last publish
	nextConnID uint64

	mu        sync.Mutex
	listeners map[Listener]struct{}
	draining  bool

	stopping atomic.Bool
	running  atomic.Bool
	done     chan struct{}

	workAt  int64 // start of the last cycle in which a backend found work
	yielded int64 // when other goroutines last had their turn
	resched int64 // when Run's goroutine was last scheduled
	usedAt  int64 // when another goroutine last had something done, by Submit or Borrow
	spareP  bool  // there are more Ps than this loop's
	watch   spinner
	counts  loopCounts
	stats   loopStats
}

// backendState is a backend and what its loop knows of it.
type backendState struct {
	Backend
	watcher      Watcher // nil if it is none
	lender       Lender  // likewise
	workAt       int64   // start of the last cycle in which it found work
	notBefore    int64   // Poll not before
	empty, valid int64
}

// NewLoop makes a loop and attaches its backends. Run runs it.
func NewLoop(o Options) (*Loop, error) {
	if len(o.Backends) == 0 {
		o.Backends = []Backend{NewTCP()}
	}
	if o.Idle.Name == "" {
		o.Idle = Balanced()
	}
	setDefault(&o.MaxMessageBytes, DefaultMaxMessageBytes)
	setDefault(&o.MaxQueuedBytes, DefaultMaxQueuedBytes)
	setDefault(&o.MaxQueuedMessages, DefaultMaxQueuedMessages)
	setDefault(&o.SubmitQueue, defaultSubmitQueue)
	if o.SubmitQueue&(o.SubmitQueue-1) != 0 {
		return nil, fmt.Errorf("netpoll: SubmitQueue %d is not a power of two", o.SubmitQueue)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	l := &Loop{
		opts: o, backends: make([]backendState, len(o.Backends)), idle: newIdler(o.Idle), pool: o.Pool, log: o.Logger,
		start: time.Now(), conns: map[*Conn]struct{}{}, listeners: map[Listener]struct{}{},
		queue: newSubmitQueue(o.SubmitQueue), done: make(chan struct{}),
	}
	if l.pool == nil {
		arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: DefaultPoolBytes})
		if err != nil {
			return nil, fmt.Errorf("netpoll: memory for the loop's own pool: %w", err)
		}
		l.arena, l.pool = arena, hugepages.NewPool(arena)
	}
	l.ticks = ticks.New(l.start)
	var err error
	if l.wake, err = newWaker(l.Clock); err != nil {
		return nil, errors.Join(err, l.freeArena())
	}
	l.stats.polls = make([]pollStats, len(o.Backends))
	for i, b := range o.Backends {
		l.backends[i].Backend = b
		l.backends[i].watcher, _ = b.(Watcher)
		l.backends[i].lender, _ = b.(Lender)
		if err := b.Attach(l); err != nil {
			err = fmt.Errorf("netpoll: backend %s: %w", b.Scheme(), err)
			for _, attached := range o.Backends[:i] {
				err = errors.Join(err, attached.Close())
			}
			return nil, errors.Join(err, l.wake.close(), l.freeArena())
		}
	}
	return l, nil
}

func setDefault(v *int, d int) {
	if *v <= 0 {
		*v = d
	}
}

func (l *Loop) freeArena() error {
	if l.arena == nil {
		return nil
	}
	return l.arena.Close()
}

// Pool is the loop's buffer pool. Any goroutine.
func (l *Loop) Pool() *hugepages.Pool { return l.pool }

// Logger is the loop's logger. Any goroutine.
func (l *Loop) Logger() *slog.Logger { return l.log }

// MaxMessageBytes is the bound on one message. Any goroutine.
func (l *Loop) MaxMessageBytes() int { return l.opts.MaxMessageBytes }

// Now is the time of the current duty cycle, or of the Borrow: monotonic nanoseconds
// since the loop was made. Loop's goroutine.
func (l *Loop) Now() int64 { return l.now }

// Clock reads the clock that Now caches. Any goroutine.
func (l *Loop) Clock() int64 { return int64(time.Since(l.start)) }

// Precise is Clock in a third of its time, for handlers and for hooks.
func (l *Loop) Precise() int64 { return l.ticks.Read() }

// Recycle takes the reference to b, which has been sent, as Release does: the next
// Alloc has the buffer without a way through the pool. Backends only.
func (l *Loop) Recycle(b *hugepages.Buf) {
	if l.spare == nil && !l.lent && b.Refs() == 1 && b.Of(l.pool) && b.Purpose() == hugepages.Send {
		l.spare = b
	} else {
		b.Release()
	}
}

// dropSpare gives back what Recycle kept: a loop at rest holds no memory.
func (l *Loop) dropSpare() {
	if l.spare != nil {
		l.spare.Release()
		l.spare = nil
	}
}

// Submit runs fn on the loop's goroutine, in submission order. Any goroutine.
// ErrBackpressure if the queue is full, ErrLoopClosed after the loop stopped; fn
// was then not and will not be run. Functions still queued when the loop stops
// are run before Run returns.
func (l *Loop) Submit(fn func()) error {
	if err := l.queue.push(fn); err != nil {
		return err
	}
	l.wake.notify()
	return nil
}

// Do runs fn on the loop's goroutine and waits for it; a full queue is waited
// for. It must not be called on the loop's goroutine.
func (l *Loop) Do(fn func()) error {
	ran := make(chan struct{})
	wrapped := func() { defer close(ran); fn() }
	for {
		err := l.Submit(wrapped)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrBackpressure) {
			return err
		}
		time.Sleep(50 * time.Microsecond)
	}
	<-ran
	return nil
}

// WatchFD makes readability of fd end the loop's sleep. Backends only.
func (l *Loop) WatchFD(fd int) error { return l.wake.watch(fd) }

// UnwatchFD undoes WatchFD; call it before fd is closed.
func (l *Loop) UnwatchFD(fd int) error { return l.wake.unwatch(fd) }

// AtCycleEnd makes the loop call fn at the end of every duty cycle in which
// handlers may have run, after them and before what they sent is flushed: the
// place to close what a cycle's messages filled, a batch for instance. fn returns the Now
// value at which it must be called even without work, 0 for none. Loop's
// goroutine, or before Run.
func (l *Loop) AtCycleEnd(fn func(now int64) (deadline int64)) { l.hooks = append(l.hooks, fn) }

func (l *Loop) runHooks() {
	l.hooksDue, l.hooksOwe = 0, false
	for _, fn := range l.hooks {
		if d := fn(l.now); d != 0 && (l.hooksDue == 0 || d < l.hooksDue) {
			l.hooksDue = max(1, d)
		}
	}
}

// oweHooks notes that a handler runs that the hooks of this cycle may not have seen.
func (l *Loop) oweHooks() { l.hooksOwe = len(l.hooks) > 0 }

func (l *Loop) backend(rawURL string) (Backend, *url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, nil, fmt.Errorf("netpoll: address %q: %w", rawURL, err)
	}
	names := make([]string, 0, len(l.backends))
	for i := range l.backends {
		b := l.backends[i].Backend
		if b.Scheme() == u.Scheme {
			return b, u, nil
		}
		names = append(names, b.Scheme()+"://")
	}
	return nil, nil, fmt.Errorf("netpoll: address %q: no backend for it in this loop; it has %s (an address looks like tcp://127.0.0.1:7000)",
		rawURL, strings.Join(names, ", "))
}

// Listen accepts connections at rawURL for h. Port 0 picks a free one; see
// Listener.URL. Any goroutine but the loop's.
func (l *Loop) Listen(rawURL string, h Handler) (Listener, error) {
	b, u, err := l.backend(rawURL)
	if err != nil {
		return nil, err
	}
	ln, err := b.Listen(u, h)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.listeners[ln] = struct{}{}
	draining := l.draining
	l.mu.Unlock()
	if draining || l.stopping.Load() {
		_ = ln.Close()
		return nil, ErrLoopClosed
	}
	return ln, nil
}

// Dial connects to rawURL and waits until the connection is open or ctx ends.
// The loop must be running. Any goroutine but the loop's.
func (l *Loop) Dial(ctx context.Context, rawURL string, h Handler) (*Conn, error) {
	b, u, err := l.backend(rawURL)
	if err != nil {
		return nil, err
	}
	type result struct {
		c   *Conn
		err error
	}
	ch := make(chan result, 1)
	var abandoned atomic.Bool
	b.Dial(u, h, func(c *Conn, err error) {
		if c != nil && abandoned.Load() {
			c.Close(context.Canceled)
		}
		ch <- result{c, err}
	})
	select {
	case r := <-ch:
		return r.c, r.err
	case <-l.done:
		return nil, ErrLoopClosed
	case <-ctx.Done():
		abandoned.Store(true)
		return nil, fmt.Errorf("netpoll: dial %s: %w", rawURL, ctx.Err())
	}
}

// DialAsync connects to rawURL; done runs on the loop's goroutine, after
// Handler.OnOpen on success. Any goroutine.
func (l *Loop) DialAsync(rawURL string, h Handler, done func(*Conn, error)) {
	b, u, err := l.backend(rawURL)
	if err != nil {
		if l.Submit(func() { done(nil, err) }) != nil {
			l.log.Error("dial failed and its caller cannot be told", "url", rawURL, "err", err)
		}
		return
	}
	b.Dial(u, h, done)
}

// Run runs the loop on the calling goroutine until Stop or Shutdown. It returns
// after all connections are closed and the backends freed. Once only.
func (l *Loop) Run() error {
	if !l.running.CompareAndSwap(false, true) {
		return errors.New("netpoll: Run called twice")
	}
	defer close(l.done)
	l.owner.Lock()
	defer l.owner.Unlock()
	l.now = l.ticks.Read()
	l.yielded, l.usedAt = l.now, l.now
	l.spareP = runtime.GOMAXPROCS(0) > 1
	running.Add(1)
	defer running.Add(-1)
	for !l.stopping.Load() {
		work := l.cycle()
		end := l.ticks.Read()
		l.counts.cycles++
		if work > 0 {
			l.countBusy(end)
			l.idle.worked(l.now, end)
		}
		l.now = end
		if work > 0 && !l.spareP && (end-l.usedAt < sharedNanos || running.Load() > 1) || end-l.yielded >= yieldNanos || work > 0 && end-l.resched >= rescheduleNanos {
			l.yield()
		}
		if until := l.idle.napUntil(work); until > l.now {
			l.nap(until)
		} else if (work == 0 || l.idle.sparse()) && l.idle.mayPark(l.now) {
			// With few messages the look that park takes is enough. With many, an empty
			// cycle before it lets more gather.
			l.park()
		} else if work == 0 || work == 1 && !l.leftOver() && !l.idle.mayPark(l.now) {
			l.spin(work > 0)
		}
	}
	return l.finish()
}

// leftOver tells that the loop's handlers left something to the next cycle.
func (l *Loop) leftOver() bool { return l.hooksOwe || len(l.dirty) > 0 || len(l.writable) > 0 }

// yield lets other goroutines run: the bootstrap, signal handling, metrics. On the
// only P of a process it follows each cycle that found work, as long as others send
// through the loop, so that they add to what it sends together, or there are other
// loops, which may be the peers that it waits for; they would otherwise wait for
// yieldNanos, or until the loop sleeps. Where one loop's handlers alone send, it would be
// a twentieth of a round trip, and in an emulator more.
func (l *Loop) yield() {
	if l.now-l.yielded >= yieldNanos {
		l.publish()
	}
	runtime.Gosched()
	l.now = l.ticks.Read()
	l.yielded, l.resched = l.now, l.now
}

// cycle is one duty cycle.
func (l *Loop) cycle() int {
	work := l.queue.run(pollBudget)
	if work > 0 {
		l.usedAt = l.now
	}
	work += l.timers.run(l.now)
	for i := range l.backends {
		b := &l.backends[i]
		if l.now < b.notBefore {
			continue
		}
		n := b.Poll(pollBudget)
		if n > 0 {
			work += n
			l.foundWork(b)
			continue
		}
		b.empty++
		// While another backend is hot, one that has been quiet shall not slow it
		// down: asking it may take a system call.
		if l.now-l.workAt <= coldNanos && l.now-b.workAt > coldNanos {
			b.notBefore = l.now + coldPollNanos
		}
	}
	if work > 0 || l.hooksOwe || l.hooksDue != 0 && l.now >= l.hooksDue {
		l.runHooks()
	}
	l.flush()
	return work
}

func (l *Loop) foundWork(b *backendState) {
	b.valid++
	b.workAt, l.workAt = l.now, l.now
}

// flush sends what handlers queued, and tells those that may send again. One that
// always has more to send must not keep the others waiting: after a few rounds the
// next cycle goes on.
func (l *Loop) flush() {
	for round := 0; round < flushRounds && (len(l.dirty) > 0 || len(l.writable) > 0); round++ {
		for i := 0; i < len(l.dirty); i++ {
			c := l.dirty[i]
			l.dirty[i] = nil
			c.dirty = false
			if c.state != connClosed {
				c.wire.Flush()
			}
		}
		l.dirty = l.dirty[:0]
		// OnWritable may send, be refused and be owed another call: only those of
		// this round are told, the rest wait for the next cycle.
		n := len(l.writable)
		for i := 0; i < n; i++ {
			if c := l.writable[i]; c.state == connOpen {
				l.oweHooks()
				c.handler.OnWritable(c)
			}
		}
		if n > 0 {
			rest := copy(l.writable, l.writable[n:])
			clear(l.writable[rest:])
			l.writable = l.writable[:rest]
		}
	}
}

// nextDeadline is when the loop must run for its own timers and hooks, 0 for
// never.
func (l *Loop) nextDeadline() int64 {
	return earlier(l.timers.next(), l.hooksDue)
}

// earlier is the earlier of two times of which 0 means never.
func earlier(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// nap lets work gather until then, or until a timer is due.
func (l *Loop) nap(until int64) {
	if l.leftOver() {
		return
	}
	if d := l.nextDeadline(); d != 0 {
		until = min(until, d)
	}
	if until <= l.now {
		return
	}
	l.counts.naps++
	l.publish()
	slept := l.now
	l.wake.nap(time.Duration(until - l.now))
	l.woke(slept)
}

// park blocks until there is something to do. The order is what prevents a lost
// wake-up: arm every backend (each looks once more), announce the sleep, look at
// the submission queue once more, block.
func (l *Loop) park() {
	if l.hooksOwe {
		return
	}
	deadline := l.nextDeadline()
	for i := range l.backends {
		b := &l.backends[i]
		d, idle := b.Arm()
		if !idle { // looking once more, it may have run handlers
			l.oweHooks()
			l.foundWork(b)
			l.idle.worked(l.now, l.now)
			return
		}
		deadline = earlier(deadline, d)
	}
	l.until = earlier(deadline, l.lentBound())
	l.wake.announce()
	if l.queue.len() > 0 || l.stopping.Load() || len(l.dirty) > 0 || len(l.writable) > 0 {
		l.wake.cancel()
		return
	}
	timeout := time.Duration(-1)
	if l.until != 0 {
		timeout = time.Duration(max(0, l.until-l.Clock()))
	}
	l.dropSpare()
	l.counts.parks++
	l.publish()
	slept := l.now
	l.owner.Unlock()
	late, err := l.wake.block(timeout)
	l.owner.Lock()
	if err != nil {
		l.log.Error("event loop cannot block; it goes on polling", "err", err)
	}
	if late > 0 {
		l.idle.learnWake(late)
	}
	l.idle.slept = true
	l.woke(slept)
}

// woke is the end of a sleep that began at slept.
func (l *Loop) woke(slept int64) {
	l.now = l.ticks.Read()
	l.counts.asleep += l.now - slept
	if l.spareP { // others had their turn on it
		l.yielded = l.now
	}
	for i := range l.backends {
		l.backends[i].notBefore = 0
	}
}

func (l *Loop) forget(c *Conn) {
	if _, ok := l.conns[c]; ok {
		delete(l.conns, c)
		l.stats.conns.Add(-1)
	}
}

func (l *Loop) closeListeners() error {
	l.mu.Lock()
	l.draining = true
	lns := l.listeners
	l.listeners = map[Listener]struct{}{}
	l.mu.Unlock()
	var err error
	for ln := range lns {
		err = errors.Join(err, ln.Close())
	}
	return err
}

// finish closes everything after the last cycle.
func (l *Loop) finish() error {
	err := l.closeListeners()
	for c := range l.conns {
		c.Close(ErrLoopClosed)
	}
	for fn := range l.atStop {
		(*fn)()
	}
	for i := range l.backends {
		err = errors.Join(err, l.backends[i].Close())
	}
	l.publish()
	l.queue.close()
	for l.queue.run(pollBudget) > 0 {
	}
	for c := range l.conns { // opened by a function that was still queued
		c.Close(ErrLoopClosed)
	}
	return errors.Join(err, l.wake.close(), l.freeArena())
}

// Stop ends the loop at the end of its duty cycle: connections close with
// ErrLoopClosed and their queued messages are dropped. It does not wait. Any
// goroutine.
func (l *Loop) Stop() {
	if l.stopping.CompareAndSwap(false, true) {
		l.wake.notify()
	}
}

// Done is closed when Run has returned.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Shutdown closes the listeners, drains every connection until ctx ends, stops
// the loop and waits for it. Connections that did not drain in time close with
// ErrDrainTimeout. Any goroutine but the loop's.
func (l *Loop) Shutdown(ctx context.Context) error {
	err := l.closeListeners()
	deadline := l.Clock() + int64(time.Hour)
	if d, ok := ctx.Deadline(); ok {
		deadline = l.Clock() + int64(time.Until(d))
	}
	var check func()
	check = func() {
		if len(l.conns) == 0 || l.now >= deadline {
			l.Stop()
			return
		}
		l.At(l.now+int64(time.Millisecond), check)
	}
	serr := l.Submit(func() {
		for c := range l.conns {
			c.Drain(deadline)
		}
		check()
	})
	if serr != nil {
		l.Stop()
	}
	if !l.running.Load() {
		return errors.Join(err, errors.New("netpoll: Shutdown of a loop that is not running"))
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		l.Stop()
		<-l.done
	}
	return err
}
