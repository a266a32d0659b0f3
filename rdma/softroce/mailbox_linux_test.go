package softroce

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// boxed is two links, of which the second has a socket connected to the first, whose
// packets have come one by one until its mailbox was open.
type boxed struct {
	t       *testing.T
	ls      [2]*UDPLink
	path    Path
	back    Path
	s       *udpSocket
	sent    uint32
	got     uint32
	rx, one [burst]Frame
	repeats bool // packets may come twice: the mailbox closes while some are on their way
}

func newBoxed(t *testing.T, ip string) *boxed {
	t.Helper()
	b := &boxed{t: t}
	for i := range b.ls {
		b.ls[i] = mustUDP(t, netip.MustParseAddr(ip))
		t.Cleanup(func() { b.ls[i].Close() })
	}
	var err error
	if b.path, err = b.ls[0].Path(b.ls[1].Attr().Local); err != nil {
		t.Fatal(err)
	}
	if b.back, err = b.ls[1].Path(b.ls[0].Attr().Local); err != nil {
		t.Fatal(err)
	}
	if n, err := b.ls[1].Connected(); n == 0 {
		t.Skip(err)
	}
	if _, err := b.ls[1].Mailboxes(); err != nil {
		t.Skip(err)
	}
	b.s = b.ls[1].peers[b.ls[0].Attr().Local].socket
	b.warm()
	return b
}

// warm sends single packets until the mailbox is open.
func (b *boxed) warm() {
	b.t.Helper()
	for range plainAfter + 8 {
		b.send(64)
		b.take()
	}
	if n, _ := b.ls[1].Mailboxes(); n != 1 {
		b.t.Fatalf("%d mailboxes open after packets that came alone: %+v", n, b.s.alone)
	}
}

// send sends packets of these lengths, each by itself and numbered.
func (b *boxed) send(sizes ...int) {
	b.t.Helper()
	for _, size := range sizes {
		if b.ls[0].TxAlloc(b.one[:1]) != 1 {
			b.t.Fatal("no frame")
		}
		f := &b.one[0]
		f.Len, f.Path = size, &b.path
		for i := range f.Data[:size] {
			f.Data[i] = byte(uint32(i)*7 + b.sent)
		}
		binary.LittleEndian.PutUint32(f.Data, b.sent)
		clear(f.Data[size-4 : size]) // where the link corrects the ICRC for the identification
		b.sent++
		if b.ls[0].Tx(b.one[:1]) != 1 {
			b.t.Fatal("not sent")
		}
	}
}

// take receives what was sent, in order, and then looks in vain.
func (b *boxed) take() {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); b.got != b.sent; {
		if b.look() == 0 && time.Now().After(end) {
			b.t.Fatalf("%d of %d packets came: %+v", b.got, b.sent, b.s.alone)
		}
	}
	for range 3 {
		if b.look() > 0 && !b.repeats {
			b.t.Fatal("a packet more than was sent")
		}
	}
}

func (b *boxed) look() int {
	b.t.Helper()
	n := b.ls[1].Rx(b.rx[:])
	for i := range b.rx[:n] {
		f := &b.rx[i]
		if b.repeats && binary.LittleEndian.Uint32(f.Data) < b.got {
			continue
		}
		if at := binary.LittleEndian.Uint32(f.Data); at != b.got || f.Src != b.ls[0].Attr().Local {
			b.t.Fatalf("packet %d from %v, want %d", at, f.Src, b.got)
		}
		for i := 4; i < f.Len-4; i++ {
			if f.Data[i] != byte(uint32(i)*7+b.got) {
				b.t.Fatalf("packet %d of %d bytes: byte %d is %#x", b.got, f.Len, i, f.Data[i])
			}
		}
		b.got++
	}
	return n
}

func (b *boxed) tickets() uint32 { return atomic.LoadUint32(b.s.box.word(boxHead)) }

// Packets of all lengths, through the mailbox and past it, keep their order and bytes.
func TestMailboxKeepsOrder(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			b := newBoxed(t, ip)
			before := b.tickets()
			for size := 12; size <= slotMost+4; size += 4 {
				b.send(size)
				b.take()
			}
			if n := b.tickets() - before; n != (slotMost-12)/4+1 {
				t.Errorf("%d packets came through the mailbox", n)
			}
			r := rand.New(rand.NewPCG(1, 2))
			for range 2000 {
				if !b.s.box.opened {
					b.warm()
				}
				for range 1 + r.IntN(3) { // three in a row keep it open
					b.send([]int{16, 128, slotMost, slotMost + 4, 4000}[r.IntN(5)])
				}
				b.take()
			}
		})
	}
}

