package rdma

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/rdma/bootstrap"
)

// device is a Device of an EventLoop, with what is shared by its connections.
type device struct {
	dev         Device
	transmitter Transmitter // nil if dev is none
	watcher     Watcher     // nil if dev is none
	loner       Loner       // likewise
	attr        DeviceAttr
	pd          PD
	mr          *MR
	arena       *hugepages.Arena // registered
	link        map[string]string
	fd          int

	receives     int // EventLoopOptions, within the device's limits
	receiveBytes int
	sendWRs      int

	// The loop's goroutine.
	budget      budget
	srq         *receiveQueue // of sharedQueue; nil if the device has none
	sharedQueue SRQ
	groups      []*cqGroup
	conns       map[uint32]*conn   // by queue pair number
	recent      [recentConns]*conn // of lookup, by the number's last bits
	posted      bool               // posted since the last transmission
	quietAt     uint64             // EventLoop.polls when Progress last found nothing

	key   deviceKey
	refs  int           // under EventLoop.mu: connections and set-ups that use it
	ready chan struct{} // closed when made
	err   error         // valid after ready
}

// recentConns is how many connections lookup finds without the map; a power of two.
const recentConns = 64

// cqGroup is the completion queues of up to connsPerCQ connections: one that the loop
// waits for, and one that it looks at in its own time, see EventLoop.reapSends.
type cqGroup struct {
	recv, send CQ
	conns      int
}

// deviceKey tells which connections share a device: all, or those of one peer
// loop in one direction of dialling.
type deviceKey struct {
	active   bool
	instance bootstrap.Instance
	loop     uint64
	link     string // active: what was offered
}

func (el *EventLoop) offerKey(p Peer) deviceKey {
	if !el.fabric.PerPeer() {
		return deviceKey{}
	}
	return deviceKey{instance: p.Instance, loop: p.Loop}
}

func (el *EventLoop) joinKey(p Peer, link map[string]string) deviceKey {
	if !el.fabric.PerPeer() {
		return deviceKey{}
	}
	id, _ := json.Marshal(link) // keys come out sorted; a map of strings cannot fail
	return deviceKey{true, p.Instance, p.Loop, string(id)}
}

// holds tells whether a device for key exists or is being made.
func (el *EventLoop) holds(key deviceKey) bool {
	el.mu.Lock()
	defer el.mu.Unlock()
	return el.entries[key] != nil
}

// acquire takes a reference to the device of key, made by create if there is
// none. shared tells that it existed. Off the loop's goroutine.
func (el *EventLoop) acquire(key deviceKey, create func(context.Context) (Device, map[string]string, error)) (d *device, shared bool, err error) {
	el.mu.Lock()
	if d = el.entries[key]; d != nil {
		d.refs++
		el.mu.Unlock()
		select {
		case <-d.ready:
			return d, true, d.err
		case <-el.ctx.Done():
			return nil, false, el.ctx.Err()
		}
	}
	d = &device{key: key, refs: 1, ready: make(chan struct{}), conns: map[uint32]*conn{}}
	el.entries[key] = d
	el.mu.Unlock()

	ctx, cancel := context.WithTimeout(el.ctx, bootstrap.StepTimeout)
	defer cancel()
	d.dev, d.link, d.err = create(ctx)
	if d.err == nil {
		if d.err = d.init(el); d.err != nil {
			d.err = errors.Join(d.err, el.fabric.Drop(d.dev))
		}
	}
	el.mu.Lock()
	if d.err != nil {
		delete(el.entries, key)
	} else {
		el.devices[d] = struct{}{}
		el.stats.registered.Add(int64(d.arena.Len()))
		if !el.fabric.PerPeer() {
			d.refs++ // lives as long as the event loop
		}
	}
	el.mu.Unlock()
	close(d.ready)
	return d, false, d.err
}

