package porttest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// peerEnv holds "ROLE KIND URL" for a process that is a peer of a test.
const peerEnv = "MILLRACE_PORTTEST_PEER"

// PeerMain is for TestMain: where this process was started as a peer by
// SurvivesKilledPeer, it plays that role and exits.
func PeerMain(kinds map[string]func() dpdk.Pairs) {
	f := strings.Fields(os.Getenv(peerEnv))
	if len(f) == 0 {
		return
	}
	run := peerMain
	if f[0] == "flood" || f[0] == "forward" {
		run = floodMain
	}
	if err := run(f[0], kinds[f[1]](), f[2]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func peerMain(role string, pairs dpdk.Pairs, url string) error {
	l, stop, err := newLoop(pairs)
	if err != nil {
		return err
	}
	if role == "serve" {
		ln, err := l.Listen(url, &pong{})
		if err != nil {
			return err
		}
		fmt.Println(ln.URL())
	} else {
		c, err := dialPing(l, url)
		if err != nil {
			return err
		}
		fmt.Println(url)
		go c.keepOn()
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent is gone
	return stop()
}

func newLoop(pairs dpdk.Pairs) (l *netpoll.Loop, stop func() error, err error) {
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 32 << 20})
	if err != nil {
		return nil, nil, err
	}
	l, err = netpoll.NewLoop(netpoll.Options{
		Pool: hugepages.NewPool(arena), Idle: netpoll.Balanced(),
		Backends: []netpoll.Backend{dpdk.NewEventLoop(pairs, rdma.EventLoopOptions{})},
	})
	if err != nil {
		return nil, nil, errors.Join(err, arena.Close())
	}
	run := make(chan error, 1)
	go func() { run <- l.Run() }()
	return l, func() error {
		l.Stop()
		return errors.Join(<-run, arena.Close())
	}, nil
}

// pong sends back what arrives; closed, if any, is told of closed connections.
type pong struct {
	netpoll.BaseHandler
	closed chan error
}

func (h *pong) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if err := sendMessage(c, ms[i].Data); err != nil && !errors.Is(err, netpoll.ErrBackpressure) {
			c.Close(err)
			return
		}
	}
}

func (h *pong) OnClose(_ *netpoll.Conn, err error) {
	if h.closed != nil {
		h.closed <- err
	}
}

func sendMessage(c *netpoll.Conn, p []byte) error {
	b, err := c.Alloc(len(p))
	if err != nil {
		return err
	}
	copy(b.Bytes(), p)
	if err := c.Send(b); err != nil {
		b.Release()
		return err
	}
	return nil
}

// pinger is the dialling end.
type pinger struct {
	netpoll.BaseHandler
	loop   *netpoll.Loop
	conn   *netpoll.Conn
	got    chan []byte
	closed chan error
}

func dialPing(l *netpoll.Loop, url string) (*pinger, error) {
	h := &pinger{loop: l, got: make(chan []byte, 64), closed: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), peerPatience)
	defer cancel()
	c, err := l.Dial(ctx, url, h)
	h.conn = c
	return h, err
}

func (h *pinger) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		select {
		case h.got <- append([]byte{}, ms[i].Data...):
		default:
		}
	}
}
func (h *pinger) OnClose(_ *netpoll.Conn, err error) { h.closed <- err }

// ping is one round trip. What closed tells stays there.
func (h *pinger) ping() error {
	want := bytes.Repeat([]byte{7}, 1000)
	sent := make(chan error, 1)
	if err := h.loop.Do(func() { sent <- sendMessage(h.conn, want) }); err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	select {
	case got := <-h.got:
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%d other bytes came back", len(got))
		}
		return nil
	case err := <-h.closed:
		h.closed <- err
		return fmt.Errorf("the connection closed: %w", err)
	case <-time.After(peerPatience):
		return errors.New("nothing came back")
	}
}

func (h *pinger) keepOn() {
	for h.ping() == nil {
	}
}