// What finds no room in the mailbox comes through the socket, behind it.
// A packet that reaches the socket while the mailbox opens, before its count was read or
// after, neither stays there nor makes long packets late that come through the socket later.
func TestMailboxOpensBesideAPacket(t *testing.T) {
	for _, counted := range []bool{false, true} {
		b := newBoxed(t, "127.0.0.1")
		box := &b.s.box
		box.close()
		passed := box.passed()
		b.send(2000)
		for end := time.Now().Add(10 * time.Second); box.passed() == passed; {
			if time.Now().After(end) {
				t.Fatal("the filter never saw the packet")
			}
		}
		if counted {
			passed = box.passed()
		}
		box.open(passed)
		b.take()
		for range 12 {
			b.send(2000, 64)
			for looks := 0; b.got != b.sent; looks++ {
				if b.look(); looks == boxEvery/2 && box.opened {
					t.Fatalf("counted %v: packet %d waits for the look that every %dth call takes: taken %d of %d",
						counted, b.got, boxEvery, box.taken, box.passed())
				}
			}
			b.take()
		}
	}
}

// What a closed mailbox still has comes before what its socket has.
func TestMailboxClosedWithAPacket(t *testing.T) {
	b := newBoxed(t, "127.0.0.1")
	for range 20 {
		b.warm()
		b.send(64)
		for end := time.Now().Add(10 * time.Second); !b.s.box.arrived(); {
			if time.Now().After(end) {
				t.Fatal("the packet never came")
			}
		}
		b.s.box.close()
		b.ls[1].hot = b.ls[1].sockets[0] // another peer's turn
		b.send(64)
		b.take()
	}
}

func TestMailboxFull(t *testing.T) {
	b := newBoxed(t, "127.0.0.1")
	b.repeats = true
	for range 5 {
		before := b.tickets()
		for range 3 * boxSlots {
			b.send(100)
		}
		if n := b.tickets() - before; n == 0 || n > boxMost {
			t.Errorf("%d packets in a mailbox that takes %d", n, boxMost)
		}
		b.take()
		if b.s.box.opened || b.s.plain {
			t.Error("many in a row left the mailbox open")
		}
		b.warm()
	}
}

// A packet that passed the filter and was dropped behind it, as by a full socket, stops
// nothing.
func TestMailboxMissesOne(t *testing.T) {
	b := newBoxed(t, "127.0.0.1")
	for range 5 {
		atomic.AddUint32(b.s.box.word(boxPassed), 1)
		b.send(100)
		b.take()
		b.send(4000)
		b.take()
	}
	if !b.s.box.opened {
		t.Error("the mailbox is closed")
	}
}

// A peer's packets do not reach the next one that gets its socket.
func TestMailboxOfAnother(t *testing.T) {
	b := newBoxed(t, "127.0.0.1")
	before := b.tickets()
	b.send(100, 100)
	for end := time.Now().Add(10 * time.Second); b.tickets() != before+2; {
		if time.Now().After(end) {
			t.Fatal("the packets did not come")
		}
	}
	b.ls[1].ClosePath(&b.back)
	b.got = b.sent
	for range 3 {
		b.look()
	}
	var err error
	if b.back, err = b.ls[1].Path(b.ls[0].Attr().Local); err != nil {
		t.Fatal(err)
	}
	b.s = b.ls[1].peers[b.ls[0].Attr().Local].socket
	b.take()
	b.warm()
}

// TestMailboxWakes: a loop that goes to sleep while packets come through the mailbox is
// woken, or told that it must not sleep. Packets may come twice there.
func TestMailboxWakes(t *testing.T) {
	b := newBoxed(t, "127.0.0.1")
	l := b.ls[1]
	const packets = 2000
	var seen atomic.Uint32
	next := b.sent
	seen.Store(next - 1)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		f := make([]Frame, 1)
		for i := range uint32(packets) {
			if b.ls[0].TxAlloc(f) != 1 {
				return
			}
			f[0].Len, f[0].Path = 64, &b.path
			binary.LittleEndian.PutUint32(f[0].Data, next+i)
			if b.ls[0].Tx(f) != 1 {
				return
			}
			for int32(seen.Load()-next-i) < 0 {
				runtime.Gosched()
			}
		}
	}()
	defer func() { <-sent }()
	want, wasOpen := next, false
	defer func() { seen.Store(next + packets) }() // before that one
	look := func() int {
		n := l.Rx(b.rx[:])
		wasOpen = wasOpen || b.s.box.opened
		for i := range b.rx[:n] {
			switch at := binary.LittleEndian.Uint32(b.rx[i].Data); at {
			case want:
				seen.Store(want)
				want++
			case want - 1: // twice
			default:
				t.Fatalf("packet %d, want %d", at, want)
			}
		}
		return n
	}
	for looks := 0; want != next+packets; {
		if looks++; look() > 0 || looks%int(1+want%7) != 0 || !l.Arm() {
			continue
		}
		fds := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}}
		if k, err := unix.Poll(fds, 5000); k == 0 && err == nil {
			t.Fatalf("asleep, and packet %d has come: %+v", want, b.s.alone)
		}
		if want%97 == 0 { // long enough to spin again
			for end := want + 60; want != next+packets && int32(want-end) < 0; {
				look()
			}
		}
	}
	if !wasOpen {
		t.Error("the mailbox was never open")
	}
}
