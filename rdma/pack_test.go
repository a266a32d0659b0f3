package rdma_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// Messages of all sizes in one flush: the small ones travel together, and all
// arrive whole and in order.
func TestPacked(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	sh := newCollector()
	c := client.dial(server.listen(sh), newCollector())
	var sizes []int
	for i := range 500 {
		switch n := i % 10; {
		case n < 6:
			sizes = append(sizes, rng.IntN(1025))
		case n < 7:
			sizes = append(sizes, 0)
		case n < 9:
			sizes = append(sizes, 1025+rng.IntN(4000))
		default:
			sizes = append(sizes, 8188+rng.IntN(20_000))
		}
	}
	client.do(func() {
		for i, n := range sizes {
			if err := sendCopy(c, pattern(i, n)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i, n := range sizes {
		if got := sh.next(t); !bytes.Equal(got, pattern(i, n)) {
			t.Fatalf("message %d: %d bytes that differ from the %d that were sent", i, len(got), n)
		}
	}
	if s := client.el.Stats(); s.PackedMessages < 100 || s.PackedMessages > 350 {
		t.Errorf("%d of 350 small messages travelled packed", s.PackedMessages)
	}
}

// Packs that are full have one length, so that they travel in trains; the last is as
// short as its messages.
func TestFullPacksArePadded(t *testing.T) {
	for _, size := range []int{0, 1, 256, 1000, 1024} {
		server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
		sh := newCollector()
		c := client.dial(server.listen(sh), newCollector())
		const n = 100
		client.do(func() {
			for i := range n {
				if err := sendCopy(c, pattern(i, size)); err != nil {
					t.Error(err)
				}
			}
		})
		for i := range n {
			if got := sh.next(t); !bytes.Equal(got, pattern(i, size)) {
				t.Fatalf("message %d of %d bytes: %d other bytes", i, size, len(got))
			}
		}
		padded := client.el.Stats().PaddedBytes
		if full := n / (8188 / (size + 4)); padded > uint64(full*(size+4)) || size == 1000 && padded == 0 {
			t.Errorf("%d bytes of padding in about %d packs with messages of %d bytes", padded, full, size)
		}
	}
}

// A message that is alone is sent from where it lies, and so are large ones.
func TestAloneIsNotPacked(t *testing.T) {
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	sh := newCollector()
	c := client.dial(server.listen(sh), newCollector())
	for i := range 5 {
		client.do(func() {
			if err := sendCopy(c, pattern(i, 64)); err != nil {
				t.Error(err)
			}
		})
		sh.next(t)
	}
	client.do(func() {
		for i := range 20 {
			if err := sendCopy(c, pattern(i, 1025)); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20 {
		sh.next(t)
	}
	if s := client.el.Stats(); s.PackedMessages != 0 || s.CopiedMessages != 0 {
		t.Errorf("%d packed, %d copied", s.PackedMessages, s.CopiedMessages)
	}
}

// Without memory for a pack its messages go one by one.
func TestPackWithoutMemory(t *testing.T) {
	pool := testPool(t, 1<<20)
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{loop: netpoll.Options{Pool: pool}})
	sh := newCollector()
	c := client.dial(server.listen(sh), newCollector())
	freed := make(chan struct{})
	client.do(func() {
		for i := range 40 {
			if err := sendCopy(c, pattern(i, 100)); err != nil {
				t.Error(err)
			}
		}
		var held []*hugepages.Buf
		for b, err := pool.Get(40*104, hugepages.Other); err == nil; b, err = pool.Get(40*104, hugepages.Other) {
			held = append(held, b)
		}
		c.Loop().After(20*time.Millisecond, func() { // the flush comes first
			for _, b := range held {
				b.Release()
			}
			close(freed)
		})
	})
	for i := range 40 {
		if got := sh.next(t); !bytes.Equal(got, pattern(i, 100)) {
			t.Fatalf("message %d: %d other bytes", i, len(got))
		}
	}
	<-freed
	if s := client.el.Stats(); s.PackedMessages > 20 { // the last few, in a smaller buffer
		t.Errorf("%d packed", s.PackedMessages)
	}
}

// A handler may keep some messages of a pack.
func TestKeepPartOfAPack(t *testing.T) {
	server, client := startNode(t, nodeOptions{}), startNode(t, nodeOptions{})
	h := &evens{done: make(chan struct{})}
	c := client.dial(server.listen(h), newCollector())
	client.do(func() {
		for i := range 100 {
			if err := sendCopy(c, pattern(i, 50)); err != nil {
				t.Error(err)
			}
		}
	})
	<-h.done
	server.do(func() {
		for i := range h.kept {
			if !bytes.Equal(h.kept[i].Data, pattern(2*i, 50)) {
				t.Errorf("kept message %d changed", 2*i)
			}
			h.kept[i].Release()
		}
	})
}

type evens struct {
	netpoll.BaseHandler
	n    int
	kept []netpoll.Message
	done chan struct{}
}

func (h *evens) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if h.n%2 == 0 {
			h.kept = append(h.kept, ms[i].Retain())
		}
		if h.n++; h.n == 100 {
			close(h.done)
		}
	}
}

func TestBadPacks(t *testing.T) {
	const packed, more = 1 << 27, 1 << 31
	le := binary.LittleEndian.AppendUint32
	for _, tc := range []struct {
		name   string
		imm    uint32
		data   []byte
		inside bool
	}{
		{name: "nothing in it"},
		{name: "half a length", data: []byte{1, 0, 0}},
		{name: "a message longer than the rest", data: append(le(nil, 5), "four"...)},
		{name: "a length of 2^32-1", data: append(le(nil, 1<<32-1), "four"...)},
		{name: "padding alone", data: append(le(nil, 1<<32-1), make([]byte, 60)...)},
		{name: "a good message, then half of a padding's length", data: append(append(le(nil, 4), "four"...), 255, 255, 255)},
		{name: "a good message, then a stray byte", data: append(append(le(nil, 4), "four"...), 0)},
		{name: "over the largest message", data: append(le(nil, 3000), make([]byte, 3000)...)},
		{name: "with MORE", imm: more, data: append(le(nil, 4), "four"...)},
		{name: "inside another message", data: append(le(nil, 4), "four"...), inside: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			limit := 2000
			if tc.inside {
				limit = 20_000
			}
			server := startNode(t, nodeOptions{loop: netpoll.Options{MaxMessageBytes: limit}})
			sh := newCollector()
			open := make(chan struct{})
			sh.open = func(*netpoll.Conn) { close(open) }
			r := dialRaw(t, server.listen(sh), nil)
			<-open
			if tc.inside {
				r.send(more, true, r.peer.ReceiveBytes)
			}
			copy(r.mem.Bytes()[512<<10:], tc.data)
			r.send(packed|tc.imm, true, len(tc.data))
			if err := sh.waitClose(t); !errors.Is(err, netpoll.ErrProtocol) || !strings.Contains(err.Error(), "packed messages that are none") {
				t.Errorf("got %v", err)
			}
			if len(sh.got) > 0 {
				t.Error("delivered")
			}
		})
	}
}
