package roles

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// netConn speaks the tcp:// wire format the way an ordinary Go program would: a
// blocking net.Conn, one goroutine for each.
type netConn struct {
	net.Conn
	r   *bufio.Reader
	out []byte
	in  []byte
}

func newNetConn(nc net.Conn) (*netConn, error) {
	if _, err := netpoll.Handshake(nc, maxMessageBytes); err != nil {
		_ = nc.Close()
		return nil, err
	}
	return &netConn{Conn: nc, r: bufio.NewReaderSize(nc, 64<<10)}, nil
}

func dialNet(ctx context.Context, rawURL string) (*netConn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	return newNetConn(nc)
}

// send writes one message with one system call.
func (c *netConn) send(m []byte) error {
	c.out = binary.BigEndian.AppendUint32(c.out[:0], uint32(len(m)))
	c.out = append(c.out, m...)
	_, err := c.Write(c.out)
	return err
}

// next reads the length of the next message.
func (c *netConn) next() (int, error) {
	var h [4]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint32(h[:]))
	if n > maxMessageBytes {
		return 0, fmt.Errorf("%w: %d bytes", netpoll.ErrMessageTooLarge, n)
	}
	return n, nil
}

// receive reads one message, valid until the next call.
func (c *netConn) receive() ([]byte, error) {
	n, err := c.next()
	if err != nil {
		return nil, err
	}
	if cap(c.in) < n {
		c.in = make([]byte, n)
	}
	c.in = c.in[:n]
	_, err = io.ReadFull(c.r, c.in)
	return c.in, err
}

// receiveBuf reads one message into a buffer of pool, which is then the caller's;
// it waits while the pool has none.
func (c *netConn) receiveBuf(pool *hugepages.Pool) (*hugepages.Buf, error) {
	n, err := c.next()
	if err != nil {
		return nil, err
	}
	b, err := pool.Get(n, hugepages.Receive)
	for errors.Is(err, hugepages.ErrExhausted) {
		time.Sleep(time.Millisecond)
		b, err = pool.Get(n, hugepages.Receive)
	}
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c.r, b.Bytes()); err != nil {
		b.Release()
		return nil, err
	}
	return b, nil
}

// frameWaits reports whether a whole message was already read from the socket.
func (c *netConn) frameWaits() bool {
	h, err := c.r.Peek(min(4, c.r.Buffered()))
	return err == nil && len(h) == 4 && c.r.Buffered() >= 4+int(binary.BigEndian.Uint32(h))
}

// serveNet accepts connections and serves each on a goroutine, until the parent
// says Stop; then it runs stop.
func serveNet(ctx context.Context, spec role.Spec, c *role.Control, m *role.BusyMeter, serve func(*netConn) error, stop func() error) error {
	u, err := url.Parse(spec.URL)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", u.Host)
	if err != nil {
		return netpoll.ListenError(spec.URL, err)
	}
	fail := make(chan error, 1)
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				conn, err := newNetConn(nc)
				if err == nil {
					err = serve(conn)
					_ = conn.Close()
				}
				if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					select {
					case fail <- err:
					default:
					}
				}
			}()
		}
	}()
	c.Emit(role.Event{Kind: role.Ready, URL: "tcp://" + ln.Addr().String(), Device: "net", Label: "kernel"})
	return c.ServeUntilStop(ctx, m, fail, stopping(func(context.Context) error { return errors.Join(ln.Close(), stop()) }))
}

// netEcho sends every message back.
func netEcho(ctx context.Context, spec role.Spec, c *role.Control) error {
	return serveNet(ctx, spec, c, cpuMeter(), func(conn *netConn) error {
		return relay(conn, conn, func([]byte) error { return nil })
	}, func() error { return nil })
}

// netPing measures round trips to netEcho.
func netPing(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return err
	}
	conns := make([]*netConn, max(1, spec.Connections))
	for i := range conns {
		if conns[i], err = dialNet(ctx, spec.URL); err != nil {
			return err
		}
		defer conns[i].Close()
	}
	c.Emit(role.Event{Kind: role.Ready, Device: "net", Label: "kernel"})
	w, err := open(ctx, spec, c)
	if err != nil {
		return err
	}
	t, meter := newTally(), cpuMeter()
	fail := make(chan error, len(conns))
	for i, conn := range conns {
		go func() { fail <- pingNet(conn, ms, i, w, t) }()
	}
	for range conns {
		if err := <-fail; err != nil {
			return err
		}
	}
	return finish(ctx, c, w, meter, t.result(w), func() {})
}

func pingNet(conn *netConn, ms [][]byte, first int, w *window, t *tally) error {
	watch := newStopwatch()
	for i := first; ; i++ {
		m := ms[i%len(ms)]
		began := watch.now()
		if w.over(began) {
			return nil
		}
		if err := conn.send(m); err != nil {
			return err
		}
		got, err := conn.receive()
		if err != nil {
			return err
		}
		took := watch.now().Sub(began)
		if !bytes.Equal(got, m) {
			return errEcho
		}
		if w.counts(began) {
			t.addLocked(took, len(m))
		}
	}
}

var errEcho = errors.New("the echo differs from what was sent")
