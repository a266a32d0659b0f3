package rdma

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/millrace/millrace/rdma/bootstrap"
)

// missedBeats is how many beats in a row may be missing.
const missedBeats = 3

// beatInterval is how often each side says that it is alive. A peer that stands
// still is noticed within 3 × 5 s, also while nothing is sent. A variable for tests.
var beatInterval = 5 * time.Second

// liveness is the bootstrap connection after the exchange: nothing but beats, and its
// end tells the end of the peer.
type liveness struct {
	el      *EventLoop
	nc      net.Conn
	timer   *time.Timer
	watched chan struct{} // closed when watch has ended
}

func newLiveness(el *EventLoop, nc net.Conn) *liveness {
	l := &liveness{el: el, nc: nc, watched: make(chan struct{})}
	l.timer = time.AfterFunc(time.Hour, l.beat)
	l.timer.Reset(beatInterval)
	return l
}

// beat runs on the timer's goroutine.
func (l *liveness) beat() {
	if !l.el.begin() {
		return
	}
	defer l.el.setups.Done()
	if bootstrap.Send(l.nc, &bootstrap.Beat{}) == nil { // else watch notices the same
		l.timer.Reset(beatInterval)
	}
}

// close says farewell, or why not, and closes. The loop's goroutine.
func (l *liveness) close(orderly bool, failure error) {
	l.timer.Stop()
	l.el.setups.Add(1)
	go func() {
		defer l.el.setups.Done()
		if failure != nil {
			if bootstrap.Tell(l.nc, failure) == nil {
				select {
				case <-l.watched:
					bootstrap.Linger(l.nc)
				case <-time.After(bootstrap.LingerTime): // watch has read what there was
				}
			}
		} else {
			// A peer that is gone needs no farewell.
			_ = bootstrap.Send(l.nc, &bootstrap.Bye{Orderly: orderly})
		}
		_ = l.nc.Close()
	}()
}

var errSilent = errors.New("rdma: silence on the bootstrap connection")

// beats reads from a bootstrap connection and fails with errSilent when nothing has
// come for missedBeats intervals. It looks again after each, for a
// process that was kept off its CPU sees the time before the bytes.
type beats struct{ nc net.Conn }

func (b beats) Read(p []byte) (n int, err error) {
	for range missedBeats {
		if err = b.nc.SetReadDeadline(time.Now().Add(beatInterval)); err != nil {
			return 0, err
		}
		n, err = b.nc.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
	return 0, errSilent
}

// watch waits for the end of an open connection's bootstrap connection. It runs
// on the goroutine that set the connection up.
func (s *setup) watch() {
	c := s.conn
	if c == nil { // on TCP
		return
	}
	defer close(c.boot.watched)
	var m bootstrap.Message
	var err error
	for beat := true; beat; _, beat = m.(*bootstrap.Beat) {
		m, err = bootstrap.Read(beats{s.nc})
	}
	if errors.Is(err, net.ErrClosed) {
		return // by this end
	}
	bye := false
	switch m := m.(type) {
	case *bootstrap.Bye:
		if bye = m.Orderly; !bye {
			err = ErrPeerAborted
		}
	case *bootstrap.Refusal:
		err = fmt.Errorf("rdma: %s closed the connection: %s", c.remote, m.Reason)
	case nil:
		switch {
		case errors.Is(err, errSilent):
			err = fmt.Errorf("rdma: %s was silent for %v: it stands still, or its host is gone", c.remote, missedBeats*beatInterval)
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
			fallthrough
		default:
			err = fmt.Errorf("rdma: %s died or cannot be reached any more: its bootstrap connection ended: %w", c.remote, err)
		}
	default:
		err = bootstrap.Unexpected(s.nc, m)
	}
	if s.el.submit(func() { c.peerGone(bye, err) }) != nil {
		return // the loop has closed, and the connection with it
	}
}
