package netpoll_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/millrace/millrace/netpoll"
)

// upper answers every message with its upper-case form.
type upper struct{ netpoll.BaseHandler }

func (upper) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		reply, err := c.Alloc(len(ms[i].Data))
		if err != nil {
			c.Close(err)
			return
		}
		for k, ch := range ms[i].Data {
			if 'a' <= ch && ch <= 'z' {
				ch -= 'a' - 'A'
			}
			reply.Bytes()[k] = ch
		}
		if err := c.Send(reply); err != nil {
			reply.Release()
		}
	}
}

// show prints what arrives.
type show struct {
	netpoll.BaseHandler
	done chan struct{}
}

func (s show) OnOpen(c *netpoll.Conn) {
	m, err := c.Alloc(len("water to the mill"))
	if err != nil {
		c.Close(err)
		return
	}
	copy(m.Bytes(), "water to the mill")
	if err := c.Send(m); err != nil {
		m.Release()
	}
}

func (s show) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		fmt.Printf("%s\n", ms[i].Data)
	}
	close(s.done)
}

// A server and a client, each on a loop of its own, over TCP.
func Example() {
	server, err := netpoll.NewLoop(netpoll.Options{})
	if err != nil {
		log.Fatal(err)
	}
	go server.Run()
	ln, err := server.Listen("tcp://127.0.0.1:0", upper{})
	if err != nil {
		log.Fatal(err)
	}

	client, err := netpoll.NewLoop(netpoll.Options{})
	if err != nil {
		log.Fatal(err)
	}
	go client.Run()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s := show{done: make(chan struct{})}
	if _, err := client.Dial(ctx, ln.URL(), s); err != nil {
		log.Fatal(err)
	}
	<-s.done

	_ = client.Shutdown(ctx)
	_ = server.Shutdown(ctx)
	// Output: WATER TO THE MILL
}
