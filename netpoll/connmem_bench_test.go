package netpoll

import (
	"net"
	"runtime"
	"testing"
	"time"
)

// BenchmarkIdleConnection reports what an open TCP connection takes that has sent and
// received a message and then nothing: of the Go heap, and of the loop's pool. The
// peer is a bare socket, so that it is one end that is counted. The kernel's part
// (the socket) is not ours.
func BenchmarkIdleConnection(b *testing.B) {
	const count = 2000
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
		peers := make([]net.Conn, 0, count)
		msg := append([]byte{0, 0, 0, 128}, make([]byte, 128)...)
		was := look(0)
		for range count {
			nc, err := net.Dial("tcp", ln.URL()[len("tcp://"):])
			if err != nil {
				b.Skip("no socket: ", err)
			}
			peers = append(peers, nc)
			if _, err := Handshake(nc, 1<<20); err != nil {
				b.Fatal(err)
			}
			if _, err := nc.Write(msg); err != nil {
				b.Fatal(err)
			}
			for got := 0; got < len(msg); {
				n, err := nc.Read(msg[got:])
				if err != nil {
					b.Fatal(err)
				}
				got += n
			}
		}
		time.Sleep(10 * time.Millisecond)
		now := look(1)
		heap += float64(ms[1].HeapAlloc) - float64(ms[0].HeapAlloc)
		pool += float64(now - was)
		for _, nc := range peers {
			_ = nc.Close()
		}
		l.Stop()
		if err := <-run; err != nil {
			b.Fatal(err)
		}
	}
	n := float64(b.N * count)
	b.ReportMetric(heap/n, "heap-B/conn")
	b.ReportMetric(pool/n, "pool-B/conn")
	b.ReportMetric(0, "ns/op")
}
