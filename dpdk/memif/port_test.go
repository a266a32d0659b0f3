package memif

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/porttest"
)

// PeerKinds is what the external tests of this package start in other processes.
var PeerKinds map[string]func() dpdk.Pairs

func TestMain(m *testing.M) {
	porttest.PeerMain(PeerKinds)
	goleak.VerifyTestMain(m)
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// pair is a server and a client connected over a socket in a temporary folder.
func pair(t testing.TB, cfg Config) (server, client *Port) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	server, err := Serve(path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if client, err = Connect(testCtx(t), path, cfg); err != nil {
		t.Fatal(err)
	}
	waitUp(t, server)
	t.Cleanup(func() {
		if err := errors.Join(client.Close(), server.Close()); err != nil {
			t.Error(err)
		}
	})
	return server, client
}

func waitUp(t testing.TB, p *Port) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !p.Up(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no client: %v", p.Err())
		}
	}
}

func send(p *Port, data []byte) bool {
	var f [1]dpdk.Frame
	if p.AllocBurst(f[:]) == 0 {
		return false
	}
	f[0].Len = copy(f[0].Data, data)
	return p.TxBurst(f[:]) == 1
}

func TestBothWaysAcrossRingWraps(t *testing.T) {
	for _, dir := range []string{"client to server", "server to client"} {
		t.Run(dir, func(t *testing.T) {
			s, c := pair(t, Config{RingLog2: 4, BufferBytes: 256})
			from, to := c, s
			if dir == "server to client" {
				from, to = s, c
			}
			rng := rand.New(rand.NewPCG(7, 7))
			const total = 100_000 // the 16-bit indices wrap
			var tx, rx [32]dpdk.Frame
			sent, got := 0, 0
			for got < total {
				n := from.AllocBurst(tx[:1+rng.IntN(len(tx))])
				use := min(n, total-sent)
				if use > 0 && rng.IntN(4) == 0 {
					use = rng.IntN(use + 1)
				}
				for i := range use {
					size := 9 + rng.IntN(200)
					binary.LittleEndian.PutUint64(tx[i].Data, uint64(sent+i))
					tx[i].Len = size
					tx[i].Data[size-1] = byte(sent + i)
				}
				from.FreeBurst(tx[use:n])
				if k := from.TxBurst(tx[:use]); k != use {
					t.Fatalf("sent %d of %d allocated frames", k, use)
				}
				sent += use
				k := to.RxBurst(rx[:1+rng.IntN(len(rx))])
				for i := range k {
					f := rx[i]
					if v := binary.LittleEndian.Uint64(f.Data); v != uint64(got) || f.Data[f.Len-1] != byte(got) {
						t.Fatalf("frame %d: got %d", got, v)
					}
					got++
				}
				rng.Shuffle(k, func(a, b int) { rx[a], rx[b] = rx[b], rx[a] }) // freed in any order
				to.FreeBurst(rx[:k])
			}
			if bad := to.Stats().BadDescriptors + to.Stats().PeerLies + from.Stats().PeerLies; bad != 0 {
				t.Errorf("%d protocol errors between two good ends", bad)
			}
		})
	}
}

func TestFullRingRefuses(t *testing.T) {
	s, c := pair(t, Config{RingLog2: 3, BufferBytes: 128})
	for _, p := range []*Port{s, c} {
		n := 0
		for send(p, []byte("x")) {
			if n++; n > 8 {
				t.Fatal("a ring of 8 took more")
			}
		}
		if n != 8 {
			t.Fatalf("took %d of 8", n)
		}
	}
	var rx [1]dpdk.Frame
	if s.RxBurst(rx[:]) != 1 {
		t.Fatal("nothing received")
	}
	if send(c, []byte("y")) {
		t.Fatal("a slot whose frame the receiver still holds was reused")
	}
	s.FreeBurst(rx[:])
	if !send(c, []byte("y")) {
		t.Fatal("a freed slot was not reusable")
	}
}