// peerPatience bounds every wait for the other process.
const peerPatience = 10 * time.Second

// peerTemp is where peers keep their sockets. t.TempDir has too long names for them.
func peerTemp(t testing.TB) string {
	t.Helper()
	tmp, err := os.MkdirTemp("", "millrace-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	return tmp
}

type peerProcess struct {
	cmd *exec.Cmd
	in  io.Closer // its end is the peer's
	url string
}

func startPeer(t testing.TB, tmp, role, kind, url string) *peerProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), peerEnv+"="+role+" "+kind+" "+url, "TMPDIR="+tmp)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &peerProcess{cmd: cmd, in: in}
	t.Cleanup(func() {
		_ = in.Close()
		p.kill()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the peer process ended: %v", err)
	}
	p.url = strings.TrimSpace(line)
	return p
}

func (p *peerProcess) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// leavings are files that processes with ports may leave behind.
func leavings(t *testing.T, tmp string) (files []string) {
	t.Helper()
	for _, pattern := range []string{filepath.Join(tmp, "*"), filepath.Join(tmp, ".*"), "/dev/hugepages/*", "/run/dpdk/*", "/var/run/dpdk/*", "/dev/shm/*millrace*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	return files
}

// SurvivesKilledPeer shows that the end of a peer process by SIGKILL closes the
// connection at this end with a reason, whichever end listens, and that a peer
// started anew is reached; and that the files of killed processes go with the next one
// that comes and ends in order. pairs makes this process's ports; kind names those of
// the peer among the kinds that PeerMain got.
func SurvivesKilledPeer(t *testing.T, pairs func() dpdk.Pairs, kind string) {
	closes := func(t *testing.T, closed <-chan error) {
		t.Helper()
		select {
		case err := <-closed:
			if err == nil {
				t.Error("the connection closed as if in order")
			}
		case <-time.After(peerPatience):
			t.Fatal("the connection outlives its peer")
		}
	}
	loop := func(t *testing.T) *netpoll.Loop {
		t.Helper()
		l, stop, err := newLoop(pairs())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
		return l
	}
	// endsWell has one more peer come and go in order.
	endsWell := func(t *testing.T, tmp string, before []string, p *peerProcess) {
		t.Helper()
		if err := errors.Join(p.in.Close(), p.cmd.Wait()); err != nil {
			t.Errorf("the last peer: %v", err)
		}
		for _, f := range leavings(t, tmp) {
			if !slices.Contains(before, f) {
				t.Errorf("%s was left behind", f)
			}
		}
	}
	t.Run("the server is killed and started again", func(t *testing.T) {
		l := loop(t)
		url := "dpdk://127.0.0.1:0"
		tmp := peerTemp(t)
		before := leavings(t, tmp)
		for range killRounds {
			p := startPeer(t, tmp, "serve", kind, url)
			url = p.url // the next one listens at the same port
			h, err := dialPing(l, url)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.ping(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				h.keepOn() // so that it dies with messages under way
			}()
			p.kill()
			<-ended
			closes(t, h.closed)
		}
		p := startPeer(t, tmp, "serve", kind, url)
		h, err := dialPing(l, p.url) // makes it keep sockets
		if err != nil {
			t.Fatal(err)
		}
		endsWell(t, tmp, before, p)
		<-h.closed
	})
	t.Run("the client is killed and comes again", func(t *testing.T) {
		l := loop(t)
		tmp := peerTemp(t)
		before := leavings(t, tmp)
		h := &pong{closed: make(chan error, killRounds+1)}
		ln, err := l.Listen("dpdk://127.0.0.1:0", h)
		if err != nil {
			t.Fatal(err)
		}
		for range killRounds {
			startPeer(t, tmp, "dial", kind, ln.URL()).kill()
			closes(t, h.closed)
		}
		endsWell(t, tmp, before, startPeer(t, tmp, "dial", kind, ln.URL()))
		<-h.closed
	})
}
