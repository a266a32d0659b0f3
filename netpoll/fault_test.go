package netpoll

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/hugepages"
)

// faulty wraps the system calls of a backend: short reads and writes, EINTR,
// EAGAIN out of the blue, and a reset after so many calls (0: never).
func faulty(t *TCP, seed uint64, resetAfter int) {
	rng := rand.New(rand.NewPCG(seed, 7))
	real, calls := t.calls, 0
	fault := func() error {
		if calls++; resetAfter > 0 && calls >= resetAfter {
			return unix.ECONNRESET
		}
		switch rng.IntN(8) {
		case 0:
			return unix.EINTR
		case 1:
			return unix.EAGAIN
		}
		return nil
	}
	short := func(n int) int {
		if n > 1 && rng.IntN(2) == 0 {
			return 1 + rng.IntN(min(n, 3000))
		}
		return n
	}
	t.calls = socketCalls{
		read: func(fd int, p []byte) (int, error) {
			if err := fault(); err != nil {
				return 0, err
			}
			return real.read(fd, p[:short(len(p))])
		},
		readv: func(fd int, a, b []byte) (int, error) {
			if err := fault(); err != nil {
				return 0, err
			}
			return real.read(fd, a[:short(len(a))])
		},
		writev: func(fd int, iov []unix.Iovec) (int, error) {
			if err := fault(); err != nil {
				return 0, err
			}
			cut := iov[0]
			if n := short(int(cut.Len)); n < int(cut.Len) && n > 0 {
				cut.SetLen(n)
				return real.writev(fd, []unix.Iovec{cut})
			}
			return real.writev(fd, iov[:1+rng.IntN(len(iov))])
		},
	}
}

// Whatever the system calls do short of an error, each message arrives once, in
// order and unchanged, under every idle policy.
func TestTCPFaultsLoseNothing(t *testing.T) {
	for seed := range uint64(6) {
		idle := []IdlePolicy{Latency(), Balanced(), Efficient()}[seed%3]
		t.Run(fmt.Sprintf("seed=%d/%s", seed, idle.Name), func(t *testing.T) {
			st, ct := NewTCP(), NewTCP()
			faulty(st, seed, 0)
			faulty(ct, seed+100, 0)
			server := startLoop(t, Options{Idle: idle, Backends: []Backend{st}})
			ln, err := server.Listen("tcp://127.0.0.1:0", &echo{})
			if err != nil {
				t.Fatal(err)
			}
			client := startLoop(t, Options{Idle: idle, Backends: []Backend{ct}})
			h := newCollector()
			c, err := client.Dial(dialCtx(t), ln.URL(), h)
			if err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(seed, 1))
			const n = 150
			go func() {
				for i := range n {
					p := make([]byte, 8+rng.IntN(6000))
					binary.BigEndian.PutUint64(p, uint64(i))
					for k := range p[8:] {
						p[8+k] = byte(i + k)
					}
					for {
						var err error
						if client.Do(func() { err = sendCopy(c, p) }) != nil {
							return
						}
						if !errors.Is(err, ErrBackpressure) && !errors.Is(err, hugepages.ErrExhausted) {
							break
						}
						time.Sleep(100 * time.Microsecond)
					}
				}
			}()
			for i := range n {
				select {
				case got := <-h.got:
					if binary.BigEndian.Uint64(got) != uint64(i) {
						t.Fatalf("message %d came in place of %d", binary.BigEndian.Uint64(got), i)
					}
					want := make([]byte, len(got)-8)
					for k := range want {
						want[k] = byte(i + k)
					}
					if !bytes.Equal(got[8:], want) {
						t.Fatalf("message %d changed", i)
					}
				case err := <-h.closed:
					t.Fatalf("closed: %v", err)
				case <-time.After(10 * time.Second):
					t.Fatalf("message %d did not come", i)
				}
			}
		})
	}
}

// A reset at any point closes the connection once, with the reason, and leaves the
// loop and its memory in order.
func TestTCPResetAnywhere(t *testing.T) {
	for after := 1; after < 60; after += 7 {
		ct := NewTCP()
		faulty(ct, uint64(after), after)
		server := startLoop(t, Options{})
		ln, err := server.Listen("tcp://127.0.0.1:0", &echo{})
		if err != nil {
			t.Fatal(err)
		}
		client := startLoop(t, Options{Backends: []Backend{ct}})
		h := newCollector()
		c, err := client.Dial(dialCtx(t), ln.URL(), h)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if client.Do(func() { _ = sendCopy(c, make([]byte, 3000)) }) != nil {
				break
			}
		}
		if err := waitClose(t, h); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after %d calls: %v", after, err)
		}
		select {
		case err := <-h.closed:
			t.Errorf("closed twice, then with %v", err)
		default:
		}
	}
}

