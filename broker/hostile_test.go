package broker

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
)

// Every kind of bad frame is answered by name and ends its connection alone.
func TestBadFrames(t *testing.T) {
	batch := batchOf("a")
	cut := func(p []byte, n int) []byte { return p[:n:n] }
	bent := func(p []byte, at int, b byte) []byte { q := append([]byte(nil), p...); q[at] = b; return q }
	newer := wire.AppendHello(nil, wire.Hello{Version: wire.Version + 1, Role: wire.RoleClient, MaxFrameBytes: 1 << 20})
	narrow := wire.AppendHello(nil, wire.Hello{Version: wire.Version, Role: wire.RoleClient, MaxFrameBytes: 100})
	for _, tc := range []struct {
		name  string
		role  wire.Role
		frame []byte
		code  wire.Code
		text  string
		stays bool
	}{
		{name: "empty", frame: nil, code: wire.BadRequest, text: "every frame"},
		{name: "short", frame: []byte{1, 2, 3}, code: wire.BadRequest, text: "every frame"},
		{name: "http", frame: []byte("GET / HTTP/1.1\r\n\r\n"), code: wire.BadRequest},
		{name: "before Hello", frame: produceFrame(1, "t", batch), code: wire.BadRequest, text: "not a Hello"},
		{name: "version", frame: newer, code: wire.UnsupportedVersion, text: "same millrace release"},
		{name: "narrow", frame: narrow, code: wire.BadRequest, text: "at most 100"},
		{name: "a broker as client", frame: hello(wire.RoleBroker), code: wire.BadRequest, text: "cannot serve"},
		{name: "no role", frame: bent(hello(wire.RoleClient), 1, 0), code: wire.BadRequest, text: "role"},
		{name: "cut Hello", frame: cut(hello(wire.RoleClient), 17), code: wire.BadRequest},
		{name: "Hello twice", role: wire.RoleClient, frame: hello(wire.RoleClient), code: wire.BadRequest, text: "not expected"},
		{name: "an answer", role: wire.RoleClient, frame: wire.AppendAcks(nil, []wire.Ack{{Correlation: 1}}), code: wire.BadRequest, text: "not expected"},
		{name: "an error", role: wire.RoleProxy, frame: wire.AppendError(nil, &wire.Error{Code: 1}), code: wire.BadRequest, text: "not expected"},
		{name: "kind 0", role: wire.RoleClient, frame: make([]byte, 8), code: wire.BadRequest, text: "unknown kind"},
		{name: "no topic", role: wire.RoleClient, frame: append(wire.AppendProduceHeader(nil, 1, ""), batch...), code: wire.BadRequest, text: "topic name"},
		{name: "no batch", role: wire.RoleClient, frame: wire.AppendProduceHeader(nil, 1, "t"), code: wire.BadRequest, text: "without a batch"},
		{name: "flags", role: wire.RoleClient, frame: bent(produceFrame(1, "t", batch), 2, 1), code: wire.BadRequest, text: "flags"},
		{name: "topic beyond the frame", role: wire.RoleClient, frame: cut(produceFrame(1, strings.Repeat("t", 99), nil), 40), code: wire.BadRequest, text: "topic name"},
		{name: "long Fetch", role: wire.RoleClient, frame: append(fetchFrame(1, "t", 0, 0), 0), code: wire.BadRequest, text: "behind"},
		{name: "cut Fetch", role: wire.RoleClient, frame: cut(fetchFrame(1, "t", 0, 0), 20), code: wire.BadRequest},
		{name: "long Metadata", role: wire.RoleClient, frame: append(metadataFrame(1, "t"), 0), code: wire.BadRequest, text: "behind"},

		{name: "no topic of that name", role: wire.RoleClient, frame: fetchFrame(1, "none", 0, time.Hour), code: wire.UnknownTopic, stays: true},
		{name: "offset", role: wire.RoleClient, frame: fetchFrame(1, "good", 1<<63, time.Hour), code: wire.OffsetOutOfRange, stays: true},
		{name: "name", role: wire.RoleClient, frame: produceFrame(1, "../t", batch), code: wire.InvalidTopic, stays: true},
		{name: "damaged", role: wire.RoleClient, frame: produceFrame(1, "t", bent(batch, len(batch)-1, 0xff)), code: wire.CorruptBatch, stays: true},
		{name: "trailing", role: wire.RoleClient, frame: produceFrame(1, "t", append(batch[:len(batch):len(batch)], 0)), code: wire.CorruptBatch, text: "follow", stays: true},
		{name: "cut batch", role: wire.RoleClient, frame: produceFrame(1, "t", batch[:len(batch)-1]), code: wire.CorruptBatch, stays: true},
		{name: "large", role: wire.RoleClient, frame: produceFrame(1, "t", batchOf(strings.Repeat("x", 64<<10))), code: wire.TooLarge, stays: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, 4<<20, CoreConfig{}, seglog.Options{})
			other := r.connect(wire.RoleClient)
			other.deliver(produceFrame(7, "good", batchOf("x")))
			p := r.connect(tc.role)
			p.deliver(tc.frame, metadataFrame(2, "good"))
			r.core.Commit()
			got := p.take()
			if len(got) == 0 {
				t.Fatal("no answer")
			}
			e, err := wire.ParseError(got[0])
			if err != nil || e.Code != tc.code || !strings.Contains(e.Text, tc.text) || e.Text == "" {
				t.Fatalf("answered with %v (%v), want %v with %q", e, err, tc.code, tc.text)
			}
			if (p.reason == nil) != tc.stays || len(got) != map[bool]int{true: 2, false: 1}[tc.stays] {
				t.Errorf("ended with %v after %d answers", p.reason, len(got))
			}
			if got := answered(t, other.take()); got[7] != "ack 0" {
				t.Errorf("the other connection got %v", got)
			}
			other.deliver(metadataFrame(8, "good"))
			if got := answered(t, other.take()); got[8] != "MetadataResponse" || other.reason != nil {
				t.Errorf("the other connection got %v and ended with %v", got, other.reason)
			}
		})
	}
}