func (d *device) init(el *EventLoop) (err error) {
	d.attr, d.fd = d.dev.Attr(), d.dev.FD()
	d.transmitter, _ = d.dev.(Transmitter)
	d.watcher, _ = d.dev.(Watcher)
	if d.attr.Caps.Has(CapUnsummed) {
		d.loner, _ = d.dev.(Loner)
	}
	o := &el.opts
	d.receives, d.receiveBytes, d.sendWRs = o.Receives, o.ReceiveBytes, o.SendWRs
	if n := d.attr.MaxQPWR; n > 0 {
		if n < minReceives {
			return fmt.Errorf("rdma: %s: queues of %d work requests, %d are needed", d.attr.Name, n, minReceives)
		}
		d.receives, d.sendWRs = min(d.receives, n), min(d.sendWRs, n)
	}
	if n := d.attr.MaxMsg; n > 0 {
		d.receiveBytes = min(d.receiveBytes, n)
	}
	if d.pd, err = d.dev.AllocPD(); err != nil {
		return fmt.Errorf("rdma: %s: protection domain: %w", d.attr.Name, err)
	}
	if d.mr, err = d.pd.RegisterMR(el.loop.Pool().Arena(), 0); err != nil {
		return fmt.Errorf("rdma: %s: registering the loop's memory: %w", d.attr.Name, err)
	}
	d.arena = el.loop.Pool().Arena()
	d.budget.receives = o.SharedReceives
	if d.attr.Caps.Has(CapSRQ) {
		d.budget.receives = min(o.SharedReceives, d.attr.MaxSRQWR)
		if d.sharedQueue, err = d.pd.CreateSRQ(SRQConfig{WRs: d.budget.receives}); err != nil {
			return fmt.Errorf("rdma: %s: shared receive queue of %d: %w", d.attr.Name, d.budget.receives, err)
		}
		d.srq = &receiveQueue{el: el, queue: d.sharedQueue, bytes: d.receiveBytes}
	}
	return nil
}

// forget makes the next offer to d's peer one of a new device. Its connections
// stay.
func (el *EventLoop) forget(d *device) {
	el.mu.Lock()
	defer el.mu.Unlock()
	if el.entries[d.key] == d {
		delete(el.entries, d.key)
	}
}

// release gives one reference back; the device is dropped with the last. The
// loop's goroutine.
func (el *EventLoop) release(d *device) {
	if el.closed {
		return // Close drops all
	}
	el.mu.Lock()
	d.refs--
	unused := d.refs == 0
	if unused {
		delete(el.devices, d)
		el.stats.registered.Add(-int64(d.arena.Len()))
		if el.entries[d.key] == d {
			delete(el.entries, d.key)
		}
	}
	el.mu.Unlock()
	if !unused {
		return
	}
	err := d.closeQueues()
	el.setups.Add(1)
	go func() {
		defer el.setups.Done()
		if err = errors.Join(err, el.fabric.Drop(d.dev)); err != nil {
			el.loop.Logger().Error("device not closed", "device", d.attr.Name, "err", err)
		}
	}()
}

// group finds a completion queue with room for one more connection.
func (d *device) group(el *EventLoop) (*cqGroup, error) {
	for _, g := range d.groups {
		if g.conns < connsPerCQ {
			return g, nil
		}
	}
	g := &cqGroup{}
	var err error
	if g.recv, err = d.dev.CreateCQ(connsPerCQ * d.receives); err == nil {
		if g.send, err = d.dev.CreateCQ(connsPerCQ * d.sendWRs); err != nil {
			err = errors.Join(err, g.recv.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("rdma: %s: completion queue: %w", d.attr.Name, err)
	}
	d.groups = append(d.groups, g)
	return g, nil
}

// closeQueues frees what the connections shared; they are gone.
func (d *device) closeQueues() (err error) {
	if d.srq != nil {
		err = d.sharedQueue.Close()
		d.srq.close()
		d.srq = nil
	}
	for _, g := range d.groups {
		err = errors.Join(err, g.recv.Close(), g.send.Close())
	}
	d.groups = nil
	return err
}

// lookup finds the connection of a queue pair; nil if it is gone.
func (d *device) lookup(qpn uint32) *conn {
	at := &d.recent[qpn%recentConns]
	if c := *at; c == nil || c.qpn != qpn || c.shut {
		*at = d.conns[qpn]
	}
	return *at
}

// activate starts polling d for its first connection, of which there is one now.
func (el *EventLoop) activate(d *device) {
	if len(d.conns) > 1 {
		return
	}
	el.active = append(el.active, d)
	if d.fd >= 0 {
		if err := el.loop.WatchFD(d.fd); err != nil {
			el.loop.Logger().Error("device cannot wake the loop; it is polled instead", "device", d.attr.Name, "err", err)
			d.fd = -1
		}
	}
}

// deactivate undoes a connection's use of d.
func (el *EventLoop) deactivate(d *device) {
	d.recent = [recentConns]*conn{}
	if len(d.conns) == 0 {
		i := slices.Index(el.active, d)
		el.active = slices.Delete(el.active, i, i+1)
		if d.fd >= 0 {
			if err := el.loop.UnwatchFD(d.fd); err != nil {
				el.loop.Logger().Error("device still watched", "device", d.attr.Name, "err", err)
			}
		}
	}
	if len(el.active) == 0 {
		el.releaseSpare()
	}
	el.release(d)
}
