package broker

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// manual is a Scheduler whose time stands still until advance.
type manual struct {
	mu     sync.Mutex
	queue  []func()
	arrive chan struct{} // of 1
	closed bool

	now    time.Duration
	timers []*manualTimer
	after  func() // each function
}

type manualTimer struct {
	at time.Duration
	fn func()
}

func (m *manual) Submit(fn func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return netpoll.ErrLoopClosed
	}
	m.queue = append(m.queue, fn)
	select {
	case m.arrive <- struct{}{}:
	default:
	}
	return nil
}

func (m *manual) After(d time.Duration, fn func()) (stop func()) {
	t := &manualTimer{m.now + d, fn}
	m.timers = append(m.timers, t)
	return func() { t.fn = nil }
}

// run runs what was submitted.
func (m *manual) run() {
	m.mu.Lock()
	fns := m.queue
	m.queue = nil
	m.mu.Unlock()
	for _, fn := range fns {
		fn()
		m.after()
	}
}

// advance lets d pass, and runs the timers due in their order.
func (m *manual) advance(d time.Duration) {
	end := m.now + d
	for {
		m.run()
		first := -1
		for i, t := range m.timers {
			if t.at <= end && (first < 0 || t.at < m.timers[first].at) {
				first = i
			}
		}
		if first < 0 {
			break
		}
		t := m.timers[first]
		m.timers = append(m.timers[:first], m.timers[first+1:]...)
		m.now = max(m.now, t.at)
		if fn := t.fn; fn != nil {
			fn()
			m.after()
		}
	}
	m.now = end
}

// rig is a Core without a network, on a data directory of its own.
type rig struct {
	t     testing.TB
	pool  *hugepages.Pool
	store *seglog.Store
	sched *manual
	core  *Core
	peers []*fakePeer
	ended bool
}

var quietLogger = slog.New(slog.DiscardHandler)

func newRig(t testing.TB, poolBytes int, cfg CoreConfig, logs seglog.Options) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir(), testPool(t, poolBytes), cfg, logs)
}

func newRigIn(t testing.TB, dir string, pool *hugepages.Pool, cfg CoreConfig, logs seglog.Options) *rig {
	t.Helper()
	r := &rig{t: t, pool: pool, sched: &manual{arrive: make(chan struct{}, 1)}}
	logs.Logger = quietLogger
	var err error
	if r.store, err = seglog.Open(dir, logs); err != nil {
		t.Fatal(err)
	}
	cfg.Store, cfg.Pool, cfg.Scheduler, cfg.Logger = r.store, r.pool, r.sched, quietLogger
	defaultTo(&cfg.MaxFrameBytes, 64<<10)
	if r.core, err = NewCore(cfg); err != nil {
		t.Fatal(err)
	}
	r.sched.after = r.core.Commit
	t.Cleanup(r.end)
	return r
}

func testPool(t testing.TB, bytes int) *hugepages.Pool {
	t.Helper()
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: bytes, Backing: hugepages.Ordinary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := arena.Close(); err != nil {
			t.Errorf("buffers leaked: %v", err)
		}
	})
	return hugepages.NewPool(arena)
}

// end stops the core as a Server does whose time is up, and looks for leaks.
func (r *rig) end() {
	if r.ended {
		return
	}
	r.ended = true
	for _, p := range r.peers {
		p.disconnect()
	}
	r.sched.mu.Lock()
	r.sched.closed = true
	r.sched.mu.Unlock()
	r.sched.run()
	r.core.Close()
	if err := r.store.Close(); err != nil && !r.t.Failed() {
		r.t.Log("store:", err)
	}
	if n := r.pool.Outstanding(); n != 0 {
		r.t.Errorf("%d buffers leaked", n)
	}
	if r.core.waiting != 0 || len(r.core.blocked) != 0 {
		r.t.Errorf("%d fetches and %d blocked sessions are left", r.core.waiting, len(r.core.blocked))
	}
}

// committed waits until the committers have nothing under way.
func (r *rig) committed() {
	r.core.Commit()
	for r.sched.run(); r.core.inFlight > 0; r.sched.run() {
		<-r.sched.arrive
	}
}

