package rdma_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/bootstrap"
	"github.com/millrace/millrace/rdma/softroce"
)

// rawPeer dials like a peer but posts whatever a test wants.
type rawPeer struct {
	t    *testing.T
	nc   net.Conn
	dev  *softroce.Device
	cq   rdma.CQ
	qp   rdma.QP
	mem  *hugepages.Buf
	peer bootstrap.QP
}

func dialTCP(t *testing.T, url string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", strings.TrimPrefix(url, "rdma://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

func (r *rawPeer) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func dialRaw(t *testing.T, url string, change func(*bootstrap.QP)) *rawPeer {
	t.Helper()
	link, err := softroce.NewUDPLink(loopback)
	if err != nil {
		t.Fatal(err)
	}
	r := &rawPeer{t: t, dev: softroce.New(link, softroce.Options{}), nc: dialTCP(t, url)}
	pool := testPool(t, 4<<20)
	t.Cleanup(func() {
		r.must(r.dev.Close())
		r.mem.Release()
	})
	pd, err := r.dev.AllocPD()
	r.must(err)
	_, err = pd.RegisterMR(pool.Arena(), 0)
	r.must(err)
	r.mem, err = pool.Get(1<<20, hugepages.Other)
	r.must(err)
	r.cq, err = r.dev.CreateCQ(256)
	r.must(err)
	r.qp, err = pd.CreateQP(rdma.QPConfig{SendCQ: r.cq, RecvCQ: r.cq, SendWRs: 64, RecvWRs: 64})
	r.must(err)
	for i := range 64 {
		_, err = r.qp.PostRecv([]rdma.RecvWR{{ID: uint64(i), Data: r.mem.Bytes()[i*4096:][:4096]}})
		r.must(err)
	}
	r.must(bootstrap.Send(r.nc, &bootstrap.Hello{Instance: bootstrap.Instance{1}, Loop: 1, Fabric: "udp"}))
	offer, err := bootstrap.Expect[*bootstrap.Offer](r.nc)
	r.must(err)
	r.peer = offer.QP
	a := r.dev.Attr()
	r.must(r.qp.Connect(rdma.Remote{Addr: r.peer.GID, UDPPort: r.peer.UDPPort, QPN: r.peer.QPN, StartPSN: r.peer.PSN, PathMTU: r.peer.PathMTU}))
	own := bootstrap.QP{
		Device: a.Name, Label: a.Label, GID: a.GID, UDPPort: a.UDPPort, QPN: r.qp.Num(), PSN: r.qp.StartPSN(), PathMTU: a.PathMTU,
		Credits: 60, ReceiveBytes: 4096, MaxMessage: 1 << 20,
	}
	if change != nil {
		change(&own)
	}
	r.must(bootstrap.Send(r.nc, &bootstrap.Accept{QP: own}))
	_, err = bootstrap.Expect[*bootstrap.Ready](r.nc)
	r.must(err)
	return r
}

// send posts one message and waits for its acknowledgement.
func (r *rawPeer) send(imm uint32, hasImm bool, bytes int) {
	r.t.Helper()
	wr := rdma.SendWR{ID: 1, Data: r.mem.Bytes()[512<<10:][:bytes], Imm: imm, Signaled: true}
	if hasImm {
		wr.Op = rdma.OpSendImm
	}
	_, err := r.qp.PostSend([]rdma.SendWR{wr})
	r.must(err)
	for start := time.Now(); time.Since(start) < 5*time.Second; {
		r.dev.Progress(int64(time.Since(start)))
		var wcs [16]rdma.WC
		for _, wc := range wcs[:r.cq.Poll(wcs[:])] {
			if wc.Op == rdma.WCSend {
				if wc.Status != rdma.Success {
					r.t.Fatal(wc.Status)
				}
				return
			}
		}
	}
	r.t.Fatal("send was not acknowledged")
}

// bye is how the other side ended the connection.
func (r *rawPeer) bye() (bootstrap.Message, error) {
	r.must(r.nc.SetReadDeadline(time.Now().Add(5 * time.Second)))
	m, err := bootstrap.Read(r.nc)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		r.t.Fatal("the other side did not end the connection")
	}
	return m, err
}
