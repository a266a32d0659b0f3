package softroce

import (
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkStreamFloor is what the kernel takes for 64 KiB over loopback, one goroutine
// at both ends: TCP, and the bare link with the packets that the engine would send.
func BenchmarkStreamFloor(b *testing.B) {
	const bytes = 64 << 10
	b.Run("TCP", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		x, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer x.Close()
		y, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		defer y.Close()
		var fds [2]int
		for i, c := range [...]net.Conn{x, y} {
			raw, err := c.(syscall.Conn).SyscallConn()
			if err != nil {
				b.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				b.Fatal(err)
			}
		}
		out, in := make([]byte, bytes), make([]byte, bytes)
		b.SetBytes(bytes)
		for b.Loop() {
			for sent, got := 0, 0; got < bytes; {
				if sent < bytes {
					if n, err := unix.Write(fds[0], out[sent:]); err == nil {
						sent += n
					}
				}
				if n, err := unix.Read(fds[1], in[got:]); err == nil {
					got += n
				}
			}
		}
	})
	b.Run("UDP", func(b *testing.B) {
		var ls [2]*UDPLink
		for i := range ls {
			l, err := NewUDPLink(netip.MustParseAddrPort("127.0.0.1:0"))
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			ls[i] = l
		}
		path, err := ls[0].Path(ls[1].Attr().Local)
		if err != nil {
			b.Fatal(err)
		}
		tx, rx := make([]Frame, 16), make([]Frame, burst)
		b.SetBytes(bytes)
		for b.Loop() {
			ls[0].TxAlloc(tx)
			for i := range tx {
				tx[i].Len, tx[i].Path = 4096+16, &path
			}
			ls[0].Tx(tx)
			for got := 0; got < len(tx); {
				got += ls[1].Rx(rx)
			}
		}
	})
}