// A frame that is given back in front of others still to be sent must not hold
// them up, and the peer must not see it.
func TestVoidedFrame(t *testing.T) {
	s, c := pair(t, Config{RingLog2: 3, BufferBytes: 128})
	for _, dir := range [][2]*Port{{s, c}, {c, s}} {
		for round := range 20 {
			var f [3]dpdk.Frame
			if dir[0].AllocBurst(f[:]) != 3 {
				t.Fatal("alloc")
			}
			dir[0].FreeBurst(f[:1])
			f[1].Len = copy(f[1].Data, "kept")
			f[2].Len = copy(f[2].Data, "also")
			dir[0].TxBurst(f[1:])
			var rx [4]dpdk.Frame
			n := dir[1].RxBurst(rx[:])
			if n != 2 || string(rx[0].Data[:rx[0].Len]) != "kept" || string(rx[1].Data[:rx[1].Len]) != "also" {
				t.Fatalf("round %d: %d frames", round, n)
			}
			dir[1].FreeBurst(rx[:n])
		}
	}
}

// readable reports whether fd is readable within d.
func readable(t *testing.T, fd int, d time.Duration) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	}
}

func TestKickOnlyWhenArmed(t *testing.T) {
	s, c := pair(t, Config{})
	for _, dir := range [][2]*Port{{s, c}, {c, s}} {
		from, to := dir[0], dir[1]
		var rx [4]dpdk.Frame
		send(from, []byte("a"))
		if from.Stats().Kicks != 0 {
			t.Fatal("kicked a polling peer")
		}
		if to.Arm() {
			t.Fatal("armed over a waiting frame and called it idle")
		}
		to.FreeBurst(rx[:to.RxBurst(rx[:])])
		if !to.Arm() {
			t.Fatal("not idle with an empty ring")
		}
		if readable(t, to.Info().FD, 0) {
			t.Fatal("readable without a kick")
		}
		send(from, []byte("b"))
		if !readable(t, to.Info().FD, 5*time.Second) {
			t.Fatal("no kick for an armed peer")
		}
		to.FreeBurst(rx[:to.RxBurst(rx[:])])
		send(from, []byte("c"))
		to.FreeBurst(rx[:to.RxBurst(rx[:])])
		if from.Stats().Kicks != 1 {
			t.Fatalf("%d kicks, want 1", from.Stats().Kicks)
		}
		if !to.Arm() || readable(t, to.Info().FD, 0) {
			t.Fatal("the old kick was not taken back")
		}
	}
}

// A sleeper that says so is kicked once, however much comes until it wakes; one of
// another implementation, which sets the flag only once, with every burst.
func TestOneKickForASleeper(t *testing.T) {
	s, c := pair(t, Config{})
	for _, dir := range [][2]*Port{{s, c}, {c, s}} {
		from, to := dir[0], dir[1]
		for round := range uint64(3) {
			if !to.Arm() {
				t.Fatal("not idle")
			}
			for range 5 {
				send(from, []byte("x"))
			}
			if n := from.Stats().Kicks; n != round+1 {
				t.Fatalf("%d kicks for %d sleeps", n, round+1)
			}
			if !readable(t, to.Info().FD, 5*time.Second) {
				t.Fatal("no kick")
			}
			var rx [8]dpdk.Frame
			to.FreeBurst(rx[:to.RxBurst(rx[:])])
		}
		atomic.AndUint32(to.rx.flagsHead, ^uint32(flagOnce|flagMaskInterrupt))
		for range 5 {
			send(from, []byte("x"))
		}
		if n := from.Stats().Kicks; n != 3+5 {
			t.Fatalf("%d kicks, want %d", n, 3+5)
		}
	}
}