// fakePeer is a connection to a session; what is sent waits until it is taken.
type fakePeer struct {
	pool    *hugepages.Pool
	session *Session
	room    int // messages that it queues
	queue   []*hugepages.Buf
	taken   uint64
	refused bool // a Send was
	reading bool
	reason  error // of Close
	gone    bool
}

// connect opens a session and greets, unless role is 0.
func (r *rig) connect(role wire.Role) *fakePeer {
	p := openPeer(r.pool, r.core.Open)
	r.peers = append(r.peers, p)
	if role != 0 {
		p.greet(r.t, role)
	}
	return p
}

func openPeer(pool *hugepages.Pool, open func(Peer) *Session) *fakePeer {
	p := &fakePeer{pool: pool, room: 1 << 20, reading: true}
	p.session = open(p)
	return p
}

func (p *fakePeer) greet(t testing.TB, role wire.Role) {
	t.Helper()
	p.deliver(hello(role))
	if got := p.take(); len(got) != 1 || wire.Kind(got[0][0]) != wire.KindHello {
		t.Fatalf("a Hello was answered with %q", got)
	}
}

func hello(role wire.Role) []byte {
	return wire.AppendHello(nil, wire.Hello{Version: wire.Version, Role: role, MaxFrameBytes: 64 << 10})
}

func (p *fakePeer) Send(b *hugepages.Buf) error {
	switch {
	case p.reason != nil:
		return netpoll.ErrClosed
	case len(p.queue) >= p.room:
		p.refused = true
		return netpoll.ErrBackpressure
	}
	p.queue = append(p.queue, b)
	return nil
}

func (p *fakePeer) SetReading(on bool) { p.reading = on }

// Close ends the connection as netpoll does: what is queued still leaves, and if
// that is at once, the session hears of it from within.
func (p *fakePeer) Close(reason error) {
	if p.reason == nil {
		p.reason = reason
		p.end()
	}
}

func (p *fakePeer) Progress() (queued int, sent uint64) { return len(p.queue), p.taken }

// take reads all answers and lets further ones come.
func (p *fakePeer) take() (frames [][]byte) {
	for len(p.queue) > 0 {
		queue := p.queue
		p.queue = nil
		for _, b := range queue {
			frames = append(frames, bytes.Clone(b.Bytes()))
			b.Release()
			p.taken++
		}
		if p.refused && !p.gone {
			p.refused = false
			p.session.Writable()
		}
	}
	return frames
}

// disconnect ends the connection at once.
func (p *fakePeer) disconnect() {
	p.reason = netpoll.ErrClosed
	p.end()
	for _, b := range p.queue {
		b.Release()
	}
	p.queue = nil
}

func (p *fakePeer) end() {
	if !p.gone {
		p.gone = true
		p.session.Close()
	}
}

// deliver hands frames over as one read does: they share a buffer.
func (p *fakePeer) deliver(frames ...[]byte) {
	all := bytes.Join(frames, nil)
	b, err := p.pool.Get(len(all), hugepages.Receive)
	if err != nil {
		return
	}
	copy(b.Bytes(), all)
	at := 0
	for _, f := range frames {
		m := netpoll.Message{Segment: netpoll.Segment{Data: b.Bytes()[at : at+len(f) : at+len(f)], Buf: b.Retain()}}
		at += len(f)
		p.session.Request(&m)
		m.Release()
	}
	b.Release()
}

// deliverChain hands frame over in pieces, as RDMA does.
func (p *fakePeer) deliverChain(frame []byte, piece int) error {
	var m netpoll.Message
	for n := 0; len(frame) > 0; n++ {
		b, err := p.pool.Get(min(piece, len(frame)), hugepages.Receive)
		if err != nil {
			if n > 0 {
				m.Release()
			}
			return err
		}
		s := netpoll.Segment{Data: b.Bytes(), Buf: b}
		frame = frame[copy(b.Bytes(), frame):]
		if n == 0 {
			m.Segment = s
		} else {
			m.Rest = append(m.Rest, s)
		}
	}
	p.session.Request(&m)
	m.Release()
	return nil
}