// No wake-up is lost: a loop that is about to sleep, naps or sleeps runs what is
// submitted and takes what arrives. The pauses sweep over the moments at which it
// does either.
func TestNoWakeUpLost(t *testing.T) {
	for _, idle := range []IdlePolicy{
		Latency(), Balanced(), Efficient(), {Name: "at once", Park: true}, {Name: "short spin", Spin: 5 * time.Microsecond, Park: true},
	} {
		t.Run(idle.Name, func(t *testing.T) {
			server := startLoop(t, Options{Idle: idle})
			ln, err := server.Listen("tcp://127.0.0.1:0", &echo{})
			if err != nil {
				t.Fatal(err)
			}
			client := startLoop(t, Options{Idle: idle})
			h := newCollector()
			c, err := client.Dial(dialCtx(t), ln.URL(), h)
			if err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(3, 4))
			for i := range 600 {
				if err := client.Submit(func() {
					if err := sendCopy(c, []byte{1}); err != nil {
						t.Error(err)
					}
				}); err != nil {
					t.Fatal(err)
				}
				select {
				case <-h.got:
				case <-time.After(10 * time.Second):
					t.Fatalf("message %d: somebody sleeps through it", i)
				}
				for until := time.Now().Add(time.Duration(rng.IntN(120)) * time.Microsecond); time.Now().Before(until); {
				}
			}
		})
	}
}

// restless always has more to send.
type restless struct{ BaseHandler }

func (r *restless) OnWritable(c *Conn) {
	for {
		b, err := c.Alloc(1 << 10)
		if err != nil {
			return
		}
		if err := c.Send(b); err != nil {
			b.Release()
			return
		}
	}
}

// A connection that can always send more, and a function that always submits
// another, keep neither timers nor submissions nor other connections waiting.
func TestNobodyStarves(t *testing.T) {
	server := startLoop(t, Options{})
	ln, err := server.Listen("tcp://127.0.0.1:0", BaseHandler{})
	if err != nil {
		t.Fatal(err)
	}
	quiet, err := server.Listen("tcp://127.0.0.1:0", &echo{})
	if err != nil {
		t.Fatal(err)
	}
	client := startLoop(t, Options{MaxQueuedBytes: 64 << 10})
	r := &restless{}
	c, err := client.Dial(dialCtx(t), ln.URL(), r)
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	defer stop.Store(true)
	var again func()
	again = func() {
		if !stop.Load() {
			_ = client.Submit(again)
		}
	}
	if err := client.Do(func() { r.OnWritable(c); again() }); err != nil {
		t.Fatal(err)
	}
	h := newCollector()
	other, err := client.Dial(dialCtx(t), quiet.URL(), h)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		fired := make(chan struct{})
		if err := client.Do(func() {
			client.After(time.Millisecond, func() { close(fired) })
			if err := sendCopy(other, []byte("x")); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"timer", "other connection"} {
			var ok bool
			switch what {
			case "timer":
				select {
				case <-fired:
					ok = true
				case <-time.After(10 * time.Second):
				}
			default:
				select {
				case <-h.got:
					ok = true
				case <-time.After(10 * time.Second):
				}
			}
			if !ok {
				t.Fatalf("the %s starves", what)
			}
		}
	}
}

// However small and large messages alternate, what goes to the kernel is the queue in
// order, from where the last write ended.
func TestGatherKeepsOrder(t *testing.T) {
	pool := testPool(t, 16<<20)
	rng := rand.New(rand.NewPCG(7, 7))
	var noise [64 << 10]byte // what messages are pieces of
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	for range 200 {
		c := &tcpConn{tcp: &TCP{}}
		var want []byte
		for range 1 + rng.IntN(200) {
			n := 1 + rng.IntN(64)
			switch rng.IntN(4) {
			case 0:
				n = tcpJoin - 1 + rng.IntN(3)
			case 1:
				n = 1 + rng.IntN(16<<10)
			}
			b, err := pool.Get(n, hugepages.Send)
			if err != nil {
				t.Fatal(err)
			}
			copy(b.Bytes(), noise[rng.IntN(len(noise)-n):])
			want = append(want, b.Bytes()...)
			c.queue.push(b)
		}
		c.written = rng.IntN(c.queue.at(0).Len())
		want = want[c.written:]
		iov, bytes := c.gather()
		var got []byte
		for _, v := range iov {
			got = append(got, unsafe.Slice(v.Base, v.Len)...)
		}
		if len(got) != bytes || !slices.Equal(got, want[:bytes]) {
			t.Fatalf("%d bytes in %d pieces, said %d, of %d: not what was queued", len(got), len(iov), bytes, len(want))
		}
		if bytes < len(want) && bytes < tcpMaxWrite && len(iov) < tcpMaxIovecs {
			t.Fatalf("%d of %d bytes in %d pieces", bytes, len(want), len(iov))
		}
		for c.queue.len() > 0 {
			c.queue.pop().Release()
		}
	}
}