func TestTotals(t *testing.T) {
	before := Totals()
	s, c := pair(t, Config{})
	s.Arm()
	send(c, []byte("x"))
	c.rx.advanceHead(40_000) // more on offer than there is
	var f [8]dpdk.Frame
	s.FreeBurst(f[:s.RxBurst(f[:])])
	s.AllocBurst(f[:])
	s.Arm()
	c.Arm()
	now := Totals()
	if now.RxFrames == before.RxFrames || now.TxFrames == before.TxFrames || now.Kicks == before.Kicks || now.PeerLies == before.PeerLies {
		t.Errorf("%+v\nbefore: %+v", now, before)
	}
}

// Whoever watches the word sees everything that arrives, also what came before the
// watch began.
func TestWatch(t *testing.T) {
	s, c := pair(t, Config{})
	for _, dir := range [][2]*Port{{s, c}, {c, s}} {
		from, to := dir[0], dir[1]
		arrived := func(ws []dpdk.Watched) bool { return atomic.LoadUint32(ws[0].Word) != ws[0].Value }
		for range 3 {
			ws, ok := to.Watch(nil)
			if !ok || len(ws) != 1 || arrived(ws) {
				t.Fatalf("%v %v", ws, ok)
			}
			send(from, []byte("x"))
			if !arrived(ws) {
				t.Fatal("not seen")
			}
			if ws, _ = to.Watch(nil); !arrived(ws) {
				t.Fatal("what had come was not seen")
			}
			var rx [4]dpdk.Frame
			to.FreeBurst(rx[:to.RxBurst(rx[:])])
		}
	}
}

// No packet may lie in the ring of a sleeper.
func TestSleepNeverMissesAPacket(t *testing.T) {
	s, c := pair(t, Config{RingLog2: 4, BufferBytes: 128})
	const n = 5_000
	done := make(chan bool)
	go func() {
		defer close(done)
		var rx [4]dpdk.Frame
		for got := 0; got < n; {
			k := s.RxBurst(rx[:])
			s.FreeBurst(rx[:k])
			if got += k; k == 0 && s.Arm() && !readable(t, s.Info().FD, 5*time.Second) {
				t.Errorf("slept through packet %d", got)
				return
			}
		}
	}()
	for i := 0; i < n; {
		if send(c, []byte("ping")) {
			i++
			if i%7 == 0 {
				time.Sleep(time.Microsecond)
			}
		} else {
			time.Sleep(time.Microsecond)
		}
		select {
		case <-done:
			if i < n {
				t.Fatal("receiver ended early")
			}
		default:
		}
	}
	<-done
}

func TestPeerGone(t *testing.T) {
	s, c := pair(t, Config{})
	send(c, []byte("last words"))
	s.Arm()
	var rx [4]dpdk.Frame
	s.FreeBurst(rx[:s.RxBurst(rx[:])])
	s.Arm()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Gone():
	case <-time.After(5 * time.Second):
		t.Fatal("the end of the peer went unnoticed")
	}
	if s.Err() == nil || !strings.Contains(s.Err().Error(), "disconnected: closed") {
		t.Errorf("reason %v", s.Err())
	}
	if !readable(t, s.Info().FD, 5*time.Second) {
		t.Error("a sleeping owner was not woken")
	}
	for range 1000 { // the mapping is still there
		send(s, []byte("into the void"))
		s.RxBurst(rx[:])
	}
}

