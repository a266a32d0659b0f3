//go:build dpdk && cgo

package eal

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
)

// A peer is this test binary in a process of its own: a client of the interface
// described on its command line that does what MILLRACE_EAL_PEER says.
type peerConfig struct {
	What  string // echo, flood
	Memif Memif
	CPU   int // pin to it; -1: no
}

func peerMain(arg string) int {
	var cfg peerConfig
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if cfg.CPU >= 0 {
		var set unix.CPUSet
		set.Set(cfg.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		runtime.GOMAXPROCS(1)
	}
	p, _, err := NewMemif(context.Background(), MemifConfig{Role: Client, Socket: cfg.Memif.Socket, ID: cfg.Memif.ID, Secret: cfg.Memif.Secret})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	fmt.Println("up")
	// The parent holds the other end of standard input, whatever becomes of it.
	var orphan atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		orphan.Store(true)
	}()
	for i := 0; ; i++ {
		if cfg.What == "echo" {
			echo(p)
		} else {
			flood(p)
		}
		if i%4096 == 0 && (!p.Up() || orphan.Load()) {
			if err := p.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		}
	}
}

// echo sends back what arrived, and loses nothing as long as the link is up.
func echo(p Port) {
	var rx, tx [32]dpdk.Frame
	n := p.RxBurst(rx[:])
	if n == 0 {
		return
	}
	for done := 0; done < n; {
		m := p.AllocBurst(tx[done:n])
		for i := done; i < done+m; i++ {
			tx[i].Len = copy(tx[i].Data, rx[i].Data[:rx[i].Len])
		}
		sent := p.TxBurst(tx[done : done+m])
		p.FreeBurst(tx[done+sent : done+m])
		done += sent
		if sent < m && !p.Up() {
			break
		}
	}
	p.FreeBurst(rx[:n])
}

// flood sends as much as fits and drops what arrives.
func flood(p dpdk.Port) (received int) {
	var f [64]dpdk.Frame
	n := p.AllocBurst(f[:])
	for i := range n {
		f[i].Len = 64 + i*32
	}
	sent := p.TxBurst(f[:n])
	p.FreeBurst(f[sent:n])
	n = p.RxBurst(f[:])
	p.FreeBurst(f[:n])
	return n
}

// floodUntil floods until so many frames have come.
func floodUntil(t *testing.T, p Port, frames int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for received := 0; received < frames; received += flood(p) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d frames came; link up: %v", received, frames, p.Up())
		}
	}
}

// startPeer starts a peer process of p and waits until it says that it is up.
func startPeer(t testing.TB, cfg peerConfig) *exec.Cmd {
	t.Helper()
	arg, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MILLRACE_EAL_PEER="+string(arg))
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // closed by Wait, or with this process
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "up\n" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("peer said %q: %v", line, err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return cmd
}

// A peer that is killed in the middle of bursts both ways must not take this
// process with it: net_memif unmaps the shared memory on libdpdk's interrupt
// thread, which used to pull it from under a burst.
func TestSurvivesKilledPeer(t *testing.T) {
	start(t)
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	for i := range rounds {
		p, where, err := NewMemif(t.Context(), MemifConfig{Role: Server})
		if err != nil {
			t.Fatal(err)
		}
		cmd := startPeer(t, peerConfig{What: "flood", Memif: where, CPU: -1})
		floodUntil(t, p, 5000)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for p.Up() {
			for range 100 {
				flood(p)
			}
			if time.Now().After(deadline) {
				t.Fatal("the link stays up without its peer")
			}
		}
		for range 1000 {
			flood(p)
		}
		cmd.Wait()
		if err := p.Close(); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// The server end is killed: the client, which owns the memory, survives as well.
func TestClientSeesOrderlyEnd(t *testing.T) {
	start(t)
	p, where, err := NewMemif(t.Context(), MemifConfig{Role: Server})
	if err != nil {
		t.Fatal(err)
	}
	cmd := startPeer(t, peerConfig{What: "flood", Memif: where, CPU: -1})
	floodUntil(t, p, 1000)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the client ended with %v", err)
	}
}
