package rdma_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

const peerProcessEnv = "MILLRACE_TEST_PEER_OF"

// peerProcess dials url and streams messages to it until it is killed.
func peerProcess(url string) error {
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 16 << 20, Backing: hugepages.Ordinary})
	if err != nil {
		return err
	}
	el := rdma.NewEventLoop(softroce.NewFabric(loopback, softroce.Options{}), rdma.EventLoopOptions{})
	loop, err := netpoll.NewLoop(netpoll.Options{Pool: hugepages.NewPool(arena), Backends: []netpoll.Backend{el}})
	if err != nil {
		return err
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s := &streamer{size: 20_000, left: 1 << 30}
		c, err := loop.Dial(ctx, url, s)
		if err != nil {
			loop.Stop()
			return
		}
		_ = loop.Do(func() { s.OnWritable(c) })
	}()
	return loop.Run()
}

// TestPeerProcess: a peer whose process is killed is noticed through its bootstrap
// connection, which the kernel closes; one that only stands still, by the first
// message that it does not acknowledge. Either way messages under way are cut off,
// the reason is readable, and every buffer comes back (see testPool).
func TestPeerProcess(t *testing.T) {
	for _, tc := range []struct {
		signal  syscall.Signal
		timeout time.Duration // of the peer; one that only waits for a processor must not reach it
		text    string
	}{
		{syscall.SIGKILL, 10 * time.Second, "died or cannot be reached"},
		{syscall.SIGSTOP, time.Second, "the peer stands still"},
	} {
		t.Run(tc.signal.String(), func(t *testing.T) {
			server := startNode(t, nodeOptions{fabric: softroce.NewFabric(loopback, softroce.Options{PeerTimeout: tc.timeout})})
			h := &talker{got: make(chan *netpoll.Conn, 1), closed: make(chan error, 1), silent: tc.signal == syscall.SIGSTOP}
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), peerProcessEnv+"="+server.listen(h))
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			var c *netpoll.Conn
			select {
			case c = <-h.got:
			case err := <-h.closed:
				t.Fatal(err)
			case <-time.After(10 * time.Second):
				t.Fatal("nothing came from the peer process")
			}
			if err := cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			if h.silent {
				// Its threads stop one by one; wait for the last.
				var status syscall.WaitStatus
				if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
					t.Fatalf("not stopped: %v, status %#x", err, status)
				}
				server.do(func() {
					if err := sendCopy(c, []byte("anybody there?")); err != nil {
						t.Error(err)
					}
				})
			}
			select {
			case err := <-h.closed:
				if err == nil || !strings.Contains(err.Error(), tc.text) {
					t.Errorf("closed with %v, want %q", err, tc.text)
				}
				if tc.signal == syscall.SIGKILL && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("closed with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no OnClose")
			}
		})
	}
}

// talker sends whenever it may, unless it is silent, and tells when a hundred
// messages have come.
type talker struct {
	streamer
	silent   bool
	messages int
	got      chan *netpoll.Conn
	closed   chan error
}

func (h *talker) OnOpen(c *netpoll.Conn) {
	if !h.silent {
		h.size, h.left = 5000, 1<<30
		h.OnWritable(c)
	}
}

func (h *talker) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for range ms {
		if h.messages++; h.messages == 100 {
			h.got <- c
		}
	}
}

func (h *talker) OnClose(_ *netpoll.Conn, err error) { h.closed <- err }
