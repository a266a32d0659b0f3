package softroce_test

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/softroce"
)

// newLoop makes a loop that serves tcp:// and, by the user-space RoCEv2 engine
// over a UDP socket on loopback, rdma://.
func newLoop() *netpoll.Loop {
	fabric := softroce.NewFabric(netip.MustParseAddrPort("127.0.0.1:0"), softroce.Options{})
	loop, err := netpoll.NewLoop(netpoll.Options{
		Backends: []netpoll.Backend{netpoll.NewTCP(), rdma.NewEventLoop(fabric, rdma.EventLoopOptions{})},
	})
	if err != nil {
		log.Fatal(err)
	}
	go loop.Run()
	return loop
}

// greeter answers every message with a greeting, whatever carried it.
type greeter struct{ netpoll.BaseHandler }

func (greeter) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		send(c, fmt.Sprintf("hello %s, over %s", ms[i].Data, c.Transport().Scheme))
	}
}

func send(c *netpoll.Conn, text string) {
	b, err := c.Alloc(len(text))
	if err != nil {
		c.Close(err)
		return
	}
	copy(b.Bytes(), text)
	if err := c.Send(b); err != nil { // full or closed: the buffer is still ours
		b.Release()
	}
}

type guest struct {
	netpoll.BaseHandler
	name    string
	replies chan string
}

func (g guest) OnOpen(c *netpoll.Conn) { send(c, g.name) }

func (g guest) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		g.replies <- string(ms[i].Data)
	}
}

// One loop and one handler behind a TCP and an RDMA listener.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server, client := newLoop(), newLoop()
	for _, address := range []string{"tcp://127.0.0.1:0", "rdma://127.0.0.1:0"} {
		ln, err := server.Listen(address, greeter{})
		if err != nil {
			log.Fatal(err)
		}
		g := guest{name: "miller", replies: make(chan string, 1)}
		if _, err := client.Dial(ctx, ln.URL(), g); err != nil {
			log.Fatal(err)
		}
		fmt.Println(<-g.replies)
	}
	_ = client.Shutdown(ctx)
	_ = server.Shutdown(ctx)
	// Output:
	// hello miller, over tcp
	// hello miller, over rdma
}
