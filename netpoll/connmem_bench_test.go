package netpoll

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
)

// idlePeersEnv is the address for a process that plays the peers of BenchmarkIdleConnection.
const idlePeersEnv = "MILLRACE_TEST_IDLE_PEERS"

const idleConnections = 10_000

// BenchmarkIdleConnection reports what an open TCP connection takes that has sent and
// received a message and then nothing: of the Go heap, and of the loop's pool. The
// peers are bare sockets of another process. The kernel's part (the socket) is not ours.
func BenchmarkIdleConnection(b *testing.B) {
	var heap, pool float64
	for range b.N {
		buffers := testPool(b, 64<<20)
		l, err := NewLoop(Options{Pool: buffers})
		if err != nil {
			b.Fatal(err)
		}
		run := make(chan error, 1)
		go func() { run <- l.Run() }()
		ln, err := l.Listen("tcp://127.0.0.1:0", plainEcho{})
		if err != nil {
			b.Fatal(err)
		}
		var ms [2]runtime.MemStats
		look := func(i int) (inUse int64) {
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&ms[i])
			for _, n := range buffers.Stats().Purposes {
				inUse += int64(n.Bytes)
			}
			return inUse
		}
		was := look(0)
		peers := exec.Command(os.Args[0], "-test.run", "^TestIdlePeers$")
		peers.Env = append(os.Environ(), idlePeersEnv+"="+ln.URL()[len("tcp://"):])
		peers.Stderr = os.Stderr
		in, err := peers.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := peers.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := peers.Start(); err != nil {
			b.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			b.Fatalf("the peers say %q: %v (ulimit -n?)", line, err)
		}
		now := look(1)
		heap += float64(ms[1].HeapAlloc) - float64(ms[0].HeapAlloc)
		pool += float64(now - was)
		_ = in.Close()
		if err := peers.Wait(); err != nil {
			b.Fatal(err)
		}
		l.Stop()
		if err := <-run; err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N * idleConnections)
	b.ReportMetric(heap/n, "heap-B/conn")
	b.ReportMetric(pool/n, "pool-B/conn")
	b.ReportMetric(0, "ns/op")
}

// TestIdlePeers is no test, but the other process of BenchmarkIdleConnection.
func TestIdlePeers(t *testing.T) {
	address := os.Getenv(idlePeersEnv)
	if address == "" {
		t.Skip("only BenchmarkIdleConnection starts this")
	}
	msg := append([]byte{0, 0, 0, 128}, make([]byte, 128)...)
	echo := make([]byte, len(msg))
	peers := make([]net.Conn, idleConnections)
	for i := range peers {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		peers[i] = nc
		if _, err := Handshake(nc, 1<<20); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(nc, echo); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, nc := range peers {
		_ = nc.Close()
	}
}