// A bad frame behind requests that waited closed the session under the hands of
// its own replay: the broker panicked.
func TestBadFrameBehindDeferredRequests(t *testing.T) {
	r := newRig(t, 4<<20, CoreConfig{MaxPendingBytes: 1}, seglog.Options{})
	p := r.connect(wire.RoleClient)
	p.deliver(produceFrame(1, "t", batchOf("a")), produceFrame(2, "t", batchOf("b")), []byte("garbage!"), produceFrame(3, "t", batchOf("c")))
	if p.reason != nil || p.reading || len(p.session.deferred) != 3 {
		t.Fatalf("ended with %v, reading %v, %d deferred", p.reason, p.reading, len(p.session.deferred))
	}
	r.core.Commit()
	if p.reason == nil || !p.gone {
		t.Error("the connection goes on")
	}
	if _, latest := r.store.Topic("t").Bounds(); latest != 2 {
		t.Errorf("%d records are stored, want 2", latest)
	}
}

// A peer that floods requests and does not read its answers holds a bounded part
// of the memory, whatever it asks; others do not notice.
func TestSlowConsumerIsBounded(t *testing.T) {
	topics := 40
	for name, request := range map[string]func(i uint32) []byte{
		"metadata": func(i uint32) []byte { return metadataFrame(i, "") },
		"fetch":    func(i uint32) []byte { return fetchFrame(i, "t0", 0, time.Second) },
		"unknown":  func(i uint32) []byte { return fetchFrame(i, "none", 0, time.Second) },
		"produce":  func(i uint32) []byte { return produceFrame(i, "t0", batchOf("x")) },
		"corrupt":  func(i uint32) []byte { return produceFrame(i, "t0", []byte("no batch")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 16<<20, CoreConfig{MaxPendingBytes: 8 << 10}, seglog.Options{})
			other := r.connect(wire.RoleClient)
			for i := range topics {
				other.deliver(produceFrame(uint32(i), fmt.Sprint("t", i), batchOf(strings.Repeat("long", 4000))))
			}
			r.core.Commit()
			other.take()

			p := r.connect(wire.RoleClient)
			p.room = 8
			var burst [][]byte
			const n = 4000
			for i := range uint32(n) {
				burst = append(burst, request(i))
			}
			p.deliver(burst...)
			r.core.Commit()
			r.sched.advance(100 * time.Millisecond)
			held := 0
			for _, b := range append(p.queue, p.session.out...) {
				held += b.Cap()
			}
			// The queue, an answer more for each waiting fetch, and acknowledgements.
			if held > 3<<20 || len(p.session.owed) > 0 {
				t.Errorf("its answers hold %d bytes, %d are owed", held, len(p.session.owed))
			}
			if p.reading && name != "produce" { // acknowledgements travel together
				t.Error("it is still read")
			}
			other.deliver(produceFrame(900, "other", batchOf("x")), fetchFrame(901, "t1", 0, 0))
			r.core.Commit()
			if got := answered(t, other.take()); got[900] != "ack 0" || got[901] != "FetchResponse" {
				t.Errorf("the other connection got %v", got)
			}
			// It reads at last: every request has its answer.
			got := map[uint32]string{}
			for i := 0; i < 4*n && len(got) < n; i++ {
				for c, what := range answered(t, p.take()) {
					if before, twice := got[c]; twice {
						t.Fatalf("request %d: %s and %s", c, before, what)
					}
					got[c] = what
				}
				r.core.Commit()
				r.sched.advance(10 * time.Millisecond)
			}
			if len(got) != n || !p.reading {
				t.Errorf("%d of %d requests were answered; reading %v", len(got), n, p.reading)
			}
		})
	}
}

