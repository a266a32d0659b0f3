package dpdk_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/porttest"
	"github.com/millrace/millrace/rdma/softroce"
)

// Each queue has an owner of its own; whichever queue a packet comes in by, it
// reaches the link whose UDP port it names, once and whole.
func TestQueuesPassOnWhatIsForOthers(t *testing.T) {
	const queues, packets = 3, 2000
	device, wire := porttest.NewDevice("fake", queues, porttest.Config{Seed: 1})
	ports := make([]dpdk.Port, queues)
	for i := range ports {
		ports[i] = device[i]
	}
	links, err := dpdk.NewLinks(ports, dpdk.LinkConfig{Local: here4})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := dpdk.NewLink(wire, dpdk.LinkConfig{Local: there4, Neighbours: map[netip.Addr]net.HardwareAddr{here4.Addr(): device[0].Info().MAC}})
	if err != nil {
		t.Fatal(err)
	}
	var got [queues]atomic.Int64
	var seen [queues][packets]atomic.Bool
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i, l := range links {
		if l.Attr().Local.Port() != here4.Port()+uint16(i) || l.FD() != -1 {
			t.Fatalf("link %d: %+v", i, l.Attr())
		}
		wg.Go(func() {
			var rx [64]softroce.Frame
			for !stop.Load() {
				n := l.Rx(rx[:])
				if n == 0 {
					runtime.Gosched() // there may be fewer CPUs than goroutines that poll
				}
				for _, f := range rx[:n] {
					n := binary.LittleEndian.Uint32(f.Data)
					if int(binary.LittleEndian.Uint32(f.Data[4:])) != i || seen[i][n].Swap(true) {
						t.Errorf("link %d got packet %d of link %d, or twice", i, n, f.Data[4])
					}
					got[i].Add(1)
				}
				l.RxFree(rx[:])
			}
			l.Rx(rx[:])
			l.RxFree(rx[:])
		})
	}
	var paths [queues]softroce.Path
	for i := range paths {
		if paths[i], err = peer.Path(links[i].Attr().Local); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(60 * time.Second)
	for n := range packets {
		for i := range paths {
			var f [1]softroce.Frame
			for peer.TxAlloc(f[:]) == 0 {
			}
			binary.LittleEndian.PutUint32(f[0].Data, uint32(n))
			binary.LittleEndian.PutUint32(f[0].Data[4:], uint32(i))
			f[0].Len, f[0].Path = 64, &paths[i]
			for peer.Tx(f[:]) == 0 {
			}
			// No more than what the rings between two links hold.
			for int64(n)-got[i].Load() > 32 && time.Now().Before(deadline) {
				time.Sleep(10 * time.Microsecond)
			}
		}
	}
	for i := range got {
		for got[i].Load() < packets && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
	}
	stop.Store(true)
	wg.Wait()
	for i, l := range links {
		st := l.Stats()
		if got[i].Load() != packets || st.Passed == 0 || st.Overrun != 0 || len(st.Dropped) != 0 {
			t.Errorf("link %d got %d of %d: %+v", i, got[i].Load(), packets, st)
		}
	}
	for _, p := range device {
		if p.Outstanding() != 0 {
			t.Error("frames leaked")
		}
	}
}

func TestQueueThatDoesNotKeepUp(t *testing.T) {
	device, wire := porttest.NewDevice("fake", 2, porttest.Config{Seed: 1})
	links, err := dpdk.NewLinks([]dpdk.Port{device[0], device[1]}, dpdk.LinkConfig{Local: here4})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := dpdk.NewLink(wire, dpdk.LinkConfig{Local: there4, Neighbours: map[netip.Addr]net.HardwareAddr{here4.Addr(): device[0].Info().MAC}})
	if err != nil {
		t.Fatal(err)
	}
	path, err := peer.Path(links[1].Attr().Local)
	if err != nil {
		t.Fatal(err)
	}
	var rx [64]softroce.Frame
	for range 400 { // link 1 is not polled
		sendTo(t, peer, &path, 64)
		links[0].Rx(rx[:])
		var raw [1]dpdk.Frame
		device[1].FreeBurst(raw[:device[1].RxBurst(raw[:])])
	}
	if st := links[0].Stats(); st.Passed != 64 || st.Overrun == 0 {
		t.Errorf("%+v", st)
	}
	if n := links[1].Rx(rx[:]); n != 64 {
		t.Errorf("%d packets waited", n)
	}
}
