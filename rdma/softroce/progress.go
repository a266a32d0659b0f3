package softroce

import (
	"math"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// txRetryNanos is how long a loop may sleep while the link refuses frames: no
// descriptor tells when it takes them again.
const txRetryNanos = 20_000

// Progress implements rdma.Device. One call sends what is posted, then the
// acknowledgements that are due, then receives one burst. So what the caller posts
// in answer to received messages leaves before their acknowledgement.
func (d *Device) Progress(now int64) (work int, deadline int64) {
	if d.closed {
		return 0, 0
	}
	d.now = now
	d.starved = false
	if now >= d.nextTimer {
		if d.armed > 0 {
			work += d.receiveAll(now)
		}
		d.expire(now)
	}
	if d.blocked {
		work += d.unblock()
	}
	if d.txHead != d.txFill {
		d.sendFrames() // what the link refused last time
	}
	if d.respStarved {
		d.respStarved = false
		work += d.respond(now, false)
	}
	if d.active.first != nil {
		work += d.transmit(now)
	}
	if len(d.resp) > 0 {
		work += d.respond(now, false)
	}
	d.flush = false
	if d.txHead != d.txFill {
		d.sendFrames()
	}
	work += d.receive(now)
	if d.urgent {
		d.urgent = false
		work += d.respond(now, true)
		d.sendFrames()
	}
	return work, d.deadline(now)
}

// deadline is when Progress must run again without a notification, 0 for never.
func (d *Device) deadline(now int64) int64 {
	t := int64(math.MaxInt64)
	if d.armed > 0 {
		t = d.nextTimer
	}
	switch {
	case d.starved:
		t = min(t, now+txRetryNanos)
	case d.answering:
		return now
	case len(d.resp) > 0:
		t = min(t, d.resp[0].ackAt)
	}
	if t == math.MaxInt64 {
		return 0
	}
	return t
}

// transmit sends packets of the active queue pairs in turn, one burst at most.
func (d *Device) transmit(now int64) (sent int) {
	for sent < burst {
		q := d.active.take()
		if q == nil {
			break
		}
		n, more := q.transmit(now, min(quantum, burst-sent))
		sent += n
		if more {
			d.active.add(q)
		}
		if d.starved {
			break
		}
	}
	return sent
}

// frame is the next empty transmit frame, which counts as filled from then on;
// nil if the link has none.
func (d *Device) frame() *Frame {
	if d.txFill == d.txAlloc && !d.refill() {
		return nil
	}
	f := &d.tx[d.txFill]
	d.txFill++
	return f
}

func (d *Device) refill() bool {
	if d.txAlloc == burst { // and all are filled; sendFrames starts over once all are taken
		if d.sendFrames(); d.txAlloc == burst {
			return false
		}
	}
	n := d.link.TxAlloc(d.tx[d.txAlloc:])
	if n == 0 && d.txHead != d.txFill { // the link may have frames again once it has sent these
		d.sendFrames()
		n = d.link.TxAlloc(d.tx[d.txAlloc:])
	}
	if n == 0 {
		d.starve()
		return false
	}
	d.txAlloc += n
	return true
}

func (d *Device) starve() {
	d.starved = true
	d.stats.TxRefused++
}

// sendFrames hands the filled frames to the link. Those that it refuses stay, in
// order, for the next call.
func (d *Device) sendFrames() {
	fs := d.tx[d.txHead:d.txFill]
	if len(fs) == 0 {
		return
	}
	bytes := 0
	for i := range fs {
		bytes += fs[i].Len
	}
	n := d.link.Tx(fs)
	if n < len(fs) {
		for i := n; i < len(fs); i++ {
			bytes -= fs[i].Len
		}
		d.starve()
	}
	d.txHead += n
	if d.txHead == d.txAlloc {
		d.txHead, d.txFill, d.txAlloc = 0, 0, 0
	}
	d.stats.TxPackets += uint64(n)
	d.stats.TxBytes += uint64(bytes)
}

// respond sends answers and the responses that are due, or only the urgent ones
// among them. Each queue pair has a turn of quantum packets.
func (d *Device) respond(now int64, urgent bool) (sent int) {
	keep := 0
	d.answering = false
	for i, q := range d.resp {
		due := q.respDue(now, urgent)
		left := q.resp != respNone
		if due || !q.answers.empty() {
			var n int
			var starved bool
			n, left, starved = q.respond(quantum, due)
			sent += n
			if starved {
				d.respStarved = true
				keep += copy(d.resp[keep:], d.resp[i:])
				break
			}
			d.answering = d.answering || !q.answers.empty()
		}
		if left {
			d.resp[keep] = q
			keep++
		} else {
			q.inResp = false
		}
	}
	clear(d.resp[keep:])
	d.resp = d.resp[:keep]
	return sent
}

// receive takes one burst from the link.
func (d *Device) receive(now int64) int {
	n := d.link.Rx(d.rx[:])
	if n == 0 {
		return 0
	}
	for i := range d.rx[:n] {
		d.packet(&d.rx[i], now)
	}
	d.link.RxFree(d.rx[:n])
	return n
}

// receiveAll empties the link before timers fire: after this process was kept off
// its CPU, what a timer misses may have arrived. Bounded, for a flood never ends.
func (d *Device) receiveAll(now int64) (n int) {
	for range 16 {
		k := d.receive(now)
		n += k
		if k < burst {
			break
		}
	}
	return n
}

// packet checks one received packet and hands it to its queue pair. Nothing but
// the counters changes before the ICRC has been checked.
func (d *Device) packet(f *Frame, now int64) {
	s := &d.stats
	s.RxPackets++
	s.RxBytes += uint64(f.Len)
	if f.Len > len(f.Data) || f.Len < roce.MinPacket || f.Len > frameBytes {
		s.DropLength++
		return
	}
	p := f.Data[:f.Len]
	h := (*roce.BTH)(p)
	if h.TVer() != 0 {
		s.DropVersion++
		return
	}
	op := h.Opcode()
	props := op.Props()
	if props == 0 {
		s.DropOpcode++
		return
	}
	body := len(p) - roce.ICRCLen - h.Pad()
	if body < op.HeaderLen() {
		s.DropLength++
		return
	}
	qpn := h.DestQPN()
	if qpn&^(qpnBlock-1) != d.qpnBase {
		s.DropQPN++
		return
	}
	q := d.table[qpn&(qpnBlock-1)]
	if q == nil {
		s.DropQPN++
		return
	}
	if q.state != rdma.QPReadyToSend {
		s.DropState++
		return
	}
	if f.Src.Addr() != q.peerAddr {
		s.DropSource++
		return
	}
	// Both members of the default partition may talk to a full member (IBTA vol. 1, §10.9.3).
	if h.PKey()|0x8000 != roce.DefaultPKey {
		s.DropPKey++
		return
	}
	covered := p[:len(p)-roce.ICRCLen]
	var sum uint32
	if f.Pseudo != nil {
		sum = roce.Sum(f.Pseudo, covered)
	} else {
		if f.Src.Port() != q.rxPort {
			q.setRxPort(f.Src.Port())
		}
		sum = q.rxCRC.Sum(covered)
	}
	if delta := sum ^ roce.GetICRC(p[len(covered):]); delta != 0 &&
		!(d.attr.Numbered && f.Pseudo == nil && roce.IsSegment(delta, len(p))) {
		s.DropICRC++
		return
	}
	switch data := p[op.HeaderLen():body]; {
	case op == roce.Acknowledge:
		q.acknowledge((*roce.AETH)(p[roce.BTHLen:]), h.PSN(), now)
	case props&roce.IsResponse != 0:
		q.answer(p, data, props, now)
	default:
		q.request(p, data, props, now)
	}
}

// expire fires the timers that are due and finds the next one.
func (d *Device) expire(now int64) {
	d.nextTimer = math.MaxInt64
	for _, q := range d.live {
		if q.timer == 0 {
			continue
		}
		if q.timer <= now {
			q.expired(now)
		}
		if q.timer != 0 {
			d.nextTimer = min(d.nextTimer, q.timer)
		}
	}
}

// unblock reports what waited for room in a completion queue.
func (d *Device) unblock() (n int) {
	d.blocked = false
	for _, q := range d.live {
		if q.blocked {
			n += q.drain()
			if !q.blocked && q.cur != q.tail {
				d.active.add(q)
			}
		}
	}
	return n
}