// A peer that reads none of its answers for a minute, or never says Hello, is
// closed; one that reads slowly is not.
func TestStalledPeersAreClosed(t *testing.T) {
	r := newRig(t, 4<<20, CoreConfig{}, seglog.Options{})
	silent, idle, slow, stalled := r.connect(0), r.connect(wire.RoleClient), r.connect(wire.RoleClient), r.connect(wire.RoleClient)
	r.sched.advance(greetTimeout)
	if silent.reason == nil || !silent.gone {
		t.Error("the silent peer was not closed")
	}
	for range 200 {
		slow.deliver(metadataFrame(1, "none"))
	}
	stalled.deliver(metadataFrame(1, "none"))
	for range 20 {
		r.sched.advance(10 * time.Second)
		if q := slow.queue; len(q) > 0 {
			q[0].Release()
			slow.queue = q[1:]
			slow.taken++
		}
	}
	if stalled.reason == nil || !strings.Contains(stalled.reason.Error(), "took none of its answers") {
		t.Errorf("the stalled peer: %v", stalled.reason)
	}
	if slow.reason != nil || idle.reason != nil {
		t.Errorf("slow %v, idle %v", slow.reason, idle.reason)
	}
}

// One connection may have 64 fetches waiting; those of a closed one are gone.
func TestFetchFlood(t *testing.T) {
	r := newRig(t, 4<<20, CoreConfig{MaxWaitingFetches: 100}, seglog.Options{})
	w := r.connect(wire.RoleClient)
	w.deliver(produceFrame(1, "t", batchOf("x")))
	r.core.Commit()
	w.take()
	flood := func(p *fakePeer, n int) (refused int) {
		for i := range n {
			p.deliver(fetchFrame(uint32(i), "t", 1, time.Hour))
		}
		for _, what := range answered(t, p.take()) {
			if what != wire.TooManyRequests.Error() {
				t.Fatal(what)
			}
			refused++
		}
		return refused
	}
	a, b, proxy := r.connect(wire.RoleClient), r.connect(wire.RoleClient), r.connect(wire.RoleProxy)
	if n := flood(a, 100); n != 36 {
		t.Errorf("%d of one client were refused", n)
	}
	if n := flood(b, 100); n != 64 {
		t.Errorf("%d of another were refused", n)
	}
	a.disconnect()
	if n := flood(proxy, 100); n != 36 {
		t.Errorf("%d of a proxy were refused", n)
	}
	// All are answered when something comes, and the rest at the end of its wait.
	w.deliver(produceFrame(2, "t", batchOf("y")))
	r.core.Commit()
	if n := len(answered(t, b.take())) + len(answered(t, proxy.take())); n != 100 || r.core.waiting != 0 {
		t.Errorf("%d were answered, %d wait", n, r.core.waiting)
	}
	b.deliver(fetchFrame(1000, "t", 2, time.Hour))
	r.sched.advance(defaultMaxWait)
	if got := answered(t, b.take()); got[1000] != "FetchResponse" {
		t.Errorf("at the end of the wait: %v", got)
	}
}

// Topics beyond the limit are refused by name; those that there are go on.
func TestTooManyTopics(t *testing.T) {
	r := newRig(t, 4<<20, CoreConfig{}, seglog.Options{MaxTopics: 2})
	p := r.connect(wire.RoleClient)
	for i := range uint32(5) {
		p.deliver(produceFrame(i, fmt.Sprint("t", i%3), batchOf("x")))
	}
	r.core.Commit()
	got := answered(t, p.take())
	if fmt.Sprint(got) != fmt.Sprint(map[uint32]string{0: "ack 0", 1: "ack 0", 2: "too many topics", 3: "ack 1", 4: "ack 1"}) {
		t.Error(got)
	}
}

