package memif_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
)

// pacer sends the next message when it has waited for a while after the last answer:
// from not at all to longer than any spin, nap or measured wake-up.
type pacer struct {
	netpoll.BaseHandler
	rng  *rand.Rand
	left int
	done chan struct{}
	back chan struct{}
}

func (p *pacer) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for range ms {
		if p.left--; p.left == 0 {
			close(p.done)
			return
		}
		select {
		case p.back <- struct{}{}:
		default:
		}
		var wait time.Duration
		if k := p.rng.IntN(12); k > 0 {
			wait = time.Duration(p.rng.IntN(1 << (8 + k))) // at most 0.5 µs to 0.5 ms
		}
		if p.rng.IntN(50) == 0 {
			wait += 2 * time.Millisecond
		}
		if wait == 0 {
			p.send(c)
		} else {
			c.Loop().After(wait, func() { p.send(c) })
		}
	}
}

func (p *pacer) send(c *netpoll.Conn) {
	b, err := c.Alloc(1 + p.rng.IntN(512))
	if err == nil {
		if err = c.Send(b); err != nil {
			b.Release()
		}
	}
	if err != nil {
		c.Close(err)
	}
}

// Nobody sleeps over a message, whatever the two ends' idle policies are, and however
// long one was quiet: each answer is waited for by the next message.
func TestNoMessageIsSleptOver(t *testing.T) {
	policies := []netpoll.IdlePolicy{netpoll.Latency(), netpoll.Balanced(), netpoll.Efficient()}
	for _, here := range policies {
		for _, there := range policies {
			if !here.Park && !there.Park {
				continue // neither ever sleeps
			}
			t.Run(here.Name+"-"+there.Name, func(t *testing.T) {
				server, client := startLoop(t, there), startLoop(t, here)
				ln, err := server.Listen("dpdk://127.0.0.1:0", looptest.Echo{})
				if err != nil {
					t.Fatal(err)
				}
				p := &pacer{rng: rand.New(rand.NewPCG(3, 3)), left: 60, done: make(chan struct{}), back: make(chan struct{}, 1)}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				c, err := client.Dial(ctx, ln.URL(), p)
				if err != nil {
					t.Fatal(err)
				}
				if err := client.Do(func() { p.send(c) }); err != nil {
					t.Fatal(err)
				}
				for {
					select {
					case <-p.done:
						return
					case <-p.back:
					case <-time.After(20 * time.Second):
						t.Fatal("no answer for 20 s")
					}
				}
			})
		}
	}
}
