package rdma_test

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// mute is a device whose descriptor never becomes readable: nothing but its own last
// look keeps the loop from sleeping on. It runs hooks around the arming of its
// completion queues.
type mute struct {
	rdma.Device
	evfd          int
	before, after atomic.Pointer[func()]
	steps         atomic.Pointer[func()] // at each Progress
}

func (m *mute) FD() int { return m.evfd }

func (m *mute) Close() error {
	_ = unix.Close(m.evfd)
	return m.Device.Close()
}

func once(p *atomic.Pointer[func()]) {
	if fn := p.Swap(nil); fn != nil {
		(*fn)()
	}
}

func (m *mute) Progress(now int64) (int, int64) {
	work, _ := m.Device.Progress(now)
	once(&m.steps)
	return work, 0 // no deadline wakes the loop either
}

func (m *mute) AllocPD() (rdma.PD, error) {
	pd, err := m.Device.AllocPD()
	return mutePD{pd}, err
}

func (m *mute) CreateCQ(depth int) (rdma.CQ, error) {
	cq, err := m.Device.CreateCQ(depth)
	return muteCQ{cq, m}, err
}

type mutePD struct{ rdma.PD }

func (p mutePD) CreateQP(cfg rdma.QPConfig) (rdma.QP, error) {
	cfg.SendCQ, cfg.RecvCQ = cfg.SendCQ.(muteCQ).CQ, cfg.RecvCQ.(muteCQ).CQ
	return p.PD.CreateQP(cfg)
}

type muteCQ struct {
	rdma.CQ
	m *mute
}

func (q muteCQ) Arm() error {
	once(&q.m.before)
	err := q.CQ.Arm()
	once(&q.m.after)
	return err
}

// What arrives while the loop decides to sleep, at any point up to the arming and
// right behind it, is found by its last look: no notification tells of it.
func TestNoWakeupIsLost(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			policy := netpoll.Efficient()
			if seed%2 == 1 {
				policy = netpoll.Balanced()
			}
			var m *mute
			server := startNode(t, nodeOptions{loop: netpoll.Options{Idle: policy}, wrap: func(d rdma.Device) rdma.Device {
				evfd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				m = &mute{Device: d, evfd: evfd}
				return m
			}})
			sh := newCollector()
			r := dialRaw(t, server.listen(sh), nil)
			rng := rand.New(rand.NewPCG(seed, 4))
			sent := make(chan error, 1)
			for i := range 40 {
				n := rng.IntN(3000)
				copy(r.mem.Bytes()[512<<10:], pattern(i, n))
				// On the server's goroutine, so that the point is exact: over the loopback the
				// packet is in its socket when Progress returns.
				arrive := func() {
					_, err := r.qp.PostSend([]rdma.SendWR{{ID: uint64(i), Data: r.mem.Bytes()[512<<10:][:n], Signaled: true}})
					r.dev.Progress(int64(i) * int64(time.Millisecond))
					sent <- err
				}
				[]*atomic.Pointer[func()]{&m.before, &m.after, &m.steps}[rng.IntN(3)].Store(&arrive)
				server.do(func() {}) // wakes it, and lets it sleep again
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				if got := sh.next(t); len(got) != n {
					t.Fatalf("%d bytes of %d", len(got), n)
				}
			}
		})
	}
}
