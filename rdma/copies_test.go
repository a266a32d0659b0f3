package rdma_test

import (
	"sync"
	"testing"
	"unsafe"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/rdma"
)

// ledger notes which memory is posted for sending and receiving.
type ledger struct {
	rdma.Device
	mu             sync.Mutex
	sent, received map[*byte]bool
	lists, sends   int
}

func (l *ledger) AllocPD() (rdma.PD, error) {
	pd, err := l.Device.AllocPD()
	return ledgerPD{pd, l}, err
}

type ledgerPD struct {
	rdma.PD
	l *ledger
}

func (p ledgerPD) CreateQP(cfg rdma.QPConfig) (rdma.QP, error) {
	if s, ok := cfg.SRQ.(ledgerSRQ); ok {
		cfg.SRQ = s.SRQ
	}
	qp, err := p.PD.CreateQP(cfg)
	return ledgerQP{qp, p.l}, err
}

func (p ledgerPD) CreateSRQ(cfg rdma.SRQConfig) (rdma.SRQ, error) {
	srq, err := p.PD.CreateSRQ(cfg)
	return ledgerSRQ{srq, p.l}, err
}

type ledgerQP struct {
	rdma.QP
	l *ledger
}

func (q ledgerQP) PostSend(wrs []rdma.SendWR) (int, error) {
	q.l.mu.Lock()
	defer q.l.mu.Unlock()
	q.l.lists++
	q.l.sends += len(wrs)
	for i := range wrs {
		q.l.sent[unsafe.SliceData(wrs[i].Data)] = true
	}
	return q.QP.PostSend(wrs)
}

type ledgerSRQ struct {
	rdma.SRQ
	l *ledger
}

func (s ledgerSRQ) PostRecv(wrs []rdma.RecvWR) (int, error) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	for i := range wrs {
		s.l.received[unsafe.SliceData(wrs[i].Data)] = true
	}
	return s.SRQ.PostRecv(wrs)
}

// A message goes to the device as the bytes that its sender filled, and to the handler
// as the bytes that the device filled; a burst of them goes in one list.
func TestNothingIsCopied(t *testing.T) {
	ledgers := map[string]*ledger{}
	start := func(name string) *node {
		return startNode(t, nodeOptions{wrap: func(d rdma.Device) rdma.Device {
			ledgers[name] = &ledger{Device: d, sent: map[*byte]bool{}, received: map[*byte]bool{}}
			return ledgers[name]
		}})
	}
	server, client := start("server"), start("client")
	h := &places{l: ledgers["server"], seen: make(chan bool, 1000)}
	c := client.dial(server.listen(h), newCollector())
	sent := ledgers["client"]
	send := func(n, size int) (firsts []*byte) {
		client.do(func() {
			for range n {
				b, err := c.Alloc(size)
				if err != nil {
					t.Error(err)
					return
				}
				firsts = append(firsts, unsafe.SliceData(b.Bytes()))
				if err := c.Send(b); err != nil {
					t.Error(err)
				}
			}
		})
		for range n {
			if !<-h.seen {
				t.Error("a message was delivered from elsewhere than the device put it")
			}
		}
		return firsts
	}
	firsts := append(send(1, 128), send(20, 3000)...)
	firsts = append(firsts, send(3, 50_000)...)
	sent.mu.Lock()
	for i, p := range firsts {
		if !sent.sent[p] {
			t.Errorf("message %d was sent from elsewhere", i)
		}
	}
	lists, sends := sent.lists, sent.sends
	sent.mu.Unlock()
	send(40, 3000) // all within what the peer granted
	sent.mu.Lock()
	defer sent.mu.Unlock()
	if more := sent.lists - lists; more > 3 {
		t.Errorf("%d lists for %d sends", more, sent.sends-sends)
	}
	if s := client.el.Stats(); s.CopiedMessages+s.PackedMessages > 0 {
		t.Errorf("stats %+v", s)
	}
}

// places looks where messages lie.
type places struct {
	netpoll.BaseHandler
	l    *ledger
	seen chan bool
}

func (h *places) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	for i := range ms {
		ok := h.l.received[unsafe.SliceData(ms[i].Data)]
		for _, s := range ms[i].Rest {
			ok = ok && h.l.received[unsafe.SliceData(s.Data)]
		}
		h.seen <- ok && ms[i].Buf.Purpose() == hugepages.Receive
	}
}