// hog takes all memory and returns how to give it back.
func hog(pool *hugepages.Pool) (free func()) {
	var held []*hugepages.Buf
	for _, n := range []int{64 << 10, 8 << 10, 1 << 10, 512, 1} {
		for {
			b, err := pool.Get(n, hugepages.Other)
			if err != nil {
				break
			}
			held = append(held, b)
		}
	}
	return func() {
		for _, b := range held {
			b.Release()
		}
		held = nil
	}
}

// Whatever there is no memory for is done once there is some, and what waits for
// it is bounded.
func TestPoolExhausted(t *testing.T) {
	r := newRig(t, 1<<20, CoreConfig{}, seglog.Options{})
	w := r.connect(wire.RoleClient)
	w.deliver(produceFrame(1, "t", batchOf("x")))
	r.core.Commit()
	w.take()
	var burst [][]byte
	for i := range uint32(500) {
		burst = append(burst, metadataFrame(10*i, "t"), metadataFrame(10*i+1, "none"), fetchFrame(10*i+2, "t", 0, 0),
			produceFrame(10*i+3, "t", batchOf("x")), fetchFrame(10*i+4, "t", 9, 0))
	}
	for first := range 5 { // each kind is the first to find no memory
		p, q := r.connect(wire.RoleClient), r.connect(0)
		all := burst[first:]
		var n int
		for _, f := range all {
			n += len(f)
		}
		shared, err := r.pool.Get(n+wire.HelloBytes, hugepages.Receive)
		if err != nil {
			t.Fatal(err)
		}
		free := hog(r.pool)
		at := 0
		for _, f := range append([][]byte{hello(wire.RoleClient)}, all...) {
			m := messageAt(shared, at, f)
			at += len(f)
			if f[0] == byte(wire.KindHello) {
				q.session.Request(&m)
			} else {
				p.session.Request(&m)
			}
			m.Release()
		}
		shared.Release()
		again := hog(r.pool)
		r.core.Commit()
		for range 20 {
			r.sched.advance(time.Millisecond)
		}
		if len(p.session.owed) > 2 || len(r.core.retries) > 4 || p.reading {
			t.Errorf("%d answers are owed, %d retries, reading %v", len(p.session.owed), len(r.core.retries), p.reading)
		}
		free()
		again()
		got := map[uint32]string{}
		for range 1000 {
			r.sched.advance(time.Millisecond)
			r.core.Commit()
			for c, what := range answered(t, p.take()) {
				got[c] = what
			}
		}
		if len(got) != len(all) {
			t.Errorf("%d of %d requests were answered", len(got), len(all))
		}
		if got := q.take(); len(got) != 1 {
			t.Errorf("a Hello has %d answers", len(got))
		}
	}
}

func TestChainWithoutMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20, CoreConfig{}, seglog.Options{})
		p := r.connect(wire.RoleClient)
		for _, patient := range []bool{true, false} {
			frame := produceFrame(7, "t", batchOf(strings.Repeat("x", 10_000)))
			kept := make([]*hugepages.Buf, 0, 8)
			for _, n := range []int{3000, 3000, 3000, 1100} { // room for the pieces, not for the whole
				b, err := r.pool.Get(n, hugepages.Other)
				if err != nil {
					t.Fatal(err)
				}
				kept = append(kept, b)
			}
			free := hog(r.pool)
			for _, b := range kept {
				b.Release()
			}
			if err := p.deliverChain(frame, 3000); err != nil {
				free()
				t.Fatal(err)
			}
			for range 50 {
				time.Sleep(memoryPatience / 60)
				r.sched.advance(time.Millisecond)
			}
			if got := p.take(); len(got) != 0 || p.reading {
				t.Fatalf("answered %v, reading %v", got, p.reading)
			}
			want := "ack 0"
			if patient {
				free()
			} else {
				// What it holds may be all there is: it gives up, by name.
				time.Sleep(memoryPatience)
				want = wire.TooManyRequests.Error()
			}
			r.sched.advance(5 * time.Millisecond)
			r.core.Commit()
			if got := answered(t, p.take()); got[7] != want || !p.reading {
				t.Errorf("patient %v: %v, reading %v", patient, got, p.reading)
			}
			free()
		}
	})
}

