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
	if _, err := netpoll.Handshake(nc, messages.MaxMessageBytes); err != nil {
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

// receive reads one message, valid until the next call.
func (c *netConn) receive() ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(h[:]))
	if n > messages.MaxMessageBytes {
		return nil, fmt.Errorf("%w: %d bytes", netpoll.ErrMessageTooLarge, n)
	}
	if cap(c.in) < n {
		c.in = make([]byte, n)
	}
	c.in = c.in[:n]
	_, err := io.ReadFull(c.r, c.in)
	return c.in, err
}

// serveNet accepts connections and serves each on a goroutine, until the parent
// says Stop.
func serveNet(ctx context.Context, spec role.Spec, c *role.Control, serve func(*netConn) error) error {
	u, err := url.Parse(spec.URL)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", u.Host)
	if err != nil {
		return netpoll.ListenError(spec.URL, err)
	}
	defer ln.Close()
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
	return c.ServeUntilStop(ctx, cpuMeter(), fail, func() role.Event { return role.Event{} })
}

// netEcho sends every message back.
func netEcho(ctx context.Context, spec role.Spec, c *role.Control) error {
	return serveNet(ctx, spec, c, func(conn *netConn) error {
		for {
			m, err := conn.receive()
			if err != nil {
				return err
			}
			if err := conn.send(m); err != nil {
				return err
			}
		}
	})
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
	return finish(ctx, c, meter, t.result(w), func() {})
}

func pingNet(conn *netConn, ms [][]byte, first int, w window, t *tally) error {
	for i := first; ; i++ {
		m := ms[i%len(ms)]
		began := time.Now()
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
		if !bytes.Equal(got, m) {
			return errEcho
		}
		if w.counts(began) {
			t.addLocked(time.Since(began), len(m))
		}
	}
}

var errEcho = errors.New("the echo differs from what was sent")
