//go:build !invariants

package broker_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/serialize"
)

// copies finds every place in this process's memory that holds a message. Buffers
// are not cleared when they are released (with the tag invariants they are), so
// each copy that somebody made is found afterwards.
type copies struct {
	t      testing.TB
	mem    *os.File
	window []byte // what is looked at; not looked into itself
}

func newCopies(t testing.TB) *copies {
	t.Helper()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Skipf("this process cannot look at its memory: %v", err)
	}
	window, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(window); err != nil {
			t.Error(err)
		}
		_ = mem.Close()
	})
	return &copies{t, mem, window}
}

func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// find returns the addresses of message, but for its own.
func (c *copies) find(message []byte) (at []uintptr) {
	c.t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") || from == address(c.window) {
			continue
		}
		for from < to {
			n, err := c.mem.ReadAt(c.window[:min(uintptr(len(c.window)), to-from)], int64(from))
			if err != nil || n == 0 {
				break // a device's memory, or unmapped meanwhile
			}
			for off := 0; ; off++ {
				i := bytes.Index(c.window[off:n], message)
				if i < 0 {
					break
				}
				if off += i; from+uintptr(off) != address(message) && !c.in(c.window, from+uintptr(off)) {
					at = append(at, from+uintptr(off))
				}
			}
			if from += uintptr(n); from < to { // a message may lie across two windows
				from -= uintptr(len(message)) - 1
			}
		}
	}
	return at
}

func (c *copies) in(mem []byte, at uintptr) bool {
	return at >= address(mem) && at < address(mem)+uintptr(len(mem))
}

// count is how many of places lie in pool's arena.
func (c *copies) count(places []uintptr, pool *hugepages.Pool) (n int) {
	for _, p := range places {
		if c.in(pool.Arena().Bytes(), p) {
			n++
		}
	}
	return n
}

// send produces message through client and waits for its acknowledgement.
func (c *copies) send(client *broker.Client, message []byte) {
	c.t.Helper()
	done := newResults()
	p, err := client.Producer("copies", done)
	if err != nil {
		c.t.Fatal(err)
	}
	defer p.Close()
	if err := p.Append(within(c.t), &serialize.Record{Value: message}, 0); err != nil {
		c.t.Fatal(err)
	}
	if err := done.wait(within(c.t), 1); err != nil {
		c.t.Fatal(err)
	}
}

// least sends a fresh message through client up to five times, until nobody but
// the pools holds more than most copies of it, and returns where the copies are. A
// packet that a busy machine made the engine send again leaves more behind; a copy
// that is always made is there every time.
func (c *copies) least(client *broker.Client, pooled, most int) (at []uintptr) {
	c.t.Helper()
	message := make([]byte, 500)
	for range 5 {
		_, _ = rand.Read(message)
		c.send(client, message)
		at = c.find(message)
		if len(at)-pooled <= most {
			break
		}
	}
	runtime.KeepAlive(message)
	return at
}

// held keeps what a test plants off the stack: one that grows leaves a copy behind.
var held [][]byte

// Every copy is found, wherever somebody made it: else counting them says nothing.
func TestCopiesAreFound(t *testing.T) {
	c, pool := newCopies(t), memory(t, 16<<20)
	message := make([]byte, 500)
	_, _ = rand.Read(message)
	heap, large := bytes.Clone(message), make([]byte, 9<<20)
	held = [][]byte{message, heap, large}
	defer func() { held = nil }()
	copy(large[4<<20-250:], message)
	copy(large[8<<20-1:], message)
	buf, err := pool.Get(600, hugepages.Other)
	if err != nil {
		t.Fatal(err)
	}
	copy(buf.Bytes()[77:], message)
	buf.Release() // it is still there
	at := c.find(message)
	if len(at) != 4 || c.count(at, pool) != 1 {
		t.Errorf("%d copies found, %d of them in the pool; want 4 and 1: %#x", len(at), c.count(at, pool), at)
	}
}

// A message is copied once by us between the bytes that a producer gives and the
// wire, on every transport; and where it arrives it stays where it was received,
// until the log has it. What the user-space engine writes into a link's frames, and
// reads from them, is counted apart.
func TestOneCopyOnTheWayOut(t *testing.T) {
	engine := map[string]int{
		"tcp": 0,
		// Twice as many if a packet was sent again:
		"rdma": 4, // a packet's frame at each end
		"dpdk": 4, // one slot of shared memory, which both ends map
	}
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			c := newCopies(t)
			serverPool, proxyPool, clientPool := memory(t, 16<<20), memory(t, 16<<20), memory(t, 16<<20)
			s := startServer(t, broker.Config{Listen: []string{scheme + "://127.0.0.1:0"}, Pool: serverPool})
			direct := connect(t, broker.ClientConfig{URL: s.URLs()[0], Pool: clientPool})
			at := c.least(direct, 2, engine[scheme])
			if n := c.count(at, clientPool); n != 1 {
				t.Errorf("the client made %d copies, want 1", n)
			}
			if n := c.count(at, serverPool); n != 1 {
				t.Errorf("the broker has it in %d places, want the one where it was received", n)
			}
			if n := len(at) - 2; n > engine[scheme] {
				t.Errorf("%d copies are in nobody's pool, at most %d are the engine's: %#x", n, engine[scheme], at)
			}

			p := startProxy(t, broker.ProxyConfig{Broker: s.URLs()[0], Pool: proxyPool})
			proxied := connect(t, broker.ClientConfig{URL: p.URLs()[0], Pool: clientPool})
			at = c.least(proxied, 4, engine[scheme])
			if n := c.count(at, clientPool); n != 1 {
				t.Errorf("through a proxy: the client made %d copies, want 1", n)
			}
			if n := c.count(at, proxyPool); n != 2 {
				t.Errorf("the proxy has it in %d places, want 2: where it was received, and the batch", n)
			}
			if n := len(at) - 4; n > engine[scheme] {
				t.Errorf("through a proxy: %d copies are in nobody's pool, at most %d are the engine's: %#x", n, engine[scheme], at)
			}
		})
	}
}