// Whatever a client writes into the shared rings, the server only drops and
// counts.
func TestLyingPeer(t *testing.T) {
	lie := map[string]func(*Port){
		"region":              func(c *Port) { c.tx.write(0, descriptor{region: 9, length: 10}); c.tx.advanceHead(1) },
		"offset":              func(c *Port) { c.tx.write(0, descriptor{offset: 1<<32 - 1, length: 1<<32 - 1}); c.tx.advanceHead(1) },
		"chain":               func(c *Port) { c.tx.write(0, descriptor{flags: descFlagNext, length: 10}); c.tx.advanceHead(1) },
		"empty":               func(c *Port) { c.tx.write(0, descriptor{}); c.tx.advanceHead(1) },
		"head":                func(c *Port) { c.tx.advanceHead(40_000) },
		"offer":               func(c *Port) { c.rx.advanceHead(40_000) },
		"offer of nothing":    func(c *Port) { c.rx.write(0, descriptor{}) },
		"offer of too little": func(c *Port) { c.rx.write(0, descriptor{offset: 8192, length: 100}) },
		"offer where":         func(c *Port) { c.rx.write(0, descriptor{region: 3, length: 1 << 20}) },
	}
	for name, f := range lie {
		t.Run(name, func(t *testing.T) {
			s, c := pair(t, Config{})
			f(c)
			var rx, tx [8]dpdk.Frame
			if n := s.RxBurst(rx[:]); n != 0 {
				t.Fatalf("%d frames out of a lie", n)
			}
			s.AllocBurst(tx[:])
			if st := s.Stats(); st.BadDescriptors+st.PeerLies == 0 {
				t.Error("not counted")
			}
		})
	}
	t.Run("server's tail", func(t *testing.T) {
		s, c := pair(t, Config{})
		s.tx.setTail(40_000)
		var rx [8]dpdk.Frame
		if c.RxBurst(rx[:]) != 0 || c.Stats().PeerLies == 0 {
			t.Error("believed")
		}
		s, c = pair(t, Config{})
		s.rx.setTail(40_000)
		for c.AllocBurst(rx[:]) > 0 { // it looks when what it knows of is used up
		}
		if c.Stats().PeerLies == 0 {
			t.Error("believed")
		}
	})
	t.Run("server's length", func(t *testing.T) {
		s, c := pair(t, Config{})
		s.tx.setLength(0, 1<<31)
		s.tx.setTail(1)
		var rx [8]dpdk.Frame
		if c.RxBurst(rx[:]) != 0 || c.Stats().BadDescriptors != 1 {
			t.Error("believed")
		}
	})
}

