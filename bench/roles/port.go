package roles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/bench/messages"
	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/internal/transports"
)

// The floor of dpdk://: frames there and back on a port, nothing in between.

// portBurst is how many frames one burst may move.
const portBurst = 32

// portEnd is one end of a point-to-point port. One goroutine, but for stop.
type portEnd struct {
	port dpdk.Port
	rx   [portBurst]dpdk.Frame
	tx   [portBurst]dpdk.Frame
	stop atomic.Bool
}

var errStopped = errors.New("told to stop")

// receive spins until frames come; 0 patience: without end.
func (e *portEnd) receive(patience time.Duration) (int, error) {
	var began time.Time
	for spins := 1; ; spins++ {
		if n := e.port.RxBurst(e.rx[:]); n > 0 {
			return n, nil
		}
		if spins%spinYield == 0 {
			runtime.Gosched()
			if e.stop.Load() {
				return 0, errStopped
			}
			if began.IsZero() {
				began = time.Now()
			} else if patience > 0 && time.Since(began) > patience {
				return 0, fmt.Errorf("no frame within %v", patience)
			}
		}
	}
}

// send copies each of ps into a frame and transmits them.
func (e *portEnd) send(frames int, fill func(i int, frame []byte) int) error {
	for got, spins := 0, 0; got < frames; spins++ {
		n := e.port.AllocBurst(e.tx[got:frames])
		got += n
		if n == 0 && spins%spinYield == spinYield-1 {
			if runtime.Gosched(); e.stop.Load() {
				return errStopped
			}
		}
	}
	for i := range frames {
		e.tx[i].Len = fill(i, e.tx[i].Data)
	}
	for sent, spins := 0, 0; sent < frames; spins++ {
		n := e.port.TxBurst(e.tx[sent:frames])
		sent += n
		if n == 0 && spins%spinYield == spinYield-1 {
			if runtime.Gosched(); e.stop.Load() {
				return errStopped
			}
		}
	}
	return nil
}

// portEcho sends every frame back.
func portEcho(ctx context.Context, spec role.Spec, c *role.Control) error {
	pairs, err := transports.Ports(spec.Device)
	if err != nil {
		return err
	}
	defer pairs.Close()
	port, link, err := pairs.Serve(ctx)
	if err != nil {
		return err
	}
	q := url.Values{}
	for k, v := range link {
		q.Set(k, v)
	}
	e := &portEnd{port: port}
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(echoPort(e), port.Close()) }()
	defer func() { e.stop.Store(true) }()
	c.Emit(role.Event{Kind: role.Ready, URL: "dpdk://link?" + q.Encode()})
	return c.ServeUntilStop(ctx, nil, ended, func() role.Event {
		e.stop.Store(true)
		<-ended // before the sockets of its link go
		return role.Event{}
	})
}

func echoPort(e *portEnd) error {
	for {
		n, err := e.receive(0)
		if errors.Is(err, errStopped) {
			return nil
		}
		if err != nil {
			return err
		}
		err = e.send(n, func(i int, frame []byte) int { return copy(frame, e.rx[i].Data[:e.rx[i].Len]) })
		e.port.FreeBurst(e.rx[:n])
		if errors.Is(err, errStopped) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// portPing measures round trips to portEcho.
func portPing(ctx context.Context, spec role.Spec, c *role.Control) error {
	ms, err := messages.Load(spec.Input, spec.Size)
	if err != nil {
		return err
	}
	pairs, err := transports.Ports(spec.Device)
	if err != nil {
		return err
	}
	defer pairs.Close()
	u, err := url.Parse(spec.URL)
	if err != nil {
		return err
	}
	link := map[string]string{}
	for k := range u.Query() {
		link[k] = u.Query().Get(k)
	}
	jctx, cancel := context.WithTimeout(ctx, dialTimeout)
	port, err := pairs.Join(jctx, link)
	cancel()
	if err != nil {
		return err
	}
	defer port.Close()
	info := port.Info()
	ms = filter(ms, func(m []byte) bool { return len(m) > 0 && len(m) <= info.MTU })
	if len(ms) == 0 {
		return noneFits("frame", info.MTU)
	}
	e := &portEnd{port: port}
	stop := context.AfterFunc(ctx, func() { e.stop.Store(true) })
	defer stop()
	c.Emit(role.Event{Kind: role.Ready, Device: info.Name, Label: "user-space"})
	w, err := open(ctx, spec, c)
	if err != nil {
		return err
	}
	t, watch := newTally(), newStopwatch()
	for i := 0; ; i++ {
		m := ms[i%len(ms)]
		began := watch.now()
		if !w.next(began) {
			break
		}
		if err := e.send(1, func(_ int, frame []byte) int { return copy(frame, m) }); err != nil {
			return err
		}
		n, err := e.receive(answerTimeout)
		if err != nil {
			return err
		}
		took := watch.now().Sub(began)
		same := n == 1 && bytes.Equal(e.rx[0].Data[:e.rx[0].Len], m)
		e.port.FreeBurst(e.rx[:n])
		if !same {
			return errEcho
		}
		if w.counts(began) {
			t.add(took, len(m))
		}
	}
	return finish(ctx, c, w, nil, t.result(w), func() {})
}