// batchOf is an encoded batch.
func batchOf(values ...string) []byte {
	b, err := serialize.NewBuilder(max(1, len(values)))
	if err != nil {
		panic(err)
	}
	room := serialize.HeaderBytes
	for _, v := range values {
		room += len(v) + 32
	}
	b.Reset(make([]byte, room))
	for _, v := range values {
		if err := b.Append(&serialize.Record{Value: []byte(v), Timestamp: 1}); err != nil {
			panic(err)
		}
	}
	return b.Finish()
}

func produceFrame(correlation uint32, topic string, batch []byte) []byte {
	return append(wire.AppendProduceHeader(nil, correlation, topic), batch...)
}

func fetchFrame(correlation uint32, topic string, offset uint64, wait time.Duration) []byte {
	return wire.AppendFetch(nil, wire.Fetch{Correlation: correlation, Topic: []byte(topic), Offset: offset, MaxBytes: 32 << 10, WaitMillis: uint32(wait.Milliseconds())})
}

func metadataFrame(correlation uint32, topic string) []byte {
	return wire.AppendMetadata(nil, wire.Metadata{Correlation: correlation, Topic: []byte(topic)})
}

// answered lists the correlations that frames answer, and with what.
func answered(t testing.TB, frames [][]byte) map[uint32]string {
	t.Helper()
	got := map[uint32]string{}
	note := func(c uint32, what string) {
		if before, twice := got[c]; twice {
			t.Fatalf("request %d was answered with %s, and then with %s", c, before, what)
		}
		got[c] = what
	}
	for _, f := range frames {
		h, err := wire.ParseHeader(f)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Kind {
		case wire.KindProduceAck:
			acks, err := wire.ParseAcks(f)
			if err != nil {
				t.Fatal(err)
			}
			for i := range acks.Len() {
				note(acks.At(i).Correlation, fmt.Sprint("ack ", acks.At(i).Base))
			}
		case wire.KindError:
			e, err := wire.ParseError(f)
			if err != nil {
				t.Fatal(err)
			}
			note(h.Correlation, e.Code.Error())
		default:
			note(h.Correlation, h.Kind.String())
		}
	}
	return got
}

// faults is a disk that fails when told to. Any goroutine.
type faults struct {
	mu    sync.Mutex
	write error         // of writes
	short int           // bytes that a failing write still writes
	sync  error         // of fsync
	cut   error         // of truncate
	wait  time.Duration // of fsync
	gate  chan struct{} // if not nil, what fsync waits for
}

func (f *faults) set(change func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *faults) open(path string, create bool) (seglog.File, error) {
	inner, err := seglog.OpenFile(path, create)
	if err != nil {
		return nil, err
	}
	return &faultyFile{inner, f}, nil
}

type faultyFile struct {
	seglog.File
	f *faults
}

func (f *faultyFile) Writev(iov [][]byte, at int64) (int64, error) {
	f.f.mu.Lock()
	err, short := f.f.write, f.f.short
	f.f.mu.Unlock()
	if err == nil {
		return f.File.Writev(iov, at)
	}
	all := bytes.Join(iov, nil)
	n, werr := f.File.Writev([][]byte{all[:min(short, len(all))]}, at)
	return n, errors.Join(os.NewSyscallError("pwritev", err), werr)
}

func (f *faultyFile) Sync() error {
	f.f.mu.Lock()
	err, wait, gate := f.f.sync, f.f.wait, f.f.gate
	f.f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if wait > 0 {
		time.Sleep(wait)
	}
	if err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultyFile) Truncate(size int64) error {
	f.f.mu.Lock()
	err := f.f.cut
	f.f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// messageAt writes frame at byte at of b, and is a lease on it.
func messageAt(b *hugepages.Buf, at int, frame []byte) netpoll.Message {
	data := b.Bytes()[at : at+len(frame) : at+len(frame)]
	copy(data, frame)
	return netpoll.Message{Segment: netpoll.Segment{Data: data, Buf: b.Retain()}}
}