func TestRefusals(t *testing.T) {
	serve := func(t *testing.T, cfg Config) (*Port, string) {
		path := filepath.Join(t.TempDir(), "s")
		p, err := Serve(path, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Errorf("socket left behind: %v", err)
			}
		})
		return p, path
	}
	t.Run("secret", func(t *testing.T) {
		p, path := serve(t, Config{Secret: "right"})
		_, err := Connect(testCtx(t), path, Config{Secret: "wrong"})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "incorrect secret") {
			t.Fatalf("got %v", err)
		}
		// The right one still comes in.
		c, err := Connect(testCtx(t), path, Config{Secret: "right"})
		if err != nil {
			t.Fatal(err)
		}
		waitUp(t, p)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("no server", func(t *testing.T) {
		if _, err := Connect(testCtx(t), filepath.Join(t.TempDir(), "none"), Config{}); err == nil || !strings.Contains(err.Error(), "is the server running") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("path taken", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Serve(path, Config{}); err == nil || !strings.Contains(err.Error(), "must be new") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("silent server", func(t *testing.T) {
		ln, err := net.Listen("unixpacket", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if _, err := Connect(ctx, ln.Addr().String(), Config{}); err == nil || !strings.Contains(err.Error(), "did not answer") {
			t.Fatalf("Connect: %v", err)
		}
	})
	t.Run("closed while waiting", func(t *testing.T) {
		p, path := serve(t, Config{})
		nc, err := net.Dial("unixpacket", path) // in the middle of a handshake
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		var f [1]dpdk.Frame
		if p.Up() || p.RxBurst(f[:]) != 0 || p.AllocBurst(f[:]) != 0 || !p.Arm() {
			t.Error("a port without a peer must be idle")
		}
	})
	for _, cfg := range []Config{{RingLog2: 15}, {BufferBytes: 10}, {BufferBytes: 1 << 20}, {Name: strings.Repeat("n", 40)}, {Secret: strings.Repeat("s", 40)}} {
		if _, err := Serve(filepath.Join(t.TempDir(), "s"), cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}

// serveByHand is a server, a client's bare connection to it, and a region that the client
// may offer. The caller closes all three.
func serveByHand(t testing.TB) (*Port, net.Conn, *region) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	p, err := Serve(path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRegion(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	return p, nc, r
}

// FuzzServerHandshake plays arbitrary control messages to a server. Descriptors
// go along where the first byte of a message's tail says so.
func FuzzServerHandshake(f *testing.F) {
	seed := func(ms ...*message) {
		var all []byte
		for _, m := range ms {
			all = append(all, m[:]...)
		}
		f.Add(all)
	}
	ini := initialize{version: protocolVersion, name: "fuzz"}.encode()
	reg := addRegion{size: 1 << 16}.encode()
	reg[messageBytes-1] = 1
	s2m := addRing{flags: ringFlagClientToServer, log2: 4}.encode()
	s2m[messageBytes-1] = 1
	m2s := addRing{offset: 4096, log2: 4}.encode()
	m2s[messageBytes-1] = 1
	seed(ini, reg, s2m, m2s, named(typeConnect, "fuzz"))
	seed(ini, reg, named(typeConnect, "fuzz"))
	seed(disconnect("bye"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		p, nc, r := serveByHand(t)
		go func() {
			k := control{nc.(*net.UnixConn)}
			for len(stream) > 0 {
				n := min(messageBytes, len(stream))
				var oob []byte
				if n == messageBytes && stream[n-1]&1 == 1 {
					oob = unix.UnixRights(r.fd)
				}
				if _, _, err := k.c.WriteMsgUnix(stream[:n], oob, nil); err != nil {
					break
				}
				stream = stream[n:]
			}
			_ = k.c.CloseWrite()
		}()
		for !p.Up() && p.Err() == nil {
			time.Sleep(10 * time.Microsecond)
		}
		if p.up.Load() {
			var frames [16]dpdk.Frame
			p.FreeBurst(frames[:p.RxBurst(frames[:])])
			n := p.AllocBurst(frames[:])
			for i := range n {
				frames[i].Len = len(frames[i].Data)
			}
			p.TxBurst(frames[:n])
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		nc.Close()
		r.close()
	})
}

func TestMessagesRoundTrip(t *testing.T) {
	h := hello{name: "n", minVersion: 1, maxVersion: 2, maxRegion: 3, maxM2S: 4, maxS2M: 5, maxLog2Ring: 6}
	if got := decodeHello(h.encode()); got != h {
		t.Errorf("%+v", got)
	}
	i := initialize{version: 512, id: 7, mode: 1, secret: "s", name: "n"}
	if got := decodeInit(i.encode()); got != i {
		t.Errorf("%+v", got)
	}
	a := addRegion{index: 3, size: 1 << 40}
	if got := decodeAddRegion(a.encode()); got != a {
		t.Errorf("%+v", got)
	}
	g := addRing{flags: 1, index: 2, region: 3, offset: 4, log2: 5}
	if got := decodeAddRing(g.encode()); got != g {
		t.Errorf("%+v", got)
	}
	// Layout, from memif.h: type at 0, name at 2, versions at 34 and 36.
	if m := h.encode(); !bytes.Equal(m[:4], []byte{2, 0, 'n', 0}) || m[34] != 1 || m[36] != 2 || m[44] != 6 {
		t.Errorf("hello layout % x", m[:48])
	}
}

func BenchmarkPingPong(b *testing.B) {
	s, c := pair(b, Config{})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		var rx, tx [8]dpdk.Frame
		for spins := 0; ; spins++ {
			if n := s.RxBurst(rx[:]); n > 0 {
				s.FreeBurst(rx[:n])
				s.AllocBurst(tx[:n])
				for i := range n {
					tx[i].Len = 128
				}
				s.TxBurst(tx[:n])
			} else if spins&0xffff == 0 {
				select {
				case <-stop:
					return
				default:
				}
			}
		}
	}()
	var rx, tx [1]dpdk.Frame
	b.ReportAllocs()
	for b.Loop() {
		c.AllocBurst(tx[:])
		tx[0].Len = 128
		c.TxBurst(tx[:])
		for c.RxBurst(rx[:]) == 0 {
		}
		c.FreeBurst(rx[:])
	}
	close(stop)
	<-done
}

// What Place gives goes out with Publish, in order with bursts, until the ring is full;
// and nothing while frames of AllocBurst are out.
func TestPlace(t *testing.T) {
	s, c := pair(t, Config{RingLog2: 3, BufferBytes: 256})
	for _, way := range [][2]*Port{{s, c}, {c, s}} {
		from, to := way[0], way[1]
		var f, g [8]dpdk.Frame
		for lap := range 5 {
			if from.Place(257) != nil {
				t.Fatal("room for more than a frame")
			}
			if from.Place(10) == nil {
				t.Fatal("no room") // and it is not sent
			}
			if from.AllocBurst(f[:1]) != 1 || from.Place(10) != nil {
				t.Fatal("a place behind a frame that is out")
			}
			f[0].Len = copy(f[0].Data, "burst")
			if from.TxBurst(f[:1]) != 1 {
				t.Fatal("burst refused")
			}
			n := 1
			for b := from.Place(20 + n); b != nil; b = from.Place(20 + n) {
				b[0], b[19+n] = byte(n), byte(lap)
				from.Publish()
				n++
			}
			if n != 8 || from.AllocBurst(f[:1]) != 0 {
				t.Fatalf("%d frames fit a ring of 8", n)
			}
			if got := to.RxBurst(g[:]); got != 8 || string(g[0].Data[:g[0].Len]) != "burst" {
				t.Fatalf("%d frames, the first %q", got, g[0].Data[:g[0].Len])
			}
			for i, g := range g[1:] {
				if g.Len != 21+i || g.Data[0] != byte(1+i) || g.Data[20+i] != byte(lap) {
					t.Fatalf("frame %d: %d bytes", i, g.Len)
				}
			}
			to.FreeBurst(g[:])
			to.publishFreed()
		}
	}
}

// A frame that waits alone can be had without a burst, in both directions, across the
// ring's wrap; of several none can.
func TestLone(t *testing.T) {
	server, client := pair(t, Config{RingLog2: 4})
	for _, dir := range []struct{ from, to *Port }{{client, server}, {server, client}} {
		for i := range 100 {
			if dir.to.Lone() != nil {
				t.Fatal("a frame out of nothing")
			}
			n := 1 + i%3
			for k := range n {
				b := dir.from.Place(10 + i)
				if b == nil {
					t.Fatalf("round %d: no room", i)
				}
				b[0], b[9+i] = byte(i), byte(k)
				dir.from.Publish()
			}
			if n == 1 {
				for range 2 { // looking takes nothing
					if b := dir.to.Lone(); len(b) != 10+i || b[0] != byte(i) || b[9+i] != 0 {
						t.Fatalf("round %d: got %d bytes", i, len(b))
					}
				}
				dir.to.Taken()
			} else if dir.to.Lone() != nil {
				t.Fatalf("round %d: one of %d", i, n)
			}
			var rx [4]dpdk.Frame
			got := dir.to.RxBurst(rx[:])
			if n > 1 && got != n || n == 1 && got != 0 {
				t.Fatalf("round %d: a burst of %d, %d were sent", i, got, n)
			}
			for k, f := range rx[:got] {
				if f.Len != 10+i || f.Data[0] != byte(i) || f.Data[9+i] != byte(k) {
					t.Fatalf("round %d: frame %d is another", i, k)
				}
			}
			dir.to.FreeBurst(rx[:got])
			dir.to.Arm() // tells of the freed slots
		}
	}
}