// A connection that ends in any state takes its memory and its waiting requests
// with it; what it produced is stored.
func TestCloseInEachState(t *testing.T) {
	steps := []struct {
		name string
		do   func(r *rig, p *fakePeer)
	}{
		{"open", func(r *rig, p *fakePeer) {}},
		{"greeted", func(r *rig, p *fakePeer) { p.deliver(hello(wire.RoleClient)) }},
		{"produced", func(r *rig, p *fakePeer) { p.deliver(produceFrame(1, "t", batchOf("x"))) }},
		{"waiting", func(r *rig, p *fakePeer) {
			p.deliver(fetchFrame(2, "t", 9, time.Hour), fetchFrame(3, "t", 1, time.Hour))
		}},
		{"congested", func(r *rig, p *fakePeer) {
			p.room = 0
			p.deliver(metadataFrame(4, ""), metadataFrame(5, ""), fetchFrame(6, "t", 0, time.Hour))
		}},
		{"starved", func(r *rig, p *fakePeer) {
			free := hog(r.pool)
			r.core.Commit()
			p.take()
			r.sched.advance(time.Millisecond)
			free()
		}},
		{"blocked", func(r *rig, p *fakePeer) {
			r.core.cfg.MaxPendingBytes = 1
			p.room = 1 << 20
			p.take()
			p.deliver(produceFrame(7, "t", batchOf("x")), produceFrame(8, "t", batchOf("y")), produceFrame(9, "t", batchOf("z")))
		}},
	}
	for last := range steps {
		for _, fsync := range []bool{false, true} {
			t.Run(fmt.Sprint(steps[last].name, fsync), func(t *testing.T) {
				o := seglog.Options{}
				if fsync {
					o.Durability = seglog.Fsync
				}
				r := newRig(t, 1<<20, CoreConfig{}, o)
				p := r.connect(0)
				for _, s := range steps[:last+1] {
					s.do(r, p)
				}
				p.disconnect()
				r.committed()
				r.sched.advance(time.Hour)
				if n := r.pool.Outstanding(); n != 0 || r.core.waiting != 0 || len(r.core.blocked) != 0 || r.core.stats.sessions.Load() != 0 {
					t.Errorf("%d buffers, %d fetches, %d blocked sessions, %d sessions are left", n, r.core.waiting, len(r.core.blocked), r.core.stats.sessions.Load())
				}
			})
		}
	}
}

// Small requests that wait for a slow disk do not hold the large buffers in which
// they came, and what was not stored when the broker is closed is released.
func TestSlowDiskHoldsLittleMemory(t *testing.T) {
	gate := make(chan struct{})
	f := &faults{}
	r := newRig(t, 8<<20, CoreConfig{}, seglog.Options{Durability: seglog.Fsync, OpenFile: f.open})
	p := r.connect(wire.RoleClient)
	p.deliver(produceFrame(0, "t", batchOf("first")))
	r.committed()
	f.set(func(f *faults) { f.gate = gate })
	for i := range uint32(500) {
		large, err := r.pool.Get(128<<10, hugepages.Receive) // as a read of TCP has it
		if err != nil {
			t.Fatalf("after %d small requests: %v", i, err)
		}
		m := messageAt(large, 0, produceFrame(1+i, "t", batchOf("x")))
		p.session.Request(&m)
		m.Release()
		large.Release()
		r.core.Commit()
	}
	if u := r.pool.Usage(hugepages.Receive); u.Bytes > 500*1024+128<<10 {
		t.Errorf("500 small requests hold %d bytes", u.Bytes)
	}
	f.set(func(f *faults) { f.gate = nil })
	close(gate)
	r.end() // one group is stored or not, the next never was at the disk
}

