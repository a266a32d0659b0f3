package rdma_test

import (
	"testing"

	"github.com/millrace/millrace/netpoll"
)

// summary answers at the end of each duty cycle in which messages came, as a broker does.
type summary struct {
	netpoll.BaseHandler
	t    *testing.T
	conn *netpoll.Conn
	came int
}

func (s *summary) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	s.conn = c
	s.came += len(ms)
}

func (s *summary) cycleEnd(int64) int64 {
	if s.came > 0 {
		if err := sendCopy(s.conn, []byte{byte(s.came)}); err != nil {
			s.t.Error(err)
		}
		s.came = 0
	}
	return 0
}

// Receives that many requests used are granted again with their answer, and not before it
// by themselves: that would wake a peer that waits for the answer.
func TestGrantsGoWithAnswers(t *testing.T) {
	const rounds, burst = 40, 40 // more than half of a connection's receives
	server := startNode(t, nodeOptions{loop: netpoll.Options{Idle: netpoll.Efficient()}})
	client := startNode(t, nodeOptions{})
	s, h := &summary{t: t}, newCollector()
	c := client.dial(server.listen(s), h)
	server.do(func() { server.loop.AtCycleEnd(s.cycleEnd) })
	before := uint64(0)
	for round := range rounds {
		if round == 1 { // by now the client has all its credits
			before = server.el.Stats().CreditMessages
		}
		client.do(func() {
			for i := range burst {
				if err := sendCopy(c, pattern(i, 1100)); err != nil { // too large to travel with others
					t.Error(err)
				}
			}
		})
		for left := burst; left > 0; {
			left -= int(h.next(t)[0])
		}
	}
	// Now and then the next messages come before the cycle of those before them has ended.
	if n := server.el.Stats().CreditMessages - before; n > rounds/2 { // without holding them back all but one
		t.Errorf("%d credit messages in %d rounds", n, rounds)
	}
}
