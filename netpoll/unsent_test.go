package netpoll

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/millrace/millrace/hugepages"
)

// returner keeps what a close did not send, and when it heard of it.
type returner struct {
	*collector
	back [][]byte
	late bool // OnUnsent after OnClose
}

func (r *returner) OnUnsent(_ *Conn, bufs []*hugepages.Buf) {
	r.late = len(r.closed) > 0
	for _, b := range bufs {
		r.back = append(r.back, bytes.Clone(b.Bytes()))
	}
}

// numbered is message i of n bytes.
func numbered(i, n int) []byte {
	p := make([]byte, n)
	binary.LittleEndian.PutUint32(p, uint32(i))
	p[n-1] = byte(i)
	return p
}

// What no part of has reached the kernel, or not all, comes back before OnClose, in
// order and without the frame's header.
func TestUnsentComesBackOverTCP(t *testing.T) {
	const size, n = 64 << 10, 600 // 38 MiB: more than two socket buffers take
	for _, tc := range []struct {
		name  string
		flush bool
	}{{"closed before the flush", false}, {"closed when the socket is full", true}} {
		t.Run(tc.name, func(t *testing.T) {
			o := Options{MaxQueuedBytes: 64 << 20, Pool: testPool(t, 96<<20)}
			server, client := startLoop(t, Options{}), startLoop(t, o)
			ln, err := server.Listen("tcp://127.0.0.1:0", pausedSink{})
			if err != nil {
				t.Fatal(err)
			}
			h := &returner{collector: newCollector()}
			c, err := client.Dial(dialCtx(t), ln.URL(), h)
			if err != nil {
				t.Fatal(err)
			}
			if err := client.Do(func() {
				for i := range n {
					b, err := c.Alloc(size)
					if err != nil {
						t.Error(err)
						return
					}
					copy(b.Bytes(), numbered(i, size))
					if err := c.Send(b); err != nil {
						t.Error(err)
						b.Release()
					}
				}
				if tc.flush {
					c.Flush()
				}
				c.Close(nil)
			}); err != nil {
				t.Fatal(err)
			}
			<-h.closed
			if h.late || len(h.back) == 0 || !tc.flush && len(h.back) != n {
				t.Fatalf("%d of %d came back; after OnClose: %v", len(h.back), n, h.late)
			}
			first := n - len(h.back)
			for i, p := range h.back {
				if !bytes.Equal(p, numbered(first+i, size)) {
					t.Fatalf("message %d of those that came back is another, or %d bytes", i, len(p))
				}
			}
		})
	}
}

// pausedSink reads nothing.
type pausedSink struct{ BaseHandler }

func (pausedSink) OnOpen(c *Conn) { c.PauseReading() }