// What a disk does wrong is told to those whose batches it concerns; nothing that
// failed is stored, and nothing stored is lost.
func TestDiskFaults(t *testing.T) {
	for _, durability := range []seglog.Durability{seglog.PageCache, seglog.Fsync} {
		for _, tc := range []struct {
			name    string
			fault   func(*faults)
			refused wire.Code
			after   string // an append once the disk is well again
		}{
			{"full", func(f *faults) { f.write = syscall.ENOSPC }, wire.StorageFull, "ack 1"},
			{"full after some", func(f *faults) { f.write, f.short = syscall.ENOSPC, 20 }, wire.StorageFull, "ack 1"},
			{"error", func(f *faults) { f.write, f.short = syscall.EIO, 50 }, wire.StorageFailed, "ack 1"},
			{"cannot take back", func(f *faults) { f.write, f.short, f.cut = syscall.EIO, 50, syscall.EIO }, wire.StorageFailed, "storage failed"},
			{"fsync", func(f *faults) { f.sync = syscall.EIO }, wire.StorageFailed, "storage failed"},
		} {
			if tc.name == "fsync" && durability != seglog.Fsync {
				continue
			}
			t.Run(fmt.Sprint(durability, "/", tc.name), func(t *testing.T) {
				f := &faults{}
				dir := t.TempDir()
				r := newRigIn(t, dir, testPool(t, 1<<20), CoreConfig{}, seglog.Options{Durability: durability, OpenFile: f.open})
				p := r.connect(wire.RoleClient)
				p.deliver(produceFrame(1, "t", batchOf("x")), produceFrame(2, "sound", batchOf("x")))
				r.committed()
				if got := answered(t, p.take()); got[1] != "ack 0" || got[2] != "ack 0" {
					t.Fatal(got)
				}
				p.deliver(fetchFrame(3, "t", 1, time.Hour))
				f.set(tc.fault)
				p.deliver(produceFrame(4, "t", batchOf("y")), produceFrame(5, "t", batchOf("z")))
				r.committed()
				if got := answered(t, p.take()); len(got) != 2 || got[4] != tc.refused.Error() || got[5] != tc.refused.Error() {
					t.Fatal(got)
				}
				f.set(func(f *faults) { f.write, f.cut, f.sync = nil, nil, nil })
				p.deliver(produceFrame(6, "t", batchOf("w")), produceFrame(7, "sound", batchOf("w")))
				r.committed()
				got := answered(t, p.take())
				if got[6] != tc.after || got[7] != "ack 1" || (got[3] == "FetchResponse") != (tc.after == "ack 1") {
					t.Error(got)
				}
				r.end()
				s, err := seglog.Open(dir, seglog.Options{Logger: quietLogger})
				if err != nil {
					t.Fatal(err)
				}
				_, latest := s.Topic("t").Bounds()
				// In the failed log they may be there or not: the outcome is unknown.
				if want := uint64(2); tc.after == "ack 1" && latest != want || latest < 1 {
					t.Errorf("after a restart the log ends at %d", latest)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// While slow consumers hold half of the pool, fetches wait and produces go on.
func TestFetchesLeaveMemoryToProducers(t *testing.T) {
	r := newRig(t, 2<<20, CoreConfig{}, seglog.Options{})
	w := r.connect(wire.RoleClient)
	for i := range uint32(20) {
		w.deliver(produceFrame(i, "t", batchOf(strings.Repeat("x", 30_000))))
		r.core.Commit()
	}
	w.take()
	var slow []*fakePeer
	for range 10 {
		p := r.connect(wire.RoleClient)
		slow = append(slow, p)
		for i := range uint32(20) {
			p.deliver(fetchFrame(i, "t", uint64(i), time.Hour))
		}
	}
	r.sched.advance(10 * time.Millisecond)
	if u := r.pool.Usage(hugepages.Send).Bytes; u > 1<<20+64<<10 {
		t.Errorf("answers hold %d bytes", u)
	}
	if r.core.waiting == 0 {
		t.Error("every fetch was answered; the test needs more of them")
	}
	w.deliver(produceFrame(100, "t", batchOf("still")))
	r.core.Commit()
	if got := answered(t, w.take()); got[100] != "ack 20" {
		t.Errorf("a produce got %v", got)
	}
	n := 0
	for range 100 {
		for _, p := range slow {
			n += len(answered(t, p.take()))
		}
		r.sched.advance(2 * time.Millisecond)
	}
	if n != 200 {
		t.Errorf("%d of 200 fetches were answered in the end", n)
	}
}

func TestConfigOfAPoolTooSmall(t *testing.T) {
	pool := testPool(t, 1<<20)
	store, err := seglog.Open(t.TempDir(), seglog.Options{Logger: quietLogger})
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewCore(CoreConfig{Store: store, Pool: pool, Scheduler: &manual{}, MaxFrameBytes: 4 << 20})
	if err == nil || !strings.Contains(err.Error(), "enlarge the pool") {
		t.Errorf("got %v", err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	if _, err = NewProxy(ProxyConfig{Broker: "tcp://127.0.0.1:1", Pool: pool, Logger: quietLogger}); err == nil || !strings.Contains(err.Error(), "enlarge the pool") {
		t.Errorf("got %v", err)
	}
	if !errors.Is(checkFrameBytes(1<<20, pool), nil) && pool.MaxBytes() >= 1<<20 {
		t.Error("a pool that is large enough was refused")
	}
}
