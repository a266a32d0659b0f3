package netpoll

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzTCPStream writes arbitrary bytes, cut at arbitrary places, into a
// connection and compares what is delivered with a plain parser.
func FuzzTCPStream(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05hello\x00\x00\x00\x00"), uint8(3))
	f.Add([]byte("\xff\xff\xff\xffx"), uint8(1))
	f.Add([]byte("\x00\x00\x10\x00"), uint8(2))
	const limit = 4096
	f.Fuzz(func(t *testing.T, stream []byte, cut uint8) {
		if len(stream) > 16<<10 {
			return
		}
		var want []string
		wantBad := false
		for rest := stream; len(rest) >= 4; {
			n := int(binary.BigEndian.Uint32(rest))
			if n > limit {
				wantBad = true
				break
			}
			if n > len(rest)-4 {
				break
			}
			want = append(want, string(rest[4:4+n]))
			rest = rest[4+n:]
		}
		tcp := NewTCP()
		l, err := NewLoop(Options{Backends: []Backend{tcp}, MaxMessageBytes: limit, Pool: testPool(t, 8<<20)})
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[1])
		h := &recorder{}
		if _, err := tcp.adopt(fds[0], "fuzz", limit, h, kernelTCP); err != nil {
			t.Fatal(err)
		}
		step := int(cut)%64 + 1
		for off := 0; off < len(stream) && !h.closed; off += step {
			if _, err := unix.Write(fds[1], stream[off:min(off+step, len(stream))]); err != nil {
				break
			}
			tcp.Poll(pollBudget)
		}
		tcp.Poll(pollBudget)
		if len(h.got) != len(want) {
			t.Fatalf("%d messages, want %d", len(h.got), len(want))
		}
		for i := range want {
			if h.got[i] != want[i] {
				t.Fatalf("message %d differs", i)
			}
		}
		if h.closed != wantBad {
			t.Fatalf("closed %v, want %v", h.closed, wantBad)
		}
		l.Stop()
		if err := l.Run(); err != nil {
			t.Fatal(err)
		}
	})
}

type recorder struct {
	BaseHandler
	got    []string
	closed bool
}

func (r *recorder) OnMessages(_ *Conn, ms []Message) {
	for i := range ms {
		r.got = append(r.got, string(ms[i].Data))
	}
}
func (r *recorder) OnClose(*Conn, error) { r.closed = true }
